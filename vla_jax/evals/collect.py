"""Demonstrations of an environment's scripted expert, as RLDS or LeRobot v3.0 (cards.md §1).

Every second episode is shaken (AR(1) noise and shoves until step 70); the labels stay the clean
expert's. Action and proprio stand at every step, pictures at every `stride`-th. Episode i is a
function of (seed, i) alone, whatever the number of workers. Scene seeds are `(seed + 1) · SCENES +
…`: those below SCENES are left to evaluation.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import time
from collections.abc import Mapping, Sequence

import numpy as np
import rich.console
import rich.progress

from vla_jax import plugin
from vla_jax.plugin import UserError

SCENES = 1_000_000  # scene seeds per collect seed; smaller seeds belong to evaluation
MAX_EPISODES = 100_000  # so that another attempt at an episode has a scene of its own
MAX_ATTEMPTS = 5
MAX_STEPS = 250
STRIDES = {"rlds": 4, "lerobot": 1}  # file of data/writers/ -> steps from picture to picture
CHUNK = 20  # episodes per task of a worker

_env = None  # the worker process's environment: one OpenGL context per process


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a worker needs besides the pictures; see `collect`."""

    names: tuple[str, ...]
    others: tuple[str, ...]
    seed: int
    stride: int
    noise: float
    env: str
    format: str = "rlds"


def collect(
    out: str,
    *,
    names: Sequence[str],
    pictures: Mapping[str, np.ndarray],
    others: Sequence[str] | None = None,
    episodes: int = 1000,
    seed: int = 0,
    workers: int = 2,
    stride: int | None = None,
    noise: float = 0.5,
    env: str = "cards",
    embodiment: str = "sawyer_cards",
    image_size: int = 96,
    format: str = "rlds",
    progress: bool = True,
) -> dict:
    """Writes `episodes` demonstrations of "touch the {name}" to `out` and returns what was done.

    `names` are the targets, `others` (default: `names`) the distractors, `pictures` name -> uint8
    [64, 64, 4]; `noise` is the fraction of shaken episodes (0.5: every second), `workers=0` stays
    in this process. `format` is a file of data/writers/, `stride=None` what STRIDES says of it (a
    LeRobot set has a picture at every step). An episode in which the expert fails is drawn again
    from another scene, and counted. Returns {"episodes", "steps", "frames", "redrawn", "seconds"}.
    Raises UserError on bad arguments and when `out` is not empty.
    """
    writers = plugin.module("data.writers", format)
    stride = STRIDES.get(format, 1) if stride is None else stride
    if not 0 < episodes <= MAX_EPISODES or stride < 1 or not 0.0 <= noise <= 1.0:
        raise UserError(
            f"collect: episodes={episodes}, stride={stride}, noise={noise}: expected "
            f"1 ≤ episodes ≤ {MAX_EPISODES}, stride ≥ 1 and 0 ≤ noise ≤ 1"
        )
    missing = sorted({*names, *(others or ())} - set(pictures))
    if missing:
        raise UserError(f"collect: no pictures of {missing}")
    recipe = Recipe(tuple(names), tuple(others or names), seed, stride, noise, env, format)
    used = {name: pictures[name] for name in sorted({*recipe.names, *recipe.others})}
    ranges = [(i, range(i, min(i + CHUNK, episodes))) for i in range(0, episodes, CHUNK)]
    start = time.monotonic()
    totals = {"episodes": 0, "steps": 0, "frames": 0, "redrawn": 0}
    with writers.Writer(out) as writer, _bar(progress) as bar:
        task = bar.add_task("demonstrations", total=episodes)
        arguments = [(recipe, str(writer.spool), index // CHUNK, ids) for index, ids in ranges]
        for counts in _run(arguments, workers, (env, used, embodiment, image_size)):
            totals = {key: totals[key] + counts[key] for key in totals}
            bar.advance(task, counts["episodes"])
        bar.update(task, description=f"writing {format}")
        writer.finish()
    return {**totals, "seconds": round(time.monotonic() - start, 1)}


def _bar(progress: bool) -> rich.progress.Progress:
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.TimeElapsedColumn())
    console = rich.console.Console(stderr=True)
    return rich.progress.Progress(*columns, console=console, disable=not progress)


def _run(arguments: list[tuple], workers: int, scene: tuple):
    """Yields the counts of each chunk as it is done, over `workers` fresh processes."""
    if workers == 0:
        _start(*scene)
        try:
            yield from (_chunk(*each) for each in arguments)
        finally:
            _env.close()
        return
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, spawn, _start, scene) as pool:
        futures = [pool.submit(_chunk, *each) for each in arguments]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start(env: str, pictures, embodiment: str, image_size: int) -> None:
    global _env
    arguments = dict(pictures=pictures, embodiment=embodiment, image_size=image_size)
    _env = plugin.build("envs", dict(type=env, **arguments), None)


def _chunk(recipe: Recipe, spool: str, index: int, ids: range) -> dict:
    """Collects the episodes `ids` into chunk `index` of the spool: their counts."""
    done, redrawn = [], 0
    for i in ids:
        episode, attempts = _episode(_env, recipe, i)
        done.append(episode)
        redrawn += attempts
    plugin.module("data.writers", recipe.format).spool(spool, index, done)
    frames = sum(p is not None for e in done for view in e["images"].values() for p in view)
    steps = sum(len(e["action"]) for e in done)
    return {"episodes": len(done), "steps": steps, "frames": frames, "redrawn": redrawn}


def _episode(env, recipe: Recipe, i: int) -> tuple[dict, int]:
    """Episode i and the number of failed attempts before it; RuntimeError after MAX_ATTEMPTS."""
    noisy = int((i + 1) * recipe.noise) > int(i * recipe.noise)  # 0.5: every second
    draw = plugin.module("envs", recipe.env).draw_task
    for attempt in range(MAX_ATTEMPTS):
        scene = (recipe.seed + 1) * SCENES + attempt * MAX_EPISODES + i
        target, names = draw(scene, recipe.names, recipe.others)
        rollout = _demonstrate(env, scene, target, names, noisy, recipe)
        if rollout is None:
            continue
        metadata = {
            "episode_id": f"cards-{recipe.seed}-{i:06d}",
            "embodiment": env.embodiment.name,
            "action_space": env.action_space.name,
            "seed": scene,
            "noise_seed": scene,
            "noise": env.noise_sigma if noisy else 0.0,
            "control_hz": env.action_space.control_hz,
            "image_stride": recipe.stride,
            "target": target,
            "cards": ",".join(names),
            "success": True,
            "camera": {view: env.camera_matrix(view) for view in env.views},
        }
        return {**rollout, "instruction": env.instruction, "metadata": metadata}, attempt
    raise RuntimeError(
        f"collect: the expert failed {MAX_ATTEMPTS} times at episode {i} (seed {scene})"
    )


def _demonstrate(env, scene: int, target: str, names, noisy: bool, recipe: Recipe) -> dict | None:
    """One rollout of the expert in the writer's form; None when it misses the right card."""
    encode, stride = plugin.module("data.writers", recipe.format).encode, recipe.stride
    rng = np.random.Generator(np.random.Philox(key=np.array([scene, 3], np.uint64)))
    disturbance = env.disturbance(rng)
    observation = env.reset(scene, target, names)
    actions, hands = [], []
    images = {view: [] for view in env.views}
    left = None  # steps that the expert still stays
    for step in range(MAX_STEPS):
        actions.append(env.expert_action())
        hands.append(observation["proprio"]["hand"])
        for view, pictures in images.items():
            taken = step % stride == 0
            pictures.append(encode(observation["images"][view]) if taken else None)
        if left is None and env.expert_reached():
            left = env.expert_stay
        if left == 0:
            break
        left = None if left is None else left - 1
        executed = actions[-1].astype(np.float64)
        if noisy:
            executed[:3] += disturbance.next()
        observation, _ = env.step(executed, render=(step + 1) % stride == 0)
    if left != 0 or not env.info["success"]:
        return None
    return {"action": np.stack(actions), "proprio": {"hand": np.stack(hands)}, "images": images}
