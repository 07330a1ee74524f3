"""Heads: schedules, the score network, losses, gradients, samples, bins."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from tools.octo_golden.golden import SAMPLES, Golden
from vla_jax import trees, types
from vla_jax.codecs import action_tokenizer
from vla_jax.heads import diffusion
from vla_jax.models import build
from vla_jax.models.importers import _octo_params, octo

RANDOM = "drawn from Octo's own random bits, which are not stored"


def compare(golden: Golden) -> None:
    """Everything of the heads in outputs.npz and grads.npz."""
    _schedules(golden)
    _bins(golden)
    if golden.names("eps/"):
        _score(golden)
    if golden.names("sample/"):
        _samples(golden)
    if golden.names("loss/"):
        _loss_and_gradient(golden)
    if golden.names("heads/"):
        _answers(golden)


# --------------------------------------------------------------------------------------- diffusion


def _schedules(golden: Golden) -> None:
    for name in golden.names("schedule/cosine_beta_"):
        golden.compare(name, diffusion.cosine_betas(int(name.rpartition("_")[2])))
    if "schedule/betas" in golden.outputs:
        steps = len(golden.outputs["schedule/betas"])
        betas = diffusion.cosine_betas(steps)
        golden.compare("schedule/betas", betas)
        golden.compare("schedule/alphas", 1 - betas)
        golden.compare("schedule/alpha_hats", diffusion.signal(steps))
    why = "of Octo's UNetDDPMActionHead, which does not run as Octo ships it"
    golden.excuse("schedule/unet", why)


def _score(golden: Golden) -> None:
    """One call of the score network on the readout's own embedding."""
    native = golden.native()
    (name,) = [n for n, s in native.config.model.heads.items() if s["type"] == "diffusion"]
    noisy, time = (golden.take(f"eps/{part}") for part in ("noisy_actions", "time"))

    def run(vla, batch, noisy, time):
        outputs = vla.encode(batch, "robot")
        head = vla.heads[name]
        given = head.condition(outputs, {}, batch, head.pool)
        return head.score(noisy, time, given)

    apply = jax.jit(lambda v, b, x, t: native.network.module.apply(v, b, x, t, method=run))
    got = apply(native.variables, golden.batch(), noisy[0], time[0, ..., 0])
    golden.compare("eps/pred_eps", np.asarray(got)[None])


def _noise(golden: Golden, native: octo.Native, start: np.ndarray, steps: np.ndarray) -> dict:
    """Stored [B, W, C·A] and [T, B, W, C·A] as the head takes them, of the newest step."""
    rows, shape = start.shape[0], _shape(native)
    return dict(
        start=start[:, -1].reshape(rows, *shape),
        steps=np.moveaxis(steps[:, :, -1], 0, 1).reshape(rows, -1, *shape),
    )


def _shape(native: octo.Native) -> tuple[int, int]:
    return native.config.streams["robot"].action_horizon, native.spaces[0].size


def _sample(native: octo.Native, batch: types.Batch, keys: dict) -> dict[str, Any]:
    run = jax.jit(lambda v, b, k: native.network.sample(v, b, "robot", k))
    return jax.device_get(run(native.variables, batch, keys))


def _samples(golden: Golden) -> None:
    native = golden.native()
    (name,) = native.config.streams["robot"].heads
    noise = _noise(
        golden, native, golden.take("sample/init_noise"), golden.take("sample/z_per_step")
    )

    def compare(array, native, batch, noise):
        if f"sample/{array}" in golden.outputs:
            got = _sample(native, batch, {name: noise})[name]["action"]
            golden.compare(f"sample/{array}", got, SAMPLES)

    compare("actions_normalized", native, golden.batch(), noise)
    if "sample/actions_h1window" in golden.outputs:
        golden.excuse("sample/actions_h1window", "its noise is not stored")
    if "sample/actions_shape3" in golden.outputs:
        starts, steps = (
            golden.take(f"sample/shape3_{part}") for part in ("init_noise", "z_per_step")
        )
        drawn = [
            _sample(native, golden.batch(), {name: _noise(golden, native, s, z)})[name]["action"]
            for s, z in zip(starts, np.moveaxis(steps, 1, 0), strict=True)
        ]
        golden.compare("sample/actions_shape3", np.stack(drawn), SAMPLES)
    for kind, mode in (("normal", "zscore"), ("bounds", "q01_q99")):
        if f"sample/actions_unnorm_{kind}" in golden.outputs:
            normalizer = octo.statistics(golden.checkpoint, mode)
            (key,) = normalizer.keys
            chunk = golden.outputs["sample/actions_normalized"]
            got = normalizer.inverse(key, "action", chunk)
            golden.compare(f"sample/actions_unnorm_{kind}", got)
    _created_tasks(golden, native, name, noise)
    why = "steps inside a scan; what they end in is compared (sample/actions_normalized)"
    golden.excuse("sample/x_per_step", why)
    golden.excuse("sample/actions_unnorm_embodiment5", "its statistics are not stored")


def _created_tasks(golden: Golden, native: octo.Native, name: str, noise: dict) -> None:
    """Samples with the tasks that Octo's create_tasks makes of a text, and of goals."""
    task = {
        path.removeprefix("create_tasks_lang/"): golden.take(path)
        for path in golden.names("create_tasks_lang/")
    }
    if task and "sample/actions_create_tasks_lang" in golden.outputs:
        got = _sample(native, golden.batch(task=task), {name: noise})[name]["action"]
        golden.compare("sample/actions_create_tasks_lang", got, SAMPLES)
    why = "the task that create_tasks made of goals is not stored"
    golden.excuse("sample/actions_create_tasks_goal", why)


# ---------------------------------------------------------------------------- losses and gradients


def injected(golden: Golden, prefix: str, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """The stored time [B, W, n] and noise [B, W, n, C, A] of Octo's [n, B, W, 1 or C · A]."""
    time, noise = (np.moveaxis(golden.take(f"{prefix}/{part}"), 0, 2) for part in ("time", "noise"))
    return dict(time=time[..., 0], noise=noise.reshape(*noise.shape[:-1], *shape))


def losses(native: octo.Native, variables: Any, batch: types.Batch, keys: dict) -> dict[str, Any]:
    """{head: (its loss, its mean error) in Octo's scale}, from our sums and counts."""
    context = build.make_context(native.config, native.spaces, None, {})
    answers, errors = native.network.apply(variables, batch, "robot", keys)
    found = {}
    for name, (objective, weight) in build.objectives(native.config, context)["robot"].items():
        total, _ = objective(answers, errors, batch)
        count = sum(mask.sum() for mask in objective.mask(batch).values())
        found[name] = weight * total / count
    return found


def _loss_and_gradient(golden: Golden) -> None:
    native, batch = golden.native(), golden.batch()
    (name,) = native.config.streams["robot"].heads
    keys = {name: injected(golden, "loss", _shape(native))}

    def loss(variables):
        return losses(native, variables, batch, keys)[name]

    value, gradient = jax.jit(jax.value_and_grad(loss))(native.variables)
    for part in ("loss", "mse", "value"):
        if f"loss/{part}" in golden.outputs:
            golden.compare(f"loss/{part}", np.asarray(value))
    stored = golden.files.get("grads.npz", {})
    placed, unused = _octo_params.place(stored)
    got = dict(trees.items(jax.device_get(gradient)))
    norm = np.sqrt(sum(np.sum(got[path].astype(np.float64) ** 2) for path in placed))
    if "loss/grad_global_norm" in golden.outputs and placed:
        golden.compare("loss/grad_global_norm", norm)
    _gradients(golden, got)


def _gradients(golden: Golden, got: dict[str, np.ndarray]) -> None:
    """grads.npz, each against 1e-4 of the whole gradient's norm."""
    stored = golden.files.get("grads.npz", {})
    whole = np.sqrt(sum(np.sum(leaf.astype(np.float64) ** 2) for leaf in stored.values()))
    placed, _ = _octo_params.place(stored)
    back = _octo_params.origins(stored)
    for target, reference in placed.items():
        apart = float(np.sqrt(np.sum((got[target].astype(np.float64) - reference) ** 2)))
        for name in back[target]:
            golden.verdicts[f"grads.npz:{name}"] = {
                "max_abs": apart,
                "tolerance": 1e-4 * float(whole),
                "pass": bool(apart <= 1e-4 * whole),
            }


# ------------------------------------------------------------------------------------- other heads


def _answers(golden: Golden) -> None:
    """heads/NAME/…: what each head answers in training, its loss, its likeliest actions."""
    native, batch = golden.native(), golden.batch()
    sampled = _sample(native, batch, {})
    run = jax.jit(lambda v: native.network.apply(v, batch, "robot", {})[0])
    answers = jax.device_get(run(native.variables))
    found = jax.device_get(jax.jit(lambda v: losses(native, v, batch, {}))(native.variables))
    for name, spec in native.config.model.heads.items():
        prefix, bins = f"heads/{name}", spec["type"] == "bins"
        for part in ("loss", "metrics/loss"):
            if f"{prefix}/{part}" in golden.outputs:
                golden.compare(f"{prefix}/{part}", found[name])
        shown = answers[name]["logits" if bins else "action"]
        if f"{prefix}/output" in golden.outputs:
            golden.compare(f"{prefix}/output", shown)
        if f"{prefix}/predict_argmax" in golden.outputs:
            golden.compare(f"{prefix}/predict_argmax", sampled[name]["action"])
        _metrics(golden, prefix, spec, answers[name]["action"], batch)
        drawn = f"{prefix}/predict_sample_key4_shape3"
        if drawn in golden.outputs and not bins:  # nothing is drawn: the same answer again
            again = np.broadcast_to(sampled[name]["action"], golden.outputs[drawn].shape)
            golden.compare(drawn, again)
        golden.excuse(drawn, RANDOM)
    if "sample_actions" in golden.outputs:  # Octo's own is always the head called action
        golden.compare("sample_actions", sampled["action"]["action"])
    golden.excuse("sample_actions_unnorm", "its statistics are not stored")


def _metrics(golden: Golden, prefix: str, spec: dict, action: np.ndarray, batch) -> None:
    """Octo's mean squared error of the answer, and the share of bins that are right."""
    target, mask = batch.targets["action"], batch.target_masks["action"]
    size = action.shape[-1]
    if f"{prefix}/metrics/mse" in golden.outputs:
        apart = np.sum(np.where(mask, (action - target) ** 2, 0.0)) / np.sum(mask)
        golden.compare(f"{prefix}/metrics/mse", size * apart)
    if f"{prefix}/metrics/accuracy" in golden.outputs:
        bins = action_tokenizer.Bins.make(
            prefix,
            count=spec["bins"],
            **{k: spec[k] for k in ("spacing", "low", "high", "beyond")},
        )
        right = bins.tokenize(action) == bins.tokenize(target)
        golden.compare(f"{prefix}/metrics/accuracy", np.sum(right & mask) / np.sum(mask))


def _bins(golden: Golden) -> None:
    for prefix in sorted({name.rpartition("/")[0] for name in golden.names("bin/")}):
        spacing, low, high, count = prefix.removeprefix("bin/").split("_")
        bins = action_tokenizer.Bins.make(
            prefix, count=int(count), spacing=spacing, low=float(low), high=float(high),
            beyond="first",
        )  # fmt: skip
        golden.compare(f"{prefix}/thresholds", bins.thresholds)
        golden.compare(f"{prefix}/ids", bins.tokenize(golden.take(f"{prefix}/x")))
        golden.compare(f"{prefix}/decode_all", bins.decode(np.arange(int(count))))
