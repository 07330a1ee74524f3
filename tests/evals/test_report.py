"""The report of a made-up run: its numbers, its sections, what it says of a missing file."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from vla_jax import plugin
from vla_jax.evals import goals, report

ARMS = {  # arm -> set -> (first touches, successes, episodes)
    "cofinetuned": {
        "A": (97, 95, 100),
        "B": (172, 165, 200),
        "C": (27, 20, 100),
        "B_among_A": (86, 83, 100),
    },
    "scratch": {"A": (88, 85, 100), "B": (26, 24, 100), "C": (24, 20, 100)},
    "blind": {"B": (25, 10, 100)},
    "expert": {"A": (40, 40, 40)},
}
TRAININGS = {"pretrain": ("vl",), "cofinetuned": ("robot", "vl"), "scratch": ("robot",)}
RULES = [["*", "readout_*", "never"], ["*", "language", "all"], ["*", "*", "past_or_now"]]


def png(path, size=(48, 24)):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)).save(path)


def episodes():
    firsts = {"A": 500_000, "B": 510_000, "B_among_A": 520_000, "C": 530_000}
    for arm, sets in ARMS.items():
        for name, (touches, successes, n) in sets.items():
            for i in range(n):
                yield {
                    "set": name,
                    "arm": arm,
                    "seed": firsts[name] + i,
                    "target": ("fox", "bee", "owl")[i % 3],
                    "cards": ["fox", "bee", "owl", "crab"],
                    "first_card_touched": None if i % 7 == 6 else "bee",
                    "first_touch": i < touches,
                    "success": i < successes,
                    "steps": 40 + i % 50,
                }


def films(count):
    rng, arrays, records = np.random.default_rng(0), {}, []
    for i in range(count):
        arrays[f"{i}/frames"] = rng.integers(0, 255, (3, 96, 96, 3), np.uint8)
        arrays[f"{i}/probs"] = rng.dirichlet(np.full(64, 0.05), 3).reshape(3, 8, 8)
        arrays[f"{i}/points"] = rng.random((3, 2)).astype(np.float32)
        row = dict(target="fox", success=i % 2 == 0, first_touch=False, steps=44, seed=i)
        records.append(row | {"first_card_touched": None, "cards": ["fox", "bee", "owl", "crab"]})
    return arrays | {"about": np.array(json.dumps(records))}


def config():
    sets = {name: {} for name in ("A", "B", "C", "B_among_A")}
    web = ["twemoji", "fluent_flat", "fluent_3d"]
    record = dict(record=6, record_arm="cofinetuned", record_set="B")
    return dict(split=0, sets=sets, root=None, archive="google", web=web, **record)


@pytest.fixture
def run(tmp_path):
    """A folder as the whole demo leaves it."""
    folder = tmp_path / "demo"
    folder.mkdir()
    lines = [json.dumps(row) for row in episodes()]
    (folder / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    firsts = {"A": 500_000, "B": 510_000, "B_among_A": 520_000, "C": 530_000}
    about = dict(config=config(), first_seeds=firsts, versions={"jax": "0.10.2"})
    (folder / "eval.json").write_text(json.dumps(about))
    right = {s: dict(right=k, episodes=100) for s, k in dict(A=98, B=85, C=26).items()}
    pointing = {
        "scenes": {"cofinetuned": right, "pretrain": right},
        "collages": {"pretrain": {"A": dict(right=90, episodes=100)}},
    }
    (folder / "pointing.json").write_text(json.dumps(pointing))
    np.savez(folder / "rollouts.npz", **films(6))
    stages = {"demonstrations": dict(command="data collect --out x", seconds=80.0)}
    for i, (name, streams) in enumerate(TRAININGS.items()):
        training(folder / name, streams)
        stages[name] = dict(command=f"train --workdir {name}", seconds=200.0 + i)
    seconds = {name: stage["seconds"] for name, stage in stages.items()}
    ledger = dict(split=0, seed=3, seconds=seconds, peak_pss_mb=3210.5, stages=stages)
    (folder / "stages.json").write_text(json.dumps(ledger))
    return folder


def training(folder, streams):
    folder.mkdir()
    rng = np.random.default_rng(len(folder.name))
    rows = []
    for step in range(50, 501, 50):
        row = {"step": step, "loss": 4 * 0.995**step, "lr": 1e-3, "seconds/compile": 3.0}
        row |= {"gradient_norm/trunk": 1.0, "samples_per_second/robot": 50.0}
        for stream in streams:
            for name in ("pointing", "region_text") if stream == "vl" else ("action", "pointing"):
                row[f"{stream}/{name}"] = 3 * 0.99**step + 0.1 * rng.random()
        rows.append(row)
        if step % 250 == 0:
            rows.append({"step": step} | {f"validation/{k}": v for k, v in row.items() if "/" in k})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    of_streams = {s: dict(groups=["language", "primary"], readouts=["point"]) for s in streams}
    about = dict(model=dict(rules=RULES), streams=of_streams)
    (folder / "config.json").write_text(json.dumps(about))
    for stream in streams:
        png(folder / f"batch_{stream}.png")
        png(folder / f"visibility_{stream}.png", (64, 64))


def test_the_whole_run(run):
    summary = report.build(run)
    numbers = json.loads((run / "report.json").read_text())
    assert list(numbers) == [
        "sets",
        "pointing",
        "seconds",
        "peak_pss_mb",
        "seeds",
        "split",
        "versions",
    ]
    counts = {"successes": 165, "first_touch": 172, "episodes": 200}
    assert numbers["sets"]["B"]["cofinetuned"] == counts
    assert list(numbers["sets"]) == ["A", "B", "C", "B_among_A"]
    assert numbers["pointing"] == {"A": 0.98, "B": 0.85, "C": 0.26}
    assert numbers["seconds"]["pretrain"] == 200.0 and numbers["peak_pss_mb"] == 3210.5
    assert numbers["seeds"]["training"] == 3 and numbers["seeds"]["scenes"]["A"] == [
        500_000,
        500_099,
    ]
    assert summary["missed"] == ["blind on B: first touch ≤ 20%"] and not summary["not_measured"]

    html = (run / "report.html").read_text()
    sections = re.findall(r'<section id="(\w+)">', html)
    assert sections == [
        *("goals", "success", "films", "pointing", "limits"),
        *("curves", "batches", "visibility", "time"),
    ]
    assert html.index(">missed<") < html.index(">reached<")
    assert html.count("data:image/webp") == 6
    # Curves are of what is learned: speed and norms are for a run's writers.
    assert ">loss<" in html and ">robot/action<" in html
    assert not re.search(r">(gradient_norm|seconds|samples_per_second)/", html)
    assert "stream “robot”" in html and "stream “vl”" in html
    assert not re.search(r'(src|href)="(?!data:|#)', html), "the page must need nothing else"
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_films_move(run):
    report.build(run)
    html = (run / "report.html").read_text()
    import base64

    webp = base64.b64decode(re.search(r"data:image/webp;base64,([^\"]+)", html)[1])
    assert Image.open(io.BytesIO(webp)).n_frames == 3


@pytest.mark.parametrize(
    "name, maker",
    [
        ("episodes.jsonl", "vla eval"),
        ("eval.json", "vla eval"),
        ("pointing.json", "vla eval"),
        ("rollouts.npz", "vla eval"),
        ("scratch/metrics.jsonl", "vla train"),
        ("scratch/batch_robot.png", "vla train"),
    ],
)
def test_a_missing_file_is_named(run, name, maker):
    (run / name).unlink()
    with pytest.raises(plugin.UserError, match=f"{name.split('_')[0]}.*missing.*{maker}"):
        report.build(run)
    assert not (run / "report.html").exists() and not (run / "report.json").exists()


def test_broken_files_are_named(run):
    with pytest.raises(plugin.UserError, match="no folder"):
        report.build(run / "nowhere")
    (run / "rollouts.npz").write_bytes(b"PK half a file")
    with pytest.raises(plugin.UserError, match="rollouts.npz"):
        report.build(run)
    (run / "episodes.jsonl").write_text('{"set": "A"')
    with pytest.raises(plugin.UserError, match="is no JSON"):
        report.build(run)


def test_an_evaluation_by_hand_needs_no_trainings(run):
    (run / "stages.json").unlink()
    about = json.loads((run / "eval.json").read_text())
    about["config"]["record"] = 0
    (run / "eval.json").write_text(json.dumps(about))
    (run / "rollouts.npz").unlink()
    for path in run.glob("*/metrics.jsonl"):
        path.unlink()
    report.build(run)
    html = (run / "report.html").read_text()
    assert "an evaluation only" in html and 'id="curves"' not in html


def test_goals_need_enough_episodes_and_every_arm():
    few = {"B": {"cofinetuned": {"successes": 50, "first_touch": 50, "episodes": 50}}}
    assert {verdict.status for verdict in goals.judge(few, 0)} == {goals.UNMEASURED}
    enough = {"B": {"cofinetuned": {"successes": 130, "first_touch": 150, "episodes": 200}}}
    status = {v.goal.text: v.status for v in goals.judge(enough, 0)}
    assert status["cofinetuned on B: first touch ≥ 80%"] == goals.MISSED
    assert status["cofinetuned on B: success ≥ 70%"] == goals.MISSED
    status = {v.goal.text: v.status for v in goals.judge(enough, 1)}
    assert status["cofinetuned on B: first touch ≥ 70%"] == goals.REACHED
    controls = {"B": {"same_artist": {"successes": 9, "first_touch": 95, "episodes": 100}}}
    status = {v.goal.text: v.status for v in goals.judge(controls, 0)}
    assert status["same_artist on B: first touch ≥ 90%"] == goals.REACHED
    assert status["web_without_B on A: first touch ≥ 85%"] == goals.UNMEASURED
