"""AdamW with a schedule, and a first-match table of factors per parameter, or per layer of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vla_jax import config as config_lib
from vla_jax import plugin, trees

FACTORS = ("lr", "weight_decay")


def schedule(config: config_lib.OptimizerConfig, steps: int) -> Callable[[jax.Array], jax.Array]:
    """The learning rate as a function of the train_step: linear warm-up, then the named shape."""

    def rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum(1.0, (step + 1) / max(config.warmup, 1))
        done = jnp.maximum(step - config.warmup, 0.0)
        if config.schedule == "cosine":
            part = jnp.clip(done / max(steps - config.warmup, 1), 0.0, 1.0)
            shape = config.final + (1 - config.final) * 0.5 * (1 + jnp.cos(jnp.pi * part))
        elif config.schedule == "rsqrt":
            shape = jnp.sqrt(config.timescale / (done + config.timescale))
        else:
            shape = 1.0
        return config.lr * warm * shape

    return rate


def make(
    config: config_lib.OptimizerConfig, steps: int, variables: Mapping[str, Any]
) -> optax.GradientTransformation:
    """The optimizer of the trained part of `variables` (arrays or shapes of all parameters).

    UserError for a row of `config.groups` that matches no parameter, an unknown factor, or values
    per layer that do not fit the leading axis.
    """
    trees.check_rows("config.optimizer.groups", _typed_by_user(config), variables)
    shapes = dict(trees.items(variables))

    def factor(name):
        return lambda path, leaf: _factor(config, name, path, shapes[path].shape)

    rate = schedule(config, steps)

    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates, state, params):
        lr = trees.map_with_path(factor("lr"), params)
        decay = trees.map_with_path(factor("weight_decay"), params)
        now = rate(state.count)
        updates = jax.tree.map(
            lambda u, p, scale, d: -now * scale * (u + config.weight_decay * d * p),
            *(updates, params, lr, decay),
        )
        return updates, optax.ScaleByScheduleState(count=state.count + 1)

    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    return optax.chain(clip, adam, optax.GradientTransformation(init, update))


def average(ema: Any, trained: Any, decay: float, step: jax.Array) -> Any:
    """The moving average after `step`; its decay warms up, so that the start is forgotten."""
    step = jnp.asarray(step, jnp.float32)
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, p: a * decay + p * (1 - decay), ema, trained)


def _typed_by_user(config: config_lib.OptimizerConfig) -> tuple:
    """The rows to check for typos: the default table fits networks without a bias too."""
    default = config_lib.OptimizerConfig().groups
    return tuple(row for row in config.groups if row not in default)


def _factor(config: config_lib.OptimizerConfig, name: str, path: str, shape: tuple) -> Any:
    """A row's factor for one parameter: a float, or [layer, 1, …] for one value per layer."""
    row = trees.first_match(config.groups, path)
    for key in row:
        if key not in FACTORS:
            raise plugin.UserError(
                plugin.unknown(f"config.optimizer.groups at {path}", key, FACTORS)
            )
    value = row[name] if name in row else 1.0
    if not isinstance(value, tuple):
        return float(value)
    if not shape or len(value) != shape[0]:
        raise plugin.UserError(
            f"config.optimizer.groups at {path}: {len(value)} values of {name} for shape "
            f"{tuple(shape)}; give one value, or one per layer of the leading axis"
        )
    return np.asarray(value, np.float32).reshape(-1, *(1,) * (len(shape) - 1))
