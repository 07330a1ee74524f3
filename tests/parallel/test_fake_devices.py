import subprocess
import sys

import pytest

from vla_jax.parallel import fake_devices


def test_other_flags_are_kept_and_the_number_is_replaced(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_some=1 {fake_devices.FLAG}=8 --xla_other=2")
    found = fake_devices.variables(3)
    assert sorted(found["XLA_FLAGS"].split()) == [
        f"{fake_devices.FLAG}=3",
        "--xla_other=2",
        "--xla_some=1",
    ]
    assert found["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize(
    "flags, platforms, expected",
    [("", "cpu", 0), ("{}=4", "cpu", 4), ("{}=4 {}=2", "cpu", 2), ("{}=4", "cuda", 0)],
)
def test_how_many_there_will_be(flags, platforms, expected, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flags.replace("{}", fake_devices.FLAG))
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert fake_devices.count() == expected


def test_needs_no_jax():
    program = "import sys; from vla_jax.parallel import fake_devices; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
