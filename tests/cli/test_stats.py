"""`vla data stats`, and training that names what it wrote."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.cli import test_bad_input as bad
from tests.data import conftest as tiny
from vla_jax.cli import main as cli
from vla_jax.data import statistics_file

MAIN = "import sys; from vla_jax.cli.main import main; sys.exit(main())"


@pytest.fixture
def config(tmp_path):
    """A config over 8 native episodes, as the word of --config."""
    data = tmp_path / "arm_data" / "1.0.0"
    tiny.write_folder(data, [tiny.episode(i) for i in range(8)])
    (tmp_path / "native.py").write_text(bad.NATIVE)
    (tmp_path / "body.py").write_text(bad.ARM)
    return f"{tmp_path}/native.py:data={data},body={tmp_path}/body.py"


def run(capsys, *words):
    """(exit code, stdout, stderr) of a verb."""
    capsys.readouterr()
    code = cli.main(list(words))
    return code, *capsys.readouterr()


def test_a_finished_file_is_what_training_uses(config, tmp_path, capsys):
    out = str(tmp_path / "stats.json")
    verb = ("data", "stats", "--config", config)
    clipped = ("--config.normalizer.clip=1.0", "--config.normalizer.modes=(('*', 'zscore'),)")
    code, table, _ = run(capsys, *verb, "--out", out, *clipped)
    assert code == 0
    summary = json.loads(table.splitlines()[-1])
    assert summary["keys"] == ["arm_data"] and summary["rank_error"] == 0
    assert summary["content"] == statistics_file.read(out)[1]
    assert all(word in table for word in ("q01", "clipped", "not normalized", "quantiles exact"))
    assert summary["clipped"]["arm_data action"] > 0
    train = ("train", "--config", config, "--dry-run")
    code, whole, _ = run(capsys, *train)
    assert code == 0
    code, named, _ = run(capsys, *train, f"--config.normalizer.stats={out}")
    assert code == 0 and named.splitlines()[-1] == whole.splitlines()[-1]
    assert "statistics computed from the training episodes\narm_data action" in whole
    assert f"statistics of {out}, content {summary['content'][:16]}\narm_data action" in named
    reports = [t.split("\narm_data action", 1)[1].split("\n\n")[0] for t in (whole, named)]
    assert reports[0] == reports[1] and "arm_data proprio/hand: " in reports[0]
    code, _, error = run(
        capsys, *train, f"--config.normalizer.stats=('{out}',)", "--config.streams.robot.window=2"
    )
    assert code == 0, error
    holdout = "--config.streams.robot.mixture.arm.source.holdout=0.5"
    code, _, error = run(capsys, *train, f"--config.normalizer.stats={out}", holdout)
    assert code == 2 and "this config reads" in error and "vla data stats" in error
    code, _, error = run(capsys, *train, "--config.normalizer.stats=recompote")
    assert code == 2 and "no file 'recompote'; expected 'recompute'" in error


def test_many_rows_are_sketched_and_training_asks_for_the_file(
    config, tmp_path, capsys, monkeypatch
):
    out = str(tmp_path / "stats.json")
    verb = ("data", "stats", "--config", config, "--exact-rows", "10")
    code, table, _ = run(capsys, *verb, "--out", out)
    assert code == 0 and "sketched, rank error 0.07" in table
    assert 0 < json.loads(table.splitlines()[-1])["rank_error"] < 0.001
    code, _, error = run(capsys, *verb, "--sketch-size", "200")
    assert code == 2 and "got 200, expected 4000" in error
    from vla_jax.data import statistics

    monkeypatch.setattr(statistics.measure, "__kwdefaults__", {"exact_rows": 10, "sketch": None})
    train = ("train", "--config", config, "--dry-run")
    code, _, error = run(capsys, *train)
    assert code == 2 and "rows, more than the 10" in error and "vla data stats" in error
    assert run(capsys, *train, f"--config.normalizer.stats={out}")[0] == 0


@pytest.mark.slow
def test_killed_at_any_moment_the_rerun_succeeds(config, tmp_path):
    """SIGKILL after growing delays: before, while and after the file is written."""
    out = tmp_path / "stats.json"
    verb = [sys.executable, "-c", MAIN, "data", "stats", "--config", config, "--out", str(out)]
    begin = time.monotonic()
    subprocess.run(verb, check=True, capture_output=True)
    took, whole = time.monotonic() - begin, out.read_bytes()
    out.unlink()
    for share in (0.5, 0.9, 0.97, 1.0):
        with subprocess.Popen(verb, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            time.sleep(took * share)
            os.kill(child.pid, signal.SIGKILL)
        assert not out.exists() or out.read_bytes() == whole
    subprocess.run(verb, check=True, capture_output=True)
    assert out.read_bytes() == whole
    leftovers = [p.name for p in tmp_path.iterdir() if "stats.json" in p.name and p != out]
    assert all(name.startswith(".stats.json.partial-") for name in leftovers)
