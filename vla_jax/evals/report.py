"""report.html (self-contained) and report.json from what a run's folder holds.

    RUN/episodes.jsonl pointing.json eval.json rollouts.npz     from vla eval
    RUN/stages.json                                             from tools/demo.py
    RUN/TRAINING/metrics.jsonl batch_*.png visibility_*.png config.json      from vla train

With stages.json the run is a whole one: every training it names must be there. Without it (an
evaluation by hand) the report has the sections that the folder has files for, and says so.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from vla_jax import plugin, storage
from vla_jax.data import pages
from vla_jax.data.sources import _emoji
from vla_jax.evals import _figures, _films, goals, intervals, rollouts, similarity
from vla_jax.nn import visibility
from vla_jax.train.writers import jsonl

TEMPLATE = pathlib.Path(__file__).with_name("report.html.jinja")
MAIN = "cofinetuned"  # the arm that the report is about
FILMS = 6


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's folder holds, parsed; what an evaluation by hand may lack is empty."""

    folder: pathlib.PurePath
    records: list[dict]  # lines of episodes.jsonl
    pointing: dict
    about: dict  # eval.json
    stages: dict  # stages.json
    trainings: dict[str, list[dict]]  # name → lines of metrics.jsonl
    films: list[tuple[dict, dict[str, np.ndarray]]]  # (record, arrays)
    pictures: dict[str, dict[str, str]]  # batch | visibility → stream → data URL


def build(folder: str | os.PathLike) -> dict:
    """Writes both files into `folder`; {"html", "json", "reached", "missed", "not_measured"}.

    Raises UserError when a file that the report needs is missing or broken; it writes nothing then.
    """
    run = load(storage.path(folder))
    numbers = summary(run)
    verdicts = goals.judge(numbers["sets"], numbers["split"])
    html = render(run, numbers, verdicts)
    text = json.dumps(numbers, indent=1) + "\n"
    written = {name: str(run.folder / f"report.{name}") for name in ("html", "json")}
    storage.write_all({written["html"]: html, written["json"]: text})
    missed = {s: [v.goal.text for v in verdicts if v.status == s] for s in goals.STATUSES}
    return written | {status.replace(" ", "_"): found for status, found in missed.items()}


def load(folder: pathlib.PurePath) -> Run:
    """The run's files, parsed; UserError names one that is missing and what makes it."""
    if not storage.is_dir(folder):
        raise plugin.UserError(f"report: no folder {folder}; expected a run, e.g. runs/demo")
    lines = _read(folder / "episodes.jsonl", "vla eval").splitlines()
    records = [_json(folder / "episodes.jsonl", line) for line in lines]
    if not records:
        raise plugin.UserError(
            f"{folder / 'episodes.jsonl'}: no episodes in it; run vla eval again"
        )
    about = _json(folder / "eval.json", _read(folder / "eval.json", "vla eval"))
    pointing = _json(folder / "pointing.json", _read(folder / "pointing.json", "vla eval"))
    path = folder / "stages.json"
    stages = _json(path, _read(path, "tools/demo.py")) if storage.is_file(path) else {}
    films = []
    if about["config"]["record"]:
        _need(folder / "rollouts.npz", "vla eval")
        films = _films_of(folder / "rollouts.npz")
    trainings = _trainings(folder, stages)
    pictures = {k: _pictures(folder, trainings, k, bool(stages)) for k in ("batch", "visibility")}
    return Run(folder, records, pointing, about, stages, trainings, films, pictures)


def summary(run: Run) -> dict:
    """report.json: counts per set and arm, pointing, seconds, memory, seeds, split, versions."""
    config = run.about["config"]
    known = list(config["sets"])
    sets = rollouts.tally(run.records)["sets"]
    pointing = run.pointing["scenes"].get(MAIN, {})
    scenes = {}
    for name, first in run.about["first_seeds"].items():
        seeds = [r["seed"] for r in run.records if r["set"] == name]
        if seeds:
            scenes[name] = [first, max(seeds)]
    return {
        "sets": {name: sets[name] for name in known if name in sets},
        "pointing": {name: _fraction(pointing.get(name)) for name in ("A", "B", "C")},
        "seconds": run.stages.get("seconds", {}),
        "peak_pss_mb": run.stages.get("peak_pss_mb"),
        "seeds": {"training": run.stages.get("seed"), "scenes": scenes},
        "split": config["split"],
        "versions": run.about["versions"],
    }


def render(run: Run, numbers: dict, verdicts: Sequence[goals.Verdict]) -> str:
    """The page."""
    config = run.about["config"]
    return pages.render(
        TEMPLATE,
        folder=run.folder.name,
        date=datetime.date.today().isoformat(),
        split=numbers["split"],
        seed=numbers["seeds"]["training"],
        whole=bool(run.stages),
        headline=_headline(numbers["sets"]),
        verdicts=verdicts,
        sets=numbers["sets"],
        success=_figures.success(numbers["sets"], verdicts),
        curves=_figures.curves(run.trainings),
        films=[_film(record, arrays) for record, arrays in run.films[:FILMS]],
        film_arm=config["record_arm"],
        film_set=config["record_set"],
        names=by_name(run.records),
        pointing=_pointing_rows(run.pointing),
        likeness=likeness(config),
        web=config["web"],
        archive=config["archive"],
        batches=run.pictures["batch"],
        visibility=run.pictures["visibility"],
        tables=visibility_tables(run),
        times=_times(numbers["seconds"]),
        memory=numbers["peak_pss_mb"],
        seeds=numbers["seeds"]["scenes"],
        versions=numbers["versions"],
    )


def by_name(records: Sequence[Mapping], arm: str = MAIN, of_set: str = "B") -> list[dict]:
    """[{"name", "first_touch", "episodes"}] of an arm's targets, worst first."""
    counts: dict[str, list[int]] = {}
    for record in records:
        if (record["arm"], record["set"]) == (arm, of_set):
            right, total = counts.get(record["target"], (0, 0))
            counts[record["target"]] = [right + bool(record["first_touch"]), total + 1]
    order = sorted(counts, key=lambda name: (counts[name][0] / counts[name][1], name))
    return [dict(name=n, first_touch=counts[n][0], episodes=counts[n][1]) for n in order]


def likeness(config: Mapping) -> dict[str, float]:
    """How often an untrained nearest neighbour finds the right one of four B cards, in percent."""
    root = pathlib.Path(config["root"]) if config["root"] else rollouts.ASSETS
    names = _emoji.split_names(_emoji.card_names(root), config["split"]).b

    def drawn(archive: str) -> dict[str, np.ndarray]:
        return rollouts.card_pictures(root, archive, names)

    found = similarity.likeness(drawn(config["archive"]), [drawn(a) for a in config["web"]])
    return {measure: 100 * fraction for measure, fraction in found.items()}


def visibility_tables(run: Run) -> dict[str, dict]:
    """Stream → {"groups": names, "rows": [[rule, …], …]}: who (row) sees whom (column)."""
    tables: dict[str, dict] = {}
    for name in run.trainings:
        path = run.folder / name / "config.json"
        if not storage.is_file(path):
            continue
        config = _json(path, storage.read(path).decode())
        for stream, settings in config["streams"].items():
            readouts = [f"readout_{readout}" for readout in settings["readouts"]]
            groups = [*settings["groups"], *readouts]
            rules = visibility.make(config["model"]["rules"])
            rows = [[visibility.rule(rules, q, k) for k in groups] for q in groups]
            if name == MAIN or stream not in tables:
                tables[stream] = {"groups": groups, "rows": rows}
    return tables


def _headline(sets: Mapping) -> list[dict]:
    """The numbers on top: first touch of the main arm with its interval, per set."""
    found = []
    for name, of_set in sets.items():
        if MAIN in of_set:
            counts = of_set[MAIN]
            low, high = intervals.wilson(counts["first_touch"], counts["episodes"])
            percent = 100 * counts["first_touch"] / counts["episodes"]
            title = _figures.SET_TITLES.get(name, name).partition(" · ")
            found.append(
                dict(set=title[0], what=title[2], percent=percent, low=100 * low, high=100 * high)
            )
    return found


def _pointing_rows(pointing: Mapping) -> list[dict]:
    """A row per (asked of, arm): fractions right per set, in percent."""
    rows = []
    for kind, title in (("scenes", "rendered scenes"), ("collages", "held-out collages")):
        for arm, of_arm in pointing[kind].items():
            rows.append(dict(kind=title, arm=arm, sets={s: _share(of_arm[s]) for s in of_arm}))
    return rows


def _share(counts: Mapping) -> dict:
    low, high = intervals.wilson(counts["right"], counts["episodes"])
    percent = 100 * counts["right"] / counts["episodes"]
    return dict(percent=percent, low=100 * low, high=100 * high, episodes=counts["episodes"])


def _fraction(counts: Mapping | None) -> float | None:
    return round(counts["right"] / counts["episodes"], 4) if counts else None


def _times(seconds: Mapping[str, float]) -> list[dict]:
    longest = max(seconds.values(), default=1.0)
    return [dict(stage=s, seconds=t, share=100 * t / longest) for s, t in seconds.items()]


def _film(record: dict, arrays: Mapping[str, np.ndarray]) -> dict:
    webp = _films.animate(arrays["frames"], arrays["probs"], arrays["points"], record)
    return {"record": record, "data": pages.data_url("image/webp", webp)}


def _films_of(path: pathlib.PurePath) -> list[tuple[dict, dict[str, np.ndarray]]]:
    try:
        with np.load(io.BytesIO(storage.read(path))) as arrays:
            records = json.loads(str(arrays["about"]))
            return [
                (record, {name: arrays[f"{i}/{name}"] for name in ("frames", "probs", "points")})
                for i, record in enumerate(records)
            ]
    except (OSError, ValueError, KeyError) as error:
        raise plugin.UserError(f"{path}: {error}; run vla eval again") from error


def _trainings(folder: pathlib.PurePath, stages: Mapping) -> dict[str, list[dict]]:
    """Training → its metrics: those the stages name, or else every folder that has some."""
    named = [n for n, s in stages.get("stages", {}).items() if s["command"].startswith("train ")]
    for name in named:
        _need(folder / name / jsonl.FILE, "vla train")
    if not stages:
        below = storage.names(folder)
        named = [name for name in below if storage.is_file(folder / name / jsonl.FILE)]
    return {name: jsonl.read(str(folder / name)) for name in named}


def _pictures(folder: pathlib.PurePath, trainings, kind: str, whole: bool) -> dict[str, str]:
    """Stream → data URL of TRAINING/kind_STREAM.png, of the main arm where it has one.

    In a whole run each training left its pictures, so one that has none is an error.
    """
    found: dict[str, pathlib.PurePath] = {}
    for name in sorted(trainings, key=lambda name: name != MAIN):
        pictures = [
            folder / name / picture
            for picture in storage.names(folder / name)
            if picture.startswith(f"{kind}_") and picture.endswith(".png")
        ]
        if whole and not pictures:
            _need(folder / name / f"{kind}_STREAM.png", "vla train")
        for path in pictures:
            found.setdefault(path.stem.removeprefix(f"{kind}_"), path)
    return {
        stream: pages.data_url("image/png", storage.read(path)) for stream, path in found.items()
    }


def _need(path: pathlib.PurePath, maker: str) -> None:
    if not storage.is_file(path):
        raise plugin.UserError(f"report: {path} is missing; `{maker}` writes it")


def _read(path: pathlib.PurePath, maker: str) -> str:
    _need(path, maker)
    return storage.read(path).decode()


def _json(path: pathlib.PurePath, text: str):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise plugin.UserError(f"{path}: is no JSON ({error}): {text[:80]!r}") from error
