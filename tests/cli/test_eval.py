"""`vla eval` and `vla report`, from a checkpoint's folder to the page; what they refuse."""

import html.parser
import json
import re

import numpy as np
import pytest

from vla_jax.cli import main as cli

KEYS = {
    *("set", "arm", "seed", "target", "cards", "first_card_touched", "first_touch"),
    *("success", "steps"),
}
REPORT = ["sets", "pointing", "seconds", "peak_pss_mb", "seeds", "split", "versions"]
# Attributes by which a page fetches something.
FETCHING = ("src", "href", "srcset", "data", "poster", "action", "background", "xlink:href")


def last_line(capsys) -> dict:
    """The JSON object that a verb prints last."""
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny policy that was never trained; the report's main arm, by its folder's name."""
    pytest.importorskip("mujoco")
    from tests.evals import tiny_cards  # not above: jax comes after tests/conftest.py

    return tiny_cards.save(tmp_path_factory.mktemp("cards") / "cofinetuned")


def numbers_of(records, sets) -> dict:
    """What report.json should say of them."""
    found = {}
    for name in sets:
        mine = [record for record in records if record["set"] == name]
        found[name] = {
            "cofinetuned": {
                "successes": sum(record["success"] for record in mine),
                "first_touch": sum(record["first_touch"] for record in mine),
                "episodes": len(mine),
            }
        }
    return found


class Fetched(html.parser.HTMLParser):
    """`.found`: what a browser would fetch for a page."""

    def __init__(self, text):
        super().__init__()
        self.found, self.pictures = [], 0
        self.feed(text)
        css = re.findall(r"url\(([^)]*)\)|@import([^;]*)", text)
        self.found += [place for pair in css for place in pair if place]

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in FETCHING:
                self.found.append(value)
        self.pictures += tag == "img"


@pytest.mark.sim
def test_from_a_checkpoint_to_the_report(checkpoint, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["--sets", "A=2,B=1", "--workers", "1", "--record", "1", "--config.env.image_size=16"]
    assert cli.main(["eval", "--checkpoint", checkpoint, "--out", str(run), *words]) == 0
    summary = last_line(capsys)
    records = [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]
    assert [record["set"] for record in records] == ["A", "A", "B"]
    for record in records:
        assert set(record) == KEYS and record["arm"] == "cofinetuned"
        assert record["target"] in record["cards"] and len(set(record["cards"])) == 4
        assert record["first_card_touched"] in (None, *record["cards"])
        assert record["first_touch"] == (record["first_card_touched"] == record["target"])
        assert record["first_touch"] or not record["success"]
        assert 1 <= record["steps"] <= 150
    assert summary["sets"] == numbers_of(records, "AB") and summary["episodes"] == 3
    with np.load(run / "rollouts.npz") as films:  # run again, the episode is the same
        assert json.loads(str(films["about"])) == [records[0]]

    assert cli.main(["report", "--run", str(run)]) == 0
    said = last_line(capsys)
    assert said["json"] == str(run / "report.json") and said["html"] == str(run / "report.html")
    report = json.loads((run / "report.json").read_text())
    assert list(report) == REPORT
    assert report["sets"] == summary["sets"] and report["split"] == 0
    pointing = json.loads((run / "pointing.json").read_text())["scenes"]["cofinetuned"]
    assert {name: counts["episodes"] for name, counts in pointing.items()} == {"A": 2, "B": 1}
    right = {name: counts["right"] / counts["episodes"] for name, counts in pointing.items()}
    assert report["pointing"] == {**right, "C": None}
    seeds = {name: [r["seed"] for r in records if r["set"] == name] for name in "AB"}
    assert report["seeds"]["scenes"] == {n: [min(s), max(s)] for n, s in seeds.items()}
    assert max(map(max, seeds.values())) < 500_000  # not the report's own scenes
    assert {"jax", "mujoco", "numpy"} <= set(report["versions"])

    page = Fetched((run / "report.html").read_text())
    assert page.pictures >= 1  # the film
    elsewhere = [place for place in page.found if not place.startswith(("data:", "#"))]
    assert page.found and not elsewhere


@pytest.fixture
def refused(capsys):
    """Runs a verb and returns its one message."""

    def run(*words):
        capsys.readouterr()
        assert cli.main([str(word) for word in words]) == 2
        said = capsys.readouterr()
        assert not said.out and "Traceback" not in said.err
        assert [line.startswith("vla ") for line in said.err.splitlines()].count(True) == 1
        assert said.err.startswith(f"vla {words[0]}: ")
        return said.err

    return run


EVAL = """
def get_config(arg=""):
    sets = dict(A=dict(targets="a", others="a"))
    return dict(split=0, sets=sets, arms=dict(x=dict(policy="expert", sets=dict({sets}=1))))
"""


@pytest.mark.sim
def test_eval_refuses_and_writes_nothing(refused, tmp_path):
    pytest.importorskip("mujoco")
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "eval.py").write_text(EVAL.format(sets="B"))
    before = sorted(tmp_path.rglob("*"))
    one = ["eval", "--checkpoint", folder]
    assert "unknown 'B_amongA', did you mean 'B_among_A'" in refused(*one, "--sets", "B_amongA=1")
    assert "--sets: got 'A=-1', expected A=EPISODES" in refused(*one, "--sets", "A=-1")
    assert "expected 1 to 10000" in refused(*one, "--sets", "A=0")
    assert "unknown 'config.wokers'" in refused(*one, "--config.wokers=3").replace("eval", "config")
    missing = refused("eval", "--checkpoint", tmp_path / "none")
    assert f"no folder {tmp_path / 'none'}" in missing and "vla train" in missing
    assert "either --config" in refused("eval", "--out", tmp_path / "out")
    config = ["eval", "--config", tmp_path / "eval.py"]
    assert "--out is missing" in refused(*config)
    assert "unknown 'B'. Known: A" in refused(*config, "--out", tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_report_refuses_and_writes_nothing(refused, tmp_path):
    assert f"no folder {tmp_path / 'none'}" in refused("report", "--run", tmp_path / "none")
    message = refused("report", "--run", tmp_path)
    assert "episodes.jsonl is missing" in message and "vla eval" in message
    (tmp_path / "episodes.jsonl").write_text("")
    assert "no episodes in it" in refused("report", "--run", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["episodes.jsonl"]
