"""`vla profile`: a trace of some train_steps, and nothing else."""

import gzip
import json

import pytest

from tests.cli.test_train import SMALL
from vla_jax.cli import main as cli


def test_a_trace_of_train_steps(fixtures_dir, tmp_path, capsys):
    data = fixtures_dir / "bridge_dataset" / "1.0.0"
    out = tmp_path / "trace"
    words = ["profile", "--config", f"configs/debug.py:data={data}", *SMALL, "--out", str(out)]
    assert cli.main([*words, "--steps", "2"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out.splitlines()[-1])
    assert found["train_steps"] == 2 and found["seconds_per_step"] > 0
    assert any(name.endswith(".xplane.pb") for name in found["files"])
    (readable,) = (out / name for name in found["files"] if name.endswith("perfetto_trace.json.gz"))
    assert len(json.loads(gzip.decompress(readable.read_bytes()))["traceEvents"]) > 100
    assert "ui.perfetto.dev" in said.err
    assert not (out / "checkpoints").exists() and not (out / "metrics.jsonl").exists()
    assert cli.main([*words, "--steps", "2"]) == 2
    assert "holds something already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [(["--out", "gs://b/x"], "--out: got gs://b/x, expected a local path")],
)
def test_a_mistake_is_one_message(words, message, capsys):
    assert cli.main(["profile", "--config", "configs/debug.py", *words]) == 2
    assert message in capsys.readouterr().err
