"""Diffusion with the stored noise: the score network, each step of the chain, sampled actions."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tools.octo_golden import draws
from tools.octo_golden.golden import SAMPLES, Golden
from tools.octo_golden.heads import sample, shape, unnormalized
from vla_jax.heads import diffusion

NOISE = "noise: given to our sampler in place of Octo's draws"
UNITS = {"normal": "zscore", "bounds": "q01_q99"}


def compare(golden: Golden) -> None:
    """eps/…, sample/…, create_tasks_lang/…."""
    if golden.names("eps/"):
        golden.attempt(_score)
    if golden.names("sample/"):
        golden.attempt(_samples)
    for kind, mode in UNITS.items():
        golden.attempt(_units, kind, mode)


def _acting(golden: Golden) -> tuple[str, dict, tuple[int, int]]:
    """(name, spec, (C, A)) of the head that Octo samples from, which diffuses here."""
    native, name = golden.native(), golden.acting
    spec = native.config.model.heads[name]
    if spec["type"] != "diffusion":
        raise ValueError(f"head {name!r} is a {spec['type']}; eps/ and sample/ are of diffusion")
    return name, spec, shape(native, name)


def _guess(golden: Golden, noisy: Any, time: Any) -> np.ndarray:
    """The noise in `noisy` [n, B, W, C·A] at `time` [n, B, W], over the readout's embedding."""
    native, name = golden.native(), _acting(golden)[0]

    def run(vla, batch, noisy, time):
        outputs, head = vla.encode(batch, "robot"), vla.heads[name]
        given = head.condition(outputs, {}, batch, head.pool)[None]  # [1, B, W, F]
        return head.score(noisy, time, jnp.broadcast_to(given, (*time.shape, given.shape[-1])))

    apply = jax.jit(lambda v, b, x, t: native.network.module.apply(v, b, x, t, method=run))
    return np.asarray(apply(native.variables, golden.batch(), noisy, time))


def _score(golden: Golden) -> None:
    """One call of the score network."""
    noisy, time = (golden.take(f"eps/{part}") for part in ("noisy_actions", "time"))
    golden.compare("eps/pred_eps", _guess(golden, noisy, time[..., 0]))


def _samples(golden: Golden) -> None:
    name, spec, size = _acting(golden)
    native, batch = golden.native(), golden.batch()
    start, steps = (golden.take(f"sample/{p}", why=NOISE) for p in ("init_noise", "z_per_step"))
    noise = draws.newest(start, steps, size)
    drawn = sample(golden, native, batch, {name: noise})[name]["action"]
    golden.compare("sample/actions_normalized", drawn, SAMPLES)
    golden.attempt(_steps, start, steps, spec)
    golden.attempt(_tasks, noise)
    for array in golden.names("sample/actions_"):
        for pattern, comparison in (
            (r"shape(\d+)", _several),
            (r"h(\d+)window", _recent),
            (r"unnorm_embodiment(\d+)", _smaller),
        ):
            of = re.fullmatch(f"sample/actions_{pattern}", array)
            if of is not None:
                golden.attempt(comparison, array, int(of[1]), noise)


def _steps(golden: Golden, start: np.ndarray, steps: np.ndarray, spec: dict) -> None:
    """Each step of the chain over the whole window, from where Octo's own had come."""
    if "sample/x_per_step" not in golden.outputs:
        return
    reached = golden.outputs["sample/x_per_step"]  # [T, B, W, C·A], after each step
    before = np.concatenate([start[None], reached[:-1]])
    constants = diffusion.ddpm_constants(spec["diffusion_steps"])
    time, scale, share, sigma, _ = (x.reshape(-1, 1, 1, 1) for x in constants)
    guess = _guess(golden, before, np.broadcast_to(time[..., 0], before.shape[:3]))
    after = scale * (before - share * guess) + sigma * steps
    limit = spec["max_action"]
    golden.compare("sample/x_per_step", np.clip(after, -limit, limit), SAMPLES)


def _several(golden: Golden, array: str, count: int, _: dict) -> None:
    """sample_shape=(count,), with its own noise."""
    name, _, size = _acting(golden)
    parts = ("init_noise", "z_per_step")
    start, steps = (golden.take(f"sample/shape{count}_{p}", why=NOISE) for p in parts)
    noise = [draws.newest(s, z, size) for s, z in zip(start, np.moveaxis(steps, 1, 0), strict=True)]
    golden.compare(array, draws.answers(golden, name, noise), SAMPLES)


def _recent(golden: Golden, array: str, window: int, _: dict) -> None:
    """The newest steps of the window alone: its noise is not stored, its key is that of the rest.

    Octo's draws are made again, and believed where they give the noise that is stored for the whole
    window.
    """
    name, spec, size = _acting(golden)
    stored = golden.outputs["sample/init_noise"]
    again, _ = draws.chain(draws.SAMPLE, stored.shape, 0)
    if not np.allclose(again, stored, atol=1e-6):
        why = f"its noise is not stored, and PRNGKey({draws.SAMPLE}) does not give the others'"
        golden.excuse(array, why)
        return
    shape = (stored.shape[0], window, stored.shape[-1])
    noise = draws.newest(*draws.chain(draws.SAMPLE, shape, spec["diffusion_steps"]), size)
    drawn = draws.answers(golden, name, [noise], f"transformer_h{window}")[0]
    golden.compare(array, drawn, SAMPLES)


def _smaller(golden: Golden, array: str, dimensions: int, noise: dict) -> None:
    """A robot with fewer dimensions: the others are held at noise; statistics cut to its own."""
    name, _, size = _acting(golden)
    drawn = draws.answers(golden, name, [noise], sizes=(dimensions,))[0]  # zero beyond its own
    whole = np.zeros((*drawn.shape[:-1], size[1]), np.float32)
    whole[..., : drawn.shape[-1]] = drawn
    got = unnormalized(golden, whole, "zscore")[..., :dimensions]
    golden.compare(array, got, SAMPLES)


def _tasks(golden: Golden, noise: dict) -> None:
    """With the tasks that Octo's create_tasks makes of a text, and of goals."""
    name, native = _acting(golden)[0], golden.native()
    task = {
        path.removeprefix("create_tasks_lang/"): golden.take(path)
        for path in golden.names("create_tasks_lang/")
    }
    if task:
        drawn = sample(golden, native, golden.batch(task=task), {name: noise})[name]["action"]
        golden.compare("sample/actions_create_tasks_lang", drawn, SAMPLES)
    if "sample/actions_create_tasks_goal" in golden.outputs:
        task = goal_task(golden)
        drawn = sample(golden, native, golden.batch(task=task), {name: noise})[name]["action"]
        golden.compare("sample/actions_create_tasks_goal", drawn, SAMPLES)


def goal_task(golden: Golden) -> dict[str, np.ndarray]:
    """What create_tasks makes of the inputs' goal images: all are there, no instruction is.

    The instruction's own numbers do not matter, nothing sees its tokens.
    """
    goals = {p: a for p, a in golden.inputs.items() if p.startswith("task/image_")}
    task = {path.removeprefix("task/"): image for path, image in goals.items()}
    rows = next(iter(goals.values())).shape[0]
    there = {f"pad_mask_dict/{path}": np.ones(rows, bool) for path in task}
    words = {
        path.removeprefix("task/"): array
        for path, array in golden.inputs.items()
        if path.startswith("task/language_instruction")
    }
    return {**task, **there, **words, "pad_mask_dict/language_instruction": np.zeros(rows, bool)}


def _units(golden: Golden, kind: str, mode: str) -> None:
    """Octo's normalized actions in the robot's units."""
    if f"sample/actions_unnorm_{kind}" in golden.outputs:
        plain = golden.outputs["sample/actions_normalized"]
        golden.compare(f"sample/actions_unnorm_{kind}", unnormalized(golden, plain, mode))
