"""Closed-loop evaluation over processes: arms x sets x seeds → episodes.jsonl (cards.md §2).

    EvalConfig ──plan──▶ jobs ──queue──▶ worker processes (evals/_worker.py) ──▶ sorted records

The same seed is the same episode in every arm: layout, cards and target are functions of the seed
and the set. Seeds come from ranges that no demonstration uses (`collect` draws its scenes from a
million upwards): DEV_SEEDS for every choice one makes, REPORT_SEEDS for the report alone.

What `evaluate` leaves in a folder, all of it or nothing:

    episodes.jsonl  a record per episode, in the order of the config
    pointing.json   how often the first pointing answer lies nearest to the named card
    rollouts.npz    a few episodes run again with pictures (only when `record` asks for them)
    eval.json       the config, the seeds and the versions
    episodes/       every acted episode as a data set (only when `keep` names its format)
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import io
import json
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import rich.console
import rich.progress

from vla_jax import plugin, storage
from vla_jax.data.sources import _emoji
from vla_jax.evals import _worker
from vla_jax.parallel import fake_devices

ASSETS = pathlib.Path(__file__).parent.parent / "assets" / "emoji"
DEV_SEEDS = 0
REPORT_SEEDS = 500_000
SEEDS_END = 1_000_000  # scenes from here on belong to demonstrations
SET_STRIDE = 10_000  # seeds of one set; the sets' numbers follow their names' order
SETS = {  # the card demo's: letters of the split
    "A": {"targets": "a", "others": "a"},  # demonstrated
    "B": {"targets": "b", "others": "b"},  # met in image-text data only
    "C": {"targets": "c", "others": "c"},  # met nowhere: the chance control
    "B_among_A": {"targets": "b", "others": "a"},
}
CARDS = {"type": "cards", "embodiment": "sawyer_cards", "image_size": 96}  # file of envs/
VERSIONS = ("vla_jax", "jax", "jaxlib", "flax", "numpy", "mujoco", "metaworld")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetConfig:
    """Which names are asked for and which lie beside them: letters of the split, "a" or "ab"."""

    targets: str
    others: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """Who acts (a checkpoint's folder or a scripted policy), on how many episodes of which set."""

    sets: dict[str, int]
    checkpoint: str | None = None
    policy: Literal["expert", "random"] | None = None
    masked_views: tuple[str, ...] = ()  # cameras hidden from the policy: the blind control
    stream: str = "robot"
    template: str = "touch the {name}"
    pointing_only: bool = False  # asks for the pointing answer of the first picture, does not act
    collages: int = 0  # and that of so many held-out collages (streams with a collage source)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Everything an evaluation is."""

    split: int
    sets: dict[str, SetConfig]
    arms: dict[str, ArmConfig]
    seed_base: int = REPORT_SEEDS
    root: str | None = None  # the emoji folder; None: vla_jax/assets/emoji
    archive: str = "google"  # the artist of the cards
    web: tuple[str, ...] = ("twemoji", "fluent_flat", "fluent_3d")  # artists to compare them with
    env: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(CARDS))
    view: str = "primary"  # where policies point, and what the films show
    execute_steps: int = 4
    workers: int = 2
    record: int = 0  # episodes of record_arm on record_set that are run again with pictures
    record_arm: str = "cofinetuned"
    record_set: str = "B"
    keep: str | None = None  # a file of data/writers/: "lerobot", "rlds"


def evaluate(config: EvalConfig, out: str | os.PathLike, *, progress: bool = True) -> dict:
    """Runs every episode of `config`, writes the files to `out`, returns the summary of `tally`.

    Raises UserError on a config that does not fit, on a missing checkpoint, and when a worker
    raises or dies; nothing is written then.
    """
    check(config)
    start = time.monotonic()
    root = pathlib.Path(config.root) if config.root else ASSETS
    pictures = card_pictures(root, config.archive)
    names = _emoji.split_names(_emoji.card_names(root), config.split)
    jobs = plan(config, names)
    scene = _worker.Scene(
        arms=config.arms,
        pictures=pictures,
        names_a=names.a,
        names_b=names.b,
        env=config.env,
        view=config.view,
        execute_steps=config.execute_steps,
    )
    with contextlib.ExitStack() as stack:
        kept = None
        if config.keep:
            module = plugin.module("data.writers", config.keep)
            kept = stack.enter_context(module.Writer(storage.local("--out", out) / "episodes"))
            scene = dataclasses.replace(scene, keep=(config.keep, str(kept.spool)))
        pool = stack.enter_context(_pool(config.workers, scene))
        done = run(pool, jobs, "episodes", progress)
        records = [answer["record"] for answer in done if answer.get("record")]
        chosen = choose(records, config) if config.record else []
        films = run(pool, chosen, "pictures", progress)
        if kept is not None:
            kept.finish()
    pointing = _pointing(done)
    summary = tally(records) | {"pointing": pointing, "episodes": len(records)}
    summary["seconds"] = round(time.monotonic() - start, 1)
    _write(out, config, records, pointing, films)
    return summary


def check(config: EvalConfig) -> None:
    """Raises UserError unless environment, sets, arms, seeds and folders fit together."""
    if "type" not in config.env:
        raise plugin.UserError(
            f"eval.env: got {config.env}, expected its type: {plugin.names('envs')}"
        )
    plugin.module("envs", config.env["type"])
    for name, each in config.sets.items():
        for field in ("targets", "others"):
            letters = getattr(each, field)
            if not letters or set(letters) - set("abc"):
                raise plugin.UserError(
                    f"eval.sets.{name}.{field}: got {letters!r}, expected letters of a, b, c"
                )
    for name, arm in config.arms.items():
        where = f"eval.arms.{name}"
        if (arm.checkpoint is None) == (arm.policy is None):
            raise plugin.UserError(f"{where}: give either checkpoint (a run's folder) or policy")
        if arm.checkpoint and not storage.is_dir(arm.checkpoint):
            raise plugin.UserError(
                f"{where}.checkpoint: no folder {arm.checkpoint}; train it first (vla train)"
            )
        if arm.policy and (arm.pointing_only or arm.collages):
            raise plugin.UserError(f"{where}: the {arm.policy} policy has no pointing answer")
        for each, episodes in arm.sets.items():
            if each not in config.sets:
                raise plugin.UserError(plugin.unknown(f"{where}.sets", each, config.sets))
            if not 0 < episodes <= SET_STRIDE:
                raise plugin.UserError(
                    f"{where}.sets.{each}: got {episodes} episodes, expected 1 to {SET_STRIDE}"
                )
    last = config.seed_base + SET_STRIDE * len(config.sets)
    if config.seed_base < 0 or last > SEEDS_END:
        raise plugin.UserError(
            f"eval.seed_base: got {config.seed_base}, the last seed would be {last - 1}; expected "
            f"0 to {SEEDS_END - 1}: scenes from {SEEDS_END} on belong to demonstrations"
        )
    if config.workers < 1:
        raise plugin.UserError(f"eval.workers: got {config.workers}, expected 1 or more")
    if config.record:
        if config.record_arm not in config.arms:
            raise plugin.UserError(
                plugin.unknown("eval.record_arm", config.record_arm, config.arms)
            )
        if config.record_set not in config.arms[config.record_arm].sets:
            known = config.arms[config.record_arm].sets
            raise plugin.UserError(plugin.unknown("eval.record_set", config.record_set, known))


def card_pictures(
    root: pathlib.Path, archive: str, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Name -> uint8 [64, 64, 4] of all cards, or of `names`; UserError when one is missing."""
    table = _emoji.card_table(root)
    drawn = _emoji.by_name(_emoji.load_pictures(root / f"{archive}.tar"), names or table, table)
    return {name: picture.rgba for name, picture in drawn.items()}


def first_seeds(config: EvalConfig) -> dict[str, int]:
    """The first scene seed of each set: a function of the sets' names, not of their order."""
    return {name: config.seed_base + SET_STRIDE * i for i, name in enumerate(sorted(config.sets))}


def plan(config: EvalConfig, names: _emoji.Names) -> list[_worker.Job]:
    """Every job of the evaluation in the config's order; equal seeds are equal scenes."""
    letters, first = dataclasses.asdict(names), first_seeds(config)
    draw = plugin.module("envs", config.env["type"]).draw_task
    jobs = []
    for arm, arm_config in config.arms.items():
        for name, episodes in arm_config.sets.items():
            each = config.sets[name]
            targets = [n for letter in each.targets for n in letters[letter]]
            others = [n for letter in each.others for n in letters[letter]]
            for seed in range(first[name], first[name] + episodes):
                target, laid = draw(seed, targets, others)
                kind = "point" if arm_config.pointing_only else "act"
                jobs.append(_worker.Job(kind, name, arm, seed, target, laid))
        if arm_config.collages:
            jobs.append(_worker.Job("collages", "", arm, config.seed_base, "", ()))
    return [dataclasses.replace(job, number=i) for i, job in enumerate(jobs)]


def run(pool, jobs: Sequence[_worker.Job], what: str, progress: bool = True) -> list[dict]:
    """The workers' answers in the order of `jobs`; UserError as soon as one raises or dies."""
    if not jobs:
        return []
    answers: list[dict] = [{}] * len(jobs)
    futures = {pool.submit(_worker.do, job): i for i, job in enumerate(jobs)}
    with _bar(progress) as bar:
        task = bar.add_task(what, total=len(jobs))
        for future in concurrent.futures.as_completed(futures):
            job = jobs[futures[future]]
            try:
                answers[futures[future]] = future.result()
            except concurrent.futures.process.BrokenProcessPool as error:
                raise plugin.UserError(
                    "eval: a worker process died (out of memory, or no off-screen rendering: set "
                    "MUJOCO_GL=osmesa or egl); what it wrote to the terminal stands above"
                ) from error
            except plugin.UserError:
                raise
            except Exception as error:  # no mistake of the user's: with its traceback
                raise RuntimeError(
                    f"eval: arm {job.arm!r}, set {job.set!r}, seed {job.seed}: "
                    f"{type(error).__name__}: {error}"
                ) from error
            bar.advance(task)
    return answers


@contextlib.contextmanager
def _pool(workers: int, scene: _worker.Scene) -> Iterator[concurrent.futures.Executor]:
    spawn = multiprocessing.get_context("spawn")
    with _environment():
        pool = concurrent.futures.ProcessPoolExecutor(workers, spawn, _worker.start, (scene,))
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """What the workers inherit: one CPU device each, and software rendering unless told otherwise.

    It must stand before they import jax and mujoco, hence in the environment.
    """
    wanted = {
        **fake_devices.variables(1),
        "MUJOCO_GL": os.environ.get("MUJOCO_GL", "osmesa"),
        "LP_NUM_THREADS": "1",  # of the software renderer
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def choose(records: Sequence[dict], config: EvalConfig) -> list[_worker.Job]:
    """Up to `config.record` episodes to show, half of them failures where there are enough."""
    mine = [r for r in records if (r["arm"], r["set"]) == (config.record_arm, config.record_set)]
    failed = [r for r in mine if not r["success"]]
    succeeded = [r for r in mine if r["success"]]
    show_failed = _different(failed, max(config.record // 2, config.record - len(succeeded)))
    show = _different(succeeded, config.record - len(show_failed)) + show_failed
    return [
        _worker.Job("film", r["set"], r["arm"], r["seed"], r["target"], tuple(r["cards"]))
        for r in show
    ]


def _different(records: Sequence[dict], count: int) -> list[dict]:
    """The first `count` records, each of another target as long as there are any."""
    seen: dict[str, int] = {}
    rank = []
    for record in records:
        seen[record["target"]] = seen.get(record["target"], -1) + 1
        rank.append(seen[record["target"]])
    order = sorted(range(len(records)), key=lambda i: (rank[i], i))
    return [records[i] for i in sorted(order[:count])]


def tally(records: Iterable[dict]) -> dict:
    """{"sets": {set: {arm: {"successes", "first_touch", "episodes"}}}} of episode records."""
    sets: dict[str, dict[str, dict[str, int]]] = {}
    for record in records:
        counts = sets.setdefault(record["set"], {}).setdefault(
            record["arm"], {"successes": 0, "first_touch": 0, "episodes": 0}
        )
        counts["successes"] += bool(record["success"])
        counts["first_touch"] += bool(record["first_touch"])
        counts["episodes"] += 1
    return {"sets": sets}


def _pointing(answers: Sequence[dict]) -> dict:
    """{"scenes"|"collages": {arm: {set: {"right", "episodes"}}}} of the workers' answers."""
    found: dict[str, dict] = {"scenes": {}, "collages": {}}
    for answer in answers:
        for kind, arm, name, right, episodes in answer.get("pointing", ()):
            counts = found[kind].setdefault(arm, {}).setdefault(name, {"right": 0, "episodes": 0})
            counts["right"] += int(right)
            counts["episodes"] += int(episodes)
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of what the result depends on."""
    found = {"python": sys.version.split()[0]}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _write(out: storage.Path, config: EvalConfig, records, pointing, films) -> None:
    about = {"config": dataclasses.asdict(config), "first_seeds": first_seeds(config)}
    about["versions"] = versions()
    new: dict[str, storage.Data] = {
        "episodes.jsonl": "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records),
        "pointing.json": json.dumps(pointing, indent=1) + "\n",
        "eval.json": json.dumps(about, indent=1) + "\n",
    }
    if films:
        file = io.BytesIO()
        np.savez_compressed(file, **_arrays(films))
        new["rollouts.npz"] = file.getvalue()
    storage.write_all({storage.join(out, name): data for name, data in new.items()})
    if not films:
        storage.remove(storage.join(out, "rollouts.npz"))


def _arrays(films: Sequence[dict]) -> dict[str, np.ndarray]:
    """Arrays of rollouts.npz: `about` (JSON of all records), `i/frames`, `i/probs`, … per film."""
    arrays = {
        f"{i}/{name}": value for i, film in enumerate(films) for name, value in film["film"].items()
    }
    arrays["about"] = np.array(json.dumps([film["record"] for film in films]))
    return arrays


def _bar(progress: bool) -> rich.progress.Progress:
    columns = (
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    return rich.progress.Progress(
        *columns, console=rich.console.Console(stderr=True), disable=not progress
    )
