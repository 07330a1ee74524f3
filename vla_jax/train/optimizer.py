"""AdamW, Adafactor or Muon with a schedule, and a first-match table of factors per parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vla_jax import config as config_lib
from vla_jax import plugin, trees
from vla_jax.train import muon

FACTORS = ("lr", "weight_decay")
AVERAGED = 100  # gradients that the average norm, against which a spike is judged, goes back
SEEN = 20  # gradients before any is judged
FLAT = 0.01  # a loss's spread is taken to be so much of its average at least
FACTORED_DECAY = 0.8  # Adafactor: the second moment's decay is 1 - step^-0.8


def schedule(config: config_lib.OptimizerConfig, steps: int) -> Callable[[jax.Array], jax.Array]:
    """The learning rate as a function of the train_step: linear warm-up, then the named shape.

    "wsd" stays at lr and falls linearly over the last `decay` train_steps (warm-up, stable, decay:
    Hu et al. 2024, MiniCPM); "piecewise" joins `points` by lines. UserError for points that are not
    there or do not increase, and a decay longer than the run.
    """
    _check_schedule(config, steps)

    def rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum(1.0, (step + 1) / max(config.warmup, 1))
        done = jnp.maximum(step - config.warmup, 0.0)
        if config.schedule == "cosine":
            part = jnp.clip(done / max(steps - config.warmup, 1), 0.0, 1.0)
            shape = config.final + (1 - config.final) * 0.5 * (1 + jnp.cos(jnp.pi * part))
        elif config.schedule == "rsqrt":
            shape = jnp.sqrt(config.timescale / (done + config.timescale))
        elif config.schedule == "wsd":
            left = jnp.clip((steps - step) / max(config.decay, 1), 0.0, 1.0)
            shape = config.final + (1 - config.final) * left
        elif config.schedule == "piecewise":
            at, shares = zip(*config.points)
            shape = jnp.interp(step, jnp.asarray(at, jnp.float32), jnp.asarray(shares))
        else:
            shape = 1.0
        return config.lr * warm * shape

    return rate


def make(
    config: config_lib.OptimizerConfig, steps: int, variables: Mapping[str, Any]
) -> optax.GradientTransformation:
    """The optimizer of the trained part of `variables` (arrays or shapes of all parameters).

    Adafactor (Shazeer & Stern 2018) is used as in big_vision (Zhai et al. 2022): the second moment
    of large matrices is factored, momentum is kept in bfloat16, the step is not scaled by the
    parameter's size. Muon: train/muon.py. With `config.skip` updates take the `loss` too, see
    `skipping`. UserError for a row of `config.groups` that matches no parameter, an unknown factor,
    or values per layer that do not fit the leading axis.
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
    last = optax.GradientTransformation(init, update)
    chain = optax.chain(clip, *_moments(config, variables), last)
    return chain if config.skip is None else skipping(chain, config.skip, config.skip_loss)


class Skipping(NamedTuple):
    """What leaving out updates remembers, around another optimizer's state."""

    inner: Any
    norm: jax.Array  # float32 []: average of the norms of the gradients that were used
    loss: jax.Array  # float32 []: average of the losses that they were of
    spread: jax.Array  # float32 []: the variance of these
    used: jax.Array  # int32 []
    skipped: jax.Array  # int32 []


def skipping(
    optimizer: optax.GradientTransformation, limit: float, limit_loss: float = 0.0
) -> optax.GradientTransformationExtraArgs:
    """`optimizer` without the updates whose loss or gradient is not finite, or far too large.

    Too large is a norm over `limit` times the average of some hundred before, and a loss over
    `limit_loss` standard deviations above theirs (0: none is; OLMo-core's SkipStepOptimizer judges
    both by deviations). An update that is left out changes no state but the count; the train_step
    is counted, the schedule of this optimizer does not advance.
    """

    def init(params):
        zero, none = jnp.zeros((), jnp.int32), jnp.zeros(())
        return Skipping(optimizer.init(params), none, none, none, zero, zero)

    def update(grads, state, params, *, loss, **_):
        norm = optax.tree.norm(grads)
        good, early = jnp.isfinite(norm) & jnp.isfinite(loss), state.used < SEEN
        if limit:
            good &= early | (norm <= limit * state.norm)
        above = loss - state.loss
        if limit_loss:
            # A loss that hardly moves has next to no spread, and any next one would be far from it.
            spread = jnp.maximum(jnp.sqrt(state.spread), FLAT * jnp.abs(state.loss))
            good &= early | (above <= limit_loss * spread)
        whole = jax.tree.map(lambda g: jnp.where(good, g, jnp.zeros((), g.dtype)), grads)
        updates, inner = optimizer.update(whole, state.inner, params)
        updates = jax.tree.map(lambda u: jnp.where(good, u, jnp.zeros((), u.dtype)), updates)
        inner = jax.tree.map(lambda new, old: jnp.where(good, new, old), inner, state.inner)
        used = state.used + good
        share = 1.0 / jnp.clip(used, 1, AVERAGED)
        # The variance of weights that fall with age: Finch 2009, Incremental calculation.
        spread = (1 - share) * (state.spread + share * above**2)
        averages = (state.norm + share * (norm - state.norm), state.loss + share * above, spread)
        before = (state.norm, state.loss, state.spread)
        after = [jnp.where(good, new, old) for new, old in zip(averages, before)]
        return updates, Skipping(inner, *after, used, state.skipped + ~good)

    return optax.GradientTransformationExtraArgs(init, update)


def metrics(before: Any, after: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
    """{"skipped": (1 or 0, 1)} of one update, from the optimizer's states around it; else {}."""
    if not isinstance(after, Skipping):
        return {}
    return {"skipped": ((after.skipped - before.skipped).astype(jnp.float32), jnp.ones(()))}


def groups(config: config_lib.OptimizerConfig, params: Any) -> dict[str, list[str]]:
    """{"group_I": paths of the leaves of `params` whose first match is row I of config.groups}."""
    rows = tuple((pattern, f"group_{i}") for i, (pattern, _) in enumerate(config.groups))
    found: dict[str, list[str]] = {name: [] for _, name in rows}
    for path in trees.paths(params):
        found[trees.first_match(rows, path)].append(path)
    return {name: paths for name, paths in found.items() if paths}


def describe(config: config_lib.OptimizerConfig, params: Any) -> list[str]:
    """A line for each group that has a parameter: its name in the metrics, its row, its size."""
    sizes = {path: math.prod(leaf.shape) for path, leaf in trees.items(params)}
    return [
        f"{name}  {config.groups[int(name.removeprefix('group_'))]}  {len(paths)} parameters, "
        f"{sum(sizes[path] for path in paths):,} numbers trained"
        for name, paths in groups(config, params).items()
    ]


def average(ema: Any, trained: Any, decay: float, step: jax.Array) -> Any:
    """The moving average after `step`; its decay warms up, so that the start is forgotten."""
    step = jnp.asarray(step, jnp.float32)
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, p: a * decay + p * (1 - decay), ema, trained)


def _moments(
    config: config_lib.OptimizerConfig, variables: Mapping[str, Any]
) -> tuple[optax.GradientTransformation, ...]:
    if config.type == "muon":
        return (muon.make(config, variables),)
    if config.type == "adamw":
        return (optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),)
    factored = optax.scale_by_factored_rms(decay_rate=FACTORED_DECAY)
    if not config.b1:
        return (factored,)
    return factored, optax.ema(config.b1, debias=False, accumulator_dtype=jnp.bfloat16)


def _check_schedule(config: config_lib.OptimizerConfig, steps: int) -> None:
    where = "config.optimizer"
    if config.schedule == "wsd" and not 0 < config.decay <= steps:
        raise plugin.UserError(
            f"{where}.decay: got {config.decay}, expected 1 to {steps} train_steps for schedule wsd"
        )
    if config.schedule == "piecewise":
        at = [step for step, _ in config.points]
        if not at or any(b <= a for a, b in zip(at, at[1:])):
            raise plugin.UserError(
                f"{where}.points: got {config.points}, expected (train_step, fraction of lr) at "
                "increasing train_steps for schedule piecewise"
            )


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
