"""A follower on a run's folder that is written, and cleared, by somebody else."""

import json
import pathlib
import shutil

import pytest

from vla_jax import plugin
from vla_jax.evals import follow

SETTINGS = dict(sets=dict(A=2), split=0)


class Run:
    """A run's folder as a follower sees it: complete saves of a run of four train_steps."""

    def __init__(self, root: pathlib.Path, steps: int = 4):
        self.root, self.steps = root, steps

    def save(self, step: int) -> None:
        made = self.root / "checkpoints" / f"{step}.tmp"  # as Orbax does: another name at first
        for name in ("params/a", "params/deep/b", "optimizer/c"):
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_text(f"{step} {name}")
        (made / "meta").mkdir()
        about = dict(format_version=1, config=dict(steps=self.steps))
        (made / "meta" / "metadata").write_text(json.dumps(about))
        made.rename(made.with_suffix(""))

    def delete(self, step: int) -> None:
        shutil.rmtree(self.root / "checkpoints" / str(step))

    def files(self) -> dict:
        found = self.root.rglob("*")
        return {path: path.stat().st_mtime_ns for path in found if path.is_file()}


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path / "run")
    made.save(1)
    return made


def lines(out) -> list[dict]:
    return [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]


def followed(run, out, score, **arguments):
    given = dict(settings=SETTINGS, poll=0.01, say=lambda line: None) | arguments
    return follow.follow(str(run.root), str(out), score, **given)


def value(checkpoint, out) -> dict:
    step, _, name = (checkpoint / "params" / "deep" / "b").read_text().partition(" ")
    assert name == "params/deep/b" and not (checkpoint / "optimizer").exists()
    return {"value": int(step) ** 2}


def test_each_checkpoint_is_scored_as_it_appears(run, tmp_path):
    said = []

    def score(checkpoint, out):
        found = value(checkpoint, out)
        step = int(checkpoint.name)
        if step < 4:
            run.save(step + 1)  # the run goes on
        return found

    summary = followed(run, tmp_path / "out", score, say=said.append)
    assert summary == {"scored": [1, 2, 3, 4], "missed": []}
    found = lines(tmp_path / "out")
    assert [(line["step"], line["value"]) for line in found] == [(1, 1), (2, 4), (3, 9), (4, 16)]
    assert [json.loads(line) for line in said] == found


def test_nothing_is_scored_twice_and_nothing_written_to_the_run(run, tmp_path):
    out, seen = tmp_path / "out", []

    def score(checkpoint, _):
        seen.append(int(checkpoint.name))
        return {}

    run.save(2)
    before = run.files()
    assert followed(run, out, score, until=2) == {"scored": [1, 2], "missed": []}
    assert run.files() == before
    run.save(3)
    run.save(4)
    run.delete(1)
    assert followed(run, out, score)["scored"] == [1, 2, 3, 4]
    assert followed(run, out, score)["scored"] == [1, 2, 3, 4]
    assert seen == [1, 2, 3, 4] and [line["step"] for line in lines(out)] == [1, 2, 3, 4]


@pytest.mark.parametrize("when", ["params/a", "params/deep/b", "meta/metadata"])
def test_a_checkpoint_that_is_deleted_while_it_is_read(run, tmp_path, monkeypatch, when):
    run.save(4)
    original = follow.storage.read

    def deleting(path):
        data = original(path)
        if str(path) == str(run.root / "checkpoints" / "1" / when):
            run.delete(1)
        return data

    monkeypatch.setattr(follow.storage, "read", deleting)
    summary = followed(run, tmp_path / "out", value)
    assert summary == {"scored": [4], "missed": [1]}
    assert [("missed" in line, line["step"]) for line in lines(tmp_path / "out")] == [
        (True, 1),
        (False, 4),
    ]


def test_what_is_wrong_with_a_checkpoint_that_stays_is_raised(run, tmp_path):
    def damaged(checkpoint, out):
        raise plugin.UserError("damaged")

    with pytest.raises(plugin.UserError, match="damaged"):
        followed(run, tmp_path / "out", damaged)
    assert not (tmp_path / "out" / "scores.jsonl").exists()


def test_an_error_of_the_score_is_no_deletion(run, tmp_path):
    run.save(4)

    def full(checkpoint, out):
        run.delete(1)  # by retention, while the copy is scored
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        followed(run, tmp_path / "out", full)
    assert not (tmp_path / "out" / "scores.jsonl").exists()


def test_the_end_comes_though_until_lies_beyond_it(run, tmp_path):
    run.save(4)
    assert followed(run, tmp_path / "out", value, until=10)["scored"] == [1, 4]


def test_a_run_that_is_not_there(run, tmp_path):
    wrong = run.root.parent / (run.root.name + "s")
    with pytest.raises(plugin.UserError, match=f"did you mean '{run.root.name}'"):
        follow.follow(str(wrong), str(tmp_path / "out"), value, settings=SETTINGS)


def test_a_folder_of_other_settings_or_of_the_run_is_refused(run, tmp_path):
    followed(run, tmp_path / "out", value, until=1)
    with pytest.raises(plugin.UserError, match="other settings of sets"):
        followed(run, tmp_path / "out", value, settings=dict(SETTINGS, sets=dict(B=1)))
    for inside in (run.root, run.root / "scores"):
        with pytest.raises(plugin.UserError, match="run's folder"):
            followed(run, inside, value)
    assert not (run.root / "scores").exists()


@pytest.mark.sim
def test_the_verb_scores_a_policy(tmp_path, capsys):
    pytest.importorskip("mujoco")
    from tests.evals import tiny_cards
    from vla_jax.cli import main

    folder = tiny_cards.save(tmp_path / "run")
    words = ["--sets", "A=1", "--workers", "1", "--config.env.image_size=16", "--until", "1"]
    verb = ["eval", "--follow", folder, "--out", str(tmp_path / "out"), *words]
    assert main.main(verb) == 0
    line, last = map(json.loads, capsys.readouterr().out.strip().splitlines())
    assert line["step"] == 1 and line["sets"]["A"]["run"]["episodes"] == 1
    assert last["scored"] == [1] and last["missed"] == []
    assert (tmp_path / "out" / "1" / "episodes.jsonl").exists()
    assert main.main(verb) == 0  # nothing left to do
    assert len(capsys.readouterr().out.strip().splitlines()) == 1
    assert main.main(verb[:3]) == 2 and "--out is missing" in capsys.readouterr().err
