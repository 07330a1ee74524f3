"""benchmarks/data.py: its keys, and that memory stays flat."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

PROJECT = pathlib.Path(__file__).parents[2]
KEYS = {
    "samples_per_s_equal_quality",
    "samples_per_s_cached",
    "samples_per_s_cached_no_augmentation",
    "first_batch_s",
    "rss_mb",
}


def run(fixtures_dir, *arguments) -> dict:
    done = subprocess.run(
        [
            sys.executable,
            "benchmarks/data.py",
            "--data",
            fixtures_dir / "bridge_dataset",
            *arguments,
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    assert done.returncode == 0, done.stderr
    assert "leaked" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_one_line_of_json(fixtures_dir):
    found = run(fixtures_dir, "--seconds", "0.2", "--workers", "0", "--batch-size", "8")
    assert set(found) >= KEYS and all(found[key] > 0 for key in KEYS)


@pytest.mark.slow
def test_grain_takes_turns_with_ours(fixtures_dir):
    name = "samples_per_s_cached"
    words = ("--grain", "--only", name, "--seconds", "0.2", "--workers", "0", "--batch-size", "8")
    found = run(fixtures_dir, *words)
    ours, theirs = found["rounds"][f"{name}/0"], found["rounds"][f"grain_{name}/0"]
    assert len(ours) == len(theirs) == 3 and found[f"grain_{name}"] > 0
    ratios = sorted(a / b for a, b in zip(ours, theirs))
    assert found["times_grain"] == {f"{name}/0": pytest.approx(ratios[1], rel=0.02)}


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_memory_is_flat(fixtures_dir, workers):
    found = run(fixtures_dir, "--memory", "200,2000", "--batch-size", "8", "--workers", workers)
    assert abs(found["growth"]) <= 0.05, found
