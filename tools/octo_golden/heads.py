"""Heads without their noise: schedules, bins, and what heads/NAME/… says of answers and losses."""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np

from tools.octo_golden import draws
from tools.octo_golden.golden import SAMPLES, Golden
from vla_jax import types
from vla_jax.codecs import action_tokenizer
from vla_jax.heads import diffusion
from vla_jax.models import build
from vla_jax.models.importers import octo

TEMPERATURE = 0.7  # of the stored predict_sample…, by the generator's README
UNKEYED = "drawn with a random key that the folder does not tell"


def compare(golden: Golden) -> None:
    """schedule/…, bin/…, heads/…, sample_actions…."""
    golden.attempt(_schedules)
    for prefix in sorted({name.rpartition("/")[0] for name in golden.names("bin/")}):
        golden.attempt(_bins, prefix)
    if golden.names("heads/") or golden.names("sample_actions"):
        golden.attempt(_answers)


def _schedules(golden: Golden) -> None:
    for name in golden.names("schedule/"):
        # Octo's head and its U-Net have one schedule, written down twice.
        of = re.fullmatch(r"schedule/(?:cosine_beta|unet_squaredcos_cap_v2)_(\d+)", name)
        if of is not None:
            golden.compare(name, diffusion.cosine_betas(int(of[1])))
    if "schedule/betas" in golden.outputs:
        spec = golden.native().config.model.heads[golden.acting]
        betas = diffusion.cosine_betas(spec["diffusion_steps"])
        golden.compare("schedule/betas", betas)
        golden.compare("schedule/alphas", 1 - betas)
        golden.compare("schedule/alpha_hats", diffusion.signal(spec["diffusion_steps"]))


def _bins(golden: Golden, prefix: str) -> None:
    spacing, low, high, count = prefix.removeprefix("bin/").split("_")
    bins = action_tokenizer.Bins.make(
        prefix, count=int(count), spacing=spacing, low=float(low), high=float(high),
        beyond="first",
    )  # fmt: skip
    golden.compare(f"{prefix}/thresholds", bins.thresholds)
    golden.compare(f"{prefix}/ids", bins.tokenize(golden.take(f"{prefix}/x")))
    golden.compare(f"{prefix}/decode_all", bins.decode(np.arange(int(count))))


# ---------------------------------------------------------------------------------- heads/NAME/…


def shape(native: octo.Native, name: str) -> tuple[int, int]:
    """(C, A) of a head."""
    spec = native.config.model.heads[name]
    return spec["action_horizon"], native.spaces[0].size


def silence(native: octo.Native, batch: types.Batch) -> dict[str, dict[str, np.ndarray]]:
    """{head: zeros} for every head that draws noise: what the others say does not depend on it."""
    rows, window = batch.observation.timestep_mask.shape
    found = {}
    for name, spec in native.config.model.heads.items():
        if spec["type"] == "diffusion":
            size, count = shape(native, name), spec["n_diffusion_samples"]
            found[name] = dict(
                time=np.zeros((rows, window, count), np.int32),
                noise=np.zeros((rows, window, count, *size), np.float32),
                start=np.zeros((rows, *size), np.float32),
                steps=np.zeros((rows, spec["diffusion_steps"], *size), np.float32),
            )
    return found


def sample(golden: Golden, native: octo.Native, batch: types.Batch, keys: dict) -> dict[str, Any]:
    """The heads' answers for the newest step, with the noise `keys` and silence elsewhere."""
    return golden.ask(native, "sample", batch, {**silence(native, batch), **keys})


def losses(native: octo.Native, variables: Any, batch: types.Batch, keys: dict) -> dict[str, dict]:
    """{head: its loss and squared error in Octo's scale, the answer}, from our sums and counts.

    The squared error is that of the noise for diffusion, else of the answer.
    """
    context = build.make_context(native.config, native.spaces, None, {})
    keys = {**silence(native, batch), **keys}
    answers, errors = native.network.apply(variables, batch, "robot", keys)
    found = {}
    for name, (objective, weight) in build.objectives(native.config, context)["robot"].items():
        spec, mask = native.config.model.heads[name], objective.mask(batch)["action"]
        total, _ = objective(answers, errors, batch)
        count = mask.sum()
        squares = errors[name]["action"]
        if spec["type"] != "diffusion":
            target = batch.targets["action"][:, :, : mask.shape[2], : mask.shape[3]]
            squares = (answers[name]["action"] - target) ** 2
        elif spec["loss"] == "l1":
            squares = squares**2  # of one draw; of several it is no mean of squares
        mse = mask.shape[-1] * (squares * mask).sum() / count
        found[name] = dict(loss=weight * total / count, mse=mse, answer=answers[name])
    return found


def _answers(golden: Golden) -> None:
    """What each head answers in training, its loss, its likeliest and its drawn actions."""
    native, batch = golden.native(), golden.batch()
    sampled = sample(golden, native, batch, {})
    found = jax.device_get(jax.jit(lambda v: losses(native, v, batch, {}))(native.variables))
    for name, spec in native.config.model.heads.items():
        prefix = f"heads/{name}"
        if spec["type"] == "diffusion":
            for part in ("loss", "metrics/loss", "metrics/mse"):
                golden.excuse(f"{prefix}/{part}", UNKEYED)
            golden.excuse(f"{prefix}/predict_argmax", UNKEYED)
        else:
            for part in ("loss", "metrics/loss"):
                golden.compare(f"{prefix}/{part}", found[name]["loss"], relative=True)
            golden.compare(f"{prefix}/metrics/mse", found[name]["mse"], relative=True)
            answer = found[name]["answer"]
            golden.compare(f"{prefix}/output", answer.get("logits", answer["action"]))
            golden.compare(f"{prefix}/predict_argmax", sampled[name]["action"])
        if spec["type"] == "bins":
            golden.attempt(_accuracy, name, found[name]["answer"]["action"])
        golden.attempt(_drawn, name, sampled[name])
    golden.attempt(_acted, sampled)


def _accuracy(golden: Golden, name: str, action: np.ndarray) -> None:
    """The share of bins that are right."""
    spec, batch = golden.native().config.model.heads[name], golden.batch()
    settings = {k: spec[k] for k in ("spacing", "low", "high", "beyond")}
    bins = action_tokenizer.Bins.make(name, count=spec["bins"], **settings)
    mask = batch.target_masks["action"]
    right = bins.tokenize(action) == bins.tokenize(batch.targets["action"])
    golden.compare(f"heads/{name}/metrics/accuracy", np.sum(right & mask) / np.sum(mask))


def _drawn(golden: Golden, name: str, sampled: dict) -> None:
    """heads/NAME/predict_sample_key4_shape3, by Octo's own random bits of that key."""
    native = golden.native()
    spec, size = native.config.model.heads[name], shape(native, name)
    for array in golden.names(f"heads/{name}/predict_sample_"):
        of = re.fullmatch(r".*predict_sample_key(\d+)_shape(\d+)", array)
        if of is None:
            continue
        key, count = int(of[1]), int(of[2])
        if spec["type"] == "bins":
            noise = draws.gumbel(key, (count, *sampled["logits"].shape))
            drawn = draws.answers(golden, name, noise, temperature=TEMPERATURE)
            golden.compare(array, drawn)
        elif spec["type"] == "diffusion":
            lead = (count, *golden.batch().observation.timestep_mask.shape)
            start, steps = draws.chain(key, (*lead, size[0] * size[1]), spec["diffusion_steps"])
            noise = [draws.newest(s, z, size) for s, z in zip(start, np.moveaxis(steps, 1, 0))]
            golden.compare(array, draws.answers(golden, name, noise), SAMPLES)
        else:  # nothing is drawn: the same answer again
            again = (count, *sampled["action"].shape)
            golden.compare(array, np.broadcast_to(sampled["action"], again))


def _acted(golden: Golden, sampled: dict) -> None:
    """sample_actions, and what the checkpoint's statistics make of it."""
    name = golden.acting
    if golden.native().config.model.heads[name]["type"] == "regression":
        golden.compare("sample_actions", sampled[name]["action"])
    else:
        golden.excuse("sample_actions", UNKEYED)
    if "sample_actions_unnorm" in golden.outputs:
        plain = golden.outputs["sample_actions"]
        golden.compare("sample_actions_unnorm", unnormalized(golden, plain, "zscore"))


def unnormalized(golden: Golden, actions: np.ndarray, mode: str) -> np.ndarray:
    """Actions in a robot's units by the statistics of the checkpoint's first dataset."""
    normalizer = octo.statistics(golden.checkpoint, mode)
    return normalizer.inverse(normalizer.keys[0], "action", actions)
