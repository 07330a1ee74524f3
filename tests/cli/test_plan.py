"""`vla plan` as a user types it."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from vla_jax.cli import main

PROJECT = pathlib.Path(__file__).resolve().parent.parent.parent


def last_json(capfd) -> dict:
    return json.loads(capfd.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_octo_base_on_256_chips(capfd):
    words = ["plan", "--config", "configs/octo_base.py", "--topology", "cpu:256"]
    assert main.main([*words, "--config.mesh.fsdp=8"]) == 0
    sharded = last_json(capfd)
    assert sharded["devices"] == 256 and sharded["plan_rss_mb"] < 2048 and sharded["plan_s"] > 0
    assert main.main(words) == 0
    whole = last_json(capfd)
    assert whole["plan_rss_mb"] < 2048 and whole["plan_s"] > 0
    state = "parameter_bytes", "optimizer_bytes"
    assert sum(sharded[s] for s in state) < sum(whole[s] for s in state) / 7


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_says_what_a_process_takes():
    """More than 1 GB of buffers: planned, and the growth of a process that is compiled already."""
    command = [sys.executable, str(PROJECT / "benchmarks/plan.py"), "--depth", "2", "--no-pods"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["planned_mib"] > 1000 and 0.85 <= found["ratio"] <= 1.15, found
    # Any part of it left out would be seen.
    parts = found["parameters_mib"], found["temporaries_mib"]
    assert max((found["planned_mib"] - part) / found["grown_mib"] for part in parts) < 0.85


SMALL = (
    *("model.trunk.width=32", "model.trunk.depth=1", "model.trunk.mlp=32", "mesh.fsdp=2"),
    *("model.tokenizers.primary.widths=(8,8,16)", "sharding.small=64"),
)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu (extra `plan`)")
def test_libtpu_compiles_for_chips_that_are_not_there(capfd):
    words = ["plan", "--config", "configs/debug.py", *(f"--config.{word}" for word in SMALL)]
    assert main.main([*words, "--topology", "v5e:2x2"]) == 0
    tpu = last_json(capfd)
    assert (tpu["compiled_for"], tpu["devices"], tpu["chip"]) == ("tpu", 4, "v5e")
    assert "temporary_bytes" in tpu["exact"] and tpu["indicative"] == []
    assert tpu["fits"] and tpu["memory_bytes"] == 16e9 and tpu["collectives"]
    assert main.main([*words, "--topology", "cpu:4"]) == 0
    cpu = last_json(capfd)
    assert cpu["compiled_for"] == "cpu" and "temporary_bytes" in cpu["indicative"]
    for name in ("parameter_bytes", "optimizer_bytes", "batch_bytes", "train_step_flops"):
        assert tpu[name] == cpu[name] > 0
    large = "--config.streams.robot.batch_size=1000000"
    assert main.main([*words, "--topology", "v5e:2x2", large]) == 1
    refused = last_json(capfd)
    assert refused["fits"] is False and "exceeds available HBM" in refused["refusal"]
    assert refused["parameter_bytes"] == tpu["parameter_bytes"]
    assert main.main([*words, "--topology", "v5e:3x5"]) == 2
    assert "libtpu does not know it" in capfd.readouterr().err


def test_what_does_not_fit_together_is_said(capsys):
    assert main.main(["plan", "--config", "configs/octo_small.py", "--topology", "v9:4"]) == 2
    assert "Known: a100" in capsys.readouterr().err
    assert main.main(["plan", "--config", "configs/octo_smal.py", "--topology", "cpu:4"]) == 2
    assert "octo_smal" in capsys.readouterr().err


def test_memory_is_this_process_s_own_and_not_its_parent_s():
    child = "from vla_jax.cli import plan; print(plan._peak_mb())"
    parent = f"""
import subprocess, sys
held = b"x" * (600 << 20)
subprocess.run([sys.executable, "-c", {child!r}], check=True)
"""
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True)
    assert done.returncode == 0 and 5 < int(done.stdout) < 500, (done.stdout, done.stderr)
