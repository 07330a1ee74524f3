"""The demo's tables are commands that the verbs accept, and its runner skips, stops and resumes."""

import json
import pathlib
import sys

import pytest

from tools import demo
from vla_jax import config
from vla_jax.cli import main as cli

TABLES = {"demo": demo.DEMO, "arms": demo.ARMS}


@pytest.fixture(params=TABLES)
def table(request):
    return demo.stages(TABLES[request.param], split=1, seed=3, out="runs/x", cores=2)


def test_every_command_parses(table, monkeypatch):
    for stage in table:
        seen = []
        verb = next(v for v in (" ".join(stage.words[:2]), stage.words[0]) if v in cli.VERBS)
        arguments = cli.parser_of(verb).parse_args(stage.words[len(verb.split()) :])
        seen.append(arguments)
        assert callable(arguments.run)


def test_every_stage_reads_what_an_earlier_one_makes(table):
    made = {f"runs/x/{stage.makes}" for stage in table}
    assert len(made) == len({stage.name for stage in table}) == len(table)
    for i, stage in enumerate(table):
        before = {f"runs/x/{earlier.makes}" for earlier in table[:i]}
        for word in stage.words:
            _, _, pretrain = word.partition("pretrain=")
            assert not pretrain or pretrain in before


def test_every_checkpoint_of_the_evaluation_is_made(table):
    made = {f"runs/x/{stage.makes}" for stage in table}
    (evaluation,) = (stage for stage in table if stage.name == "evaluation")
    path, _, arg = evaluation.words[2].partition(":")
    from vla_jax import plugin
    from vla_jax.evals import rollouts

    tree = plugin.load_attribute(demo.ROOT / path, "get_config")(arg)
    parsed = config.parse(rollouts.EvalConfig, tree)
    assert {arm.checkpoint for arm in parsed.arms.values() if arm.checkpoint} <= made
    assert parsed.split == 1 and parsed.seed_base == rollouts.REPORT_SEEDS


def write(path, text="x"):
    return f"import pathlib; pathlib.Path({str(path)!r}).write_text({text!r})"


@pytest.fixture
def python_stages(monkeypatch):
    """Stages whose words are a line of Python."""
    monkeypatch.setattr(demo, "_command", lambda stage: [sys.executable, "-c", stage.words[0]])


def test_stops_at_a_failure_and_resumes(tmp_path: pathlib.Path, python_stages, capsys):
    first = demo.Stage("first", "a", (write(tmp_path / "a"),))
    broken = demo.Stage("second", "b", ("raise SystemExit(7)",))
    assert demo.run([first, broken], demo.Ledger(tmp_path, False, {}), tmp_path, 1) == 7
    assert "second failed with exit code 7" in capsys.readouterr().err
    ledger = json.loads((tmp_path / "stages.json").read_text())
    assert list(ledger["seconds"]) == ["first"]

    (tmp_path / "a").write_text("kept")
    (tmp_path / "b").write_text("half a training")
    mended = demo.Stage("second", "b", (write(tmp_path / "c"),))
    assert demo.run([first, mended], demo.Ledger(tmp_path, True, {}), tmp_path, 1) == 0
    assert (tmp_path / "a").read_text() == "kept"  # finished under the same command: skipped
    assert not (tmp_path / "b").exists()  # another command: begun anew


def test_an_interrupted_stage_keeps_its_folder(tmp_path, python_stages):
    stage = demo.Stage("first", "a", ("pass",))
    later = demo.Stage("second", "b", ("pass",))
    demo.Ledger(tmp_path, False, {}).note(stage)
    for name in "ab":
        (tmp_path / name).write_text("half")
    assert demo.run([stage, later], demo.Ledger(tmp_path, True, {}), tmp_path, 1) == 0
    assert (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_memory_counts_children():
    assert demo.Memory().sample() > 10


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(SystemExit):
        demo.main(["--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
