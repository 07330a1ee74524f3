"""Three kills of a training on two processes, and a host without power; 20 are run by hand."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def run(fixtures_dir, *words) -> dict:
    """The last line on stdout, after an exit with 0."""
    command = [sys.executable, str(ROOT / "tools/crash_test.py"), *map(str, words)]
    command += ["--data", str(fixtures_dir / "bridge_dataset/1.0.0")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_three_kills(fixtures_dir, tmp_path):
    found = run(fixtures_dir, "--seed", 1, "--kills", 3, "--workdir", tmp_path)
    assert (found["kills"], found["unreadable"]) == (3, 0)
    assert 1 <= found["in_saves"] <= 2 and found["restores"] == 2  # all after the first
    assert found["bitwise_same_mesh"] and found["order_equal"]
    assert found["max_rel_loss_diff"] <= 1e-5
    assert 0 < found["max_steps_lost"] <= found["save_every"] == 5
    # The verdict can be had from the files alone, and could have been another.
    lines = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("undisturbed", "killed", "elastic")
    }
    whole = {line["train_step"]: line for line in lines["undisturbed"]}
    assert sorted(whole) == list(range(1, found["train_steps"] + 1))
    assert len({line["loss_hex"] for line in whole.values()}) > len(whole) / 2
    assert len({row for line in whole.values() for row in line["rows"]}) == 8 * len(whole)
    for line in lines["killed"]:
        assert line["loss_hex"] == whole[line["train_step"]]["loss_hex"]
        assert line["rows"] == whole[line["train_step"]]["rows"]
    assert lines["elastic"] and len(lines["killed"]) > len(whole)  # some were done twice
    # Again: all is done, so that it only says so.
    assert run(fixtures_dir, "--seed", 1, "--kills", 3, "--workdir", tmp_path) == found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_survivors_of_a_dead_host(fixtures_dir, tmp_path):
    found = run(fixtures_dir, "--kill-host", "--workdir", tmp_path)
    assert found["named"] and found["detected_s"] <= 60 and set(found["exit_codes"]) == {76}
