"""Three of Octo's optimizer steps with our gradient: its schedule and AdamW, by optax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tools.octo_golden.golden import Golden
from tools.octo_golden.heads import injected, losses
from vla_jax import trees
from vla_jax.models.importers import _octo_params

PEAK, TIMESCALE, DECAY = 3e-4, 10_000, 0.1  # Octo's pretraining config; the goldens warm up in 2
WARMUP, OFFICIAL_WARMUP = 2, 2000
NOISE = 1e-6  # of the gradient's norm


def compare(golden: Golden) -> None:
    """train/stepN/…, lr/…, params_delta_after_3_steps.npz."""
    if "lr/official_steps" in golden.outputs:
        steps = golden.take("lr/official_steps")
        got = np.array([rate(OFFICIAL_WARMUP)(step) for step in steps])
        golden.compare("lr/official_values", got)
    count = len({name.split("/")[1] for name in golden.names("train/")})
    if count:
        _steps(golden, count)


def rate(warmup: int):
    """Octo's rsqrt schedule (train_utils.py): linear from 0, then peak / √((s + T) / T)."""

    def value(step):
        done = jnp.maximum(step - warmup, 0)
        after = PEAK / jnp.sqrt((done + TIMESCALE) / TIMESCALE)
        return jnp.where(step < warmup, PEAK * step / warmup, after)

    return value


def _steps(golden: Golden, count: int) -> None:
    native, batch = golden.native(), golden.batch()
    (name,) = native.config.streams["robot"].heads
    shape = native.config.streams["robot"].action_horizon, native.spaces[0].size
    # Only kernels decay, and the text encoder stays as it is.
    flat = dict(trees.items(native.variables))
    frozen = {path: "tokenizers_language/encoder/" in path for path in flat}
    decays = trees.unflatten({path: path.endswith("/kernel") for path in flat})
    labels = trees.unflatten({p: "frozen" if frozen[p] else "trained" for p in flat})
    still = trees.unflatten(frozen)
    adam = optax.adamw(rate(WARMUP), weight_decay=DECAY, mask=decays, mu_dtype=jnp.bfloat16)
    inner = optax.chain(optax.clip_by_global_norm(1.0), adam)
    optimizer = optax.multi_transform({"trained": inner, "frozen": optax.set_to_zero()}, labels)

    @jax.jit
    def train_step(variables, state, keys):
        value, gradient = jax.value_and_grad(
            lambda v: losses(native, v, batch, {name: keys})[name]
        )(variables)
        updates, state = optimizer.update(gradient, state, variables)
        facts = dict(
            loss=value,
            mse=value,
            grad_norm=optax.global_norm(gradient),
            update_norm=optax.global_norm(updates),
            param_norm=optax.global_norm(
                [
                    leaf
                    for leaf, f in zip(jax.tree.leaves(variables), jax.tree.leaves(still))
                    if not f
                ]
            ),
        )
        return optax.apply_updates(variables, updates), state, facts

    variables, state = native.variables, optimizer.init(native.variables)
    for step in range(count):
        prefix = f"train/step{step}"
        keys = injected(golden, prefix, shape)
        variables, state, facts = train_step(variables, state, keys)
        facts["learning_rate"] = rate(WARMUP)(step)
        for part, value in facts.items():
            if f"{prefix}/{part}" in golden.outputs:
                golden.compare(f"{prefix}/{part}", np.asarray(value))
    _moved(golden, dict(trees.items(jax.device_get(variables))), flat)


def _moved(golden: Golden, after: dict[str, Any], before: dict[str, Any]) -> None:
    """params_delta_after_3_steps.npz: the way of each parameter, against 2% of its length.

    Where the gradient is zero but for rounding (a bias before a group norm, of a key), Adam makes
    steps of full size out of noise: those arrays are left out.
    """
    file = "params_delta_after_3_steps.npz"
    gradients = golden.files.get("grads.npz", {})
    whole = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradients.values()))
    stored = golden.files.get(file, {})
    for name, gradient in gradients.items():
        if name in stored and np.linalg.norm(gradient) <= NOISE * whole:
            golden.excuse(name, "its true gradient is zero: Adam's steps are noise", file)
    stored = {name: v for name, v in stored.items() if f"{file}:{name}" not in golden.excused}
    placed, _ = _octo_params.place(stored)
    back = _octo_params.origins(stored)
    for target, reference in placed.items():
        got = after[target].astype(np.float64) - before[target]
        apart, tolerance = (float(np.linalg.norm(x)) for x in (got - reference, 0.02 * reference))
        for name in back[target]:
            golden.verdicts[f"{file}:{name}"] = {
                "max_abs": apart,
                "tolerance": tolerance,
                "pass": bool(apart <= tolerance),
            }
