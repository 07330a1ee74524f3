"""The flags are such as XLA and libtpu know, and what a user has set stays."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from launch import flags
from vla_jax import config as config_lib

CONFIGS = pathlib.Path(flags.__file__).resolve().parents[1] / "configs"


def started(platform: str, **environment: str) -> subprocess.CompletedProcess:
    """jax's first devices under a platform's flags; XLA refuses to begin with an unknown one."""
    return subprocess.run(
        [sys.executable, "-c", "import jax; print(jax.devices()[0].platform)"],
        env={**os.environ, "XLA_FLAGS": "", **flags.environment(platform, {}), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("platform", ["gpu", "cpu"])
def test_xla_knows_them(platform):
    done = started(platform, JAX_PLATFORMS="cpu")
    assert done.returncode == 0 and done.stdout.strip() == "cpu", done.stderr


def test_xla_refuses_what_it_does_not_know():
    done = started("gpu", JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_gpu_no_such_flag=1")
    assert done.returncode != 0 and "no_such_flag" in done.stderr


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu (extra `plan`)")
def test_libtpu_knows_them():
    code = "from jax.experimental import topologies as t; "
    code += "print(len(t.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices))"
    tpu = {**flags.environment("tpu", {}), "TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **tpu}, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.split() == ["4"], done.stderr


def test_what_is_set_already_wins():
    scheduler = "--xla_gpu_enable_latency_hiding_scheduler"
    given = f"{scheduler}=false --xla_dump_to=/tmp/x"
    found = flags.environment("gpu", {"XLA_FLAGS": given})["XLA_FLAGS"].split()
    assert [f for f in found if f.startswith(scheduler)] == [f"{scheduler}=false"]
    assert "--xla_dump_to=/tmp/x" in found
    share = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    assert flags.environment("gpu", {share: ".5"})[share] == ".5"


def test_no_flag_has_two_homes():
    """What every process of a machine needs stands in the table, one config's wishes in it."""
    ours = {
        name.lstrip("-") for table in flags.TABLE.values() for f in table.values() for name, _ in f
    }
    checked = 0
    for file in sorted(CONFIGS.glob("*.py")):
        if "def get_config(" in file.read_text() and file.stem not in ("finetune", "demo_eval"):
            compiler = config_lib.load(str(file)).compiler
            for platform, options in vars(compiler).items():
                assert not ours & set(options), f"{file.name}: config.compiler.{platform}"
                checked += len(options)
    assert checked and "xla_gpu_enable_latency_hiding_scheduler" in ours


def test_a_shell_takes_them(capsys):
    assert flags.main(["tpu"]) == 0
    script = capsys.readouterr().out + 'echo "$LIBTPU_INIT_ARGS"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env={})
    assert done.stdout.split() == [f"{f}={v}" for f, v in flags.TABLE["tpu"]["LIBTPU_INIT_ARGS"]]
    assert flags.main(["abacus"]) == 2
