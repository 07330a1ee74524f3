"""A trace of a debug-size config: what it says of operations, and the arithmetic of reading one."""

import dataclasses
import json

import jax
import pytest

from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.cli import main
from vla_jax.train import agree, profiling, smoke


@pytest.fixture(scope="module")
def config():
    small = smoke.shrink(config_lib.load("configs/octo_small.py"), {})
    # shrink's rows divide over one device; here the mesh has all eight.
    streams = {
        name: dataclasses.replace(stream, batch_size=8) for name, stream in small.streams.items()
    }
    return dataclasses.replace(small, streams=streams)


@pytest.mark.slow
@pytest.mark.mesh
def test_a_trace_says_what_took_the_time(config, tmp_path):
    found = profiling.capture(config, str(tmp_path / "trace"), count=2, warmup=1)
    assert found["train_steps"] == 2 and found["devices"].startswith("8 x")
    assert 0 < found["busy_s"] and 0 < found["step_s"]
    assert found["trace"].startswith(str(tmp_path)) and found["trace"].endswith(".xplane.pb")
    for name in ("kinds", "parts"):
        assert sum(found[name].values()) == pytest.approx(found["busy_s"])
    assert {"forward trunk", "backward trunk", "update"} <= set(found["parts"])
    seconds = [row["s"] for row in found["operations"]]
    assert len(seconds) == 20 and seconds == sorted(seconds, reverse=True) and seconds[-1] > 0
    # Matmuls are what a transformer does: they are in it, with the place that they came from.
    dots = [row for row in found["operations"] if "dot" in row["where"] + row["kind"]]
    assert dots and all(row["kind"] not in ("while", "call") for row in found["operations"])
    said = profiling.text(found, "FOLDER", top=3)
    assert "xprof --logdir FOLDER" in said and "backward trunk" in said
    json.dumps(found)

    again = profiling.capture(config, str(tmp_path / "trace"), count=1, warmup=1)
    assert again["trace"] != found["trace"]  # beside the first one


def test_own_times_leave_out_what_runs_inside():
    events = [(0.0, 100.0, "while"), (10.0, 40.0, "a"), (20.0, 30.0, "b"), (50.0, 60.0, "a")]
    events.append((100.0, 120.0, "c"))
    found = [(name, seconds * 1e9) for name, seconds in profiling._own_times(events)]
    assert [name for name, _ in found] == ["while", "a", "b", "a", "c"]
    assert [own for _, own in found] == pytest.approx([60.0, 20.0, 10.0, 10.0, 20.0])


INSIDE = "heads_action.tokens/vmap(heads_action._draw)/add"


@pytest.mark.parametrize(
    "path, expected",
    [
        ("jit(train_step)/jvp(VLA)/VLA._forward/trunk/while/body/mul", "forward trunk"),
        ("jit(train_step)/transpose(jvp(VLA))/heads_action/dot", "backward heads_action"),
        (f"jit(train_step)/jvp(VLA)/{INSIDE}", "forward heads_action"),
        ("jit(train_step)/jvp(VLA)/add", "forward"),
        ("jit(train_step)/mul", "update"),
        ("", "unknown"),
    ],
)
def test_parts(path, expected):
    assert profiling.part(path) == expected


def test_the_program_says_where_operations_come_from():
    @jax.jit
    def f(x):
        with jax.named_scope("here"):
            return (x @ x).sum()

    text = f.lower(jax.ShapeDtypeStruct((8, 8), "float32")).compile().as_text()
    dots = [path for kind, path in profiling.sources(text).values() if kind == "dot"]
    assert dots == ["jit(f)/here/dot_general"]


def test_processes_that_differ_are_refused_before_a_trace(tmp_path, monkeypatch, capsys):
    def differ(config, workdir):
        raise plugin.UserError(f"the processes differ: {config.steps}, {workdir}")

    monkeypatch.setattr(agree, "on_start", differ)
    monkeypatch.setattr(profiling, "capture", pytest.fail)
    words = ["profile", "--config", "configs/debug.py", "--config.steps=7"]
    assert main.main([*words, "--out", str(tmp_path / "trace")]) == 2
    assert "the processes differ: 7, None" in capsys.readouterr().err


def test_mistakes_are_said(config, tmp_path, capsys):
    with pytest.raises(plugin.UserError, match="expected 1"):
        profiling.capture(config, str(tmp_path / "t"), count=0)
    assert not (tmp_path / "t").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(plugin.UserError, match="--out"):
        profiling.capture(config, str(tmp_path / "file"))
    assert main.main(["profile", "--config", "configs/octo_smal.py"]) == 2
    assert "octo_smal" in capsys.readouterr().err
