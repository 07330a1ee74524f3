"""The pure train_step and validation step: sums over streams, divided by global counts.

    batches {stream: Batch} ─apply─▶ answers, errors ─objectives─▶ sum, {name: (sum, count)}
    loss = Σ_stream Σ_objective  weight · sum / count,   count = Σ mask of the whole global batch

Counts are taken before gradient accumulation, so that masks, microbatches and hosts stay exact.
Microbatches are strided (rows r ≡ m mod k): every device keeps the rows it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vla_jax import config as config_lib
from vla_jax import plugin, trees
from vla_jax.models import vla
from vla_jax.parallel import mesh as meshes
from vla_jax.train import keys
from vla_jax.train import optimizer as optimizers
from vla_jax.train import state as states

Batches = Mapping[str, Any]
Objectives = Mapping[str, Mapping[str, tuple[Any, config_lib.Schedule]]]  # stream -> name -> (…)
Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, count)
# (variables, batch, stream, {use: key [B]}) -> (answers, errors) of the stream's heads
Apply = Callable[[Any, Any, str, Mapping[str, jax.Array]], tuple[Any, Any]]


def make_train_step(
    apply: Apply,
    objectives: Objectives,
    optimizer: optax.GradientTransformation,
    config: config_lib.TrainConfig,
) -> Callable[[states.TrainState, Batches], tuple[states.TrainState, Metrics]]:
    """The function (state, {stream: Batch}) -> (state, {name: (sum, count)}), to be jitted.

    UserError when an objective that couples rows meets gradient accumulation.
    """
    pieces, rate = (
        config.optimizer.accumulation,
        optimizers.schedule(config.optimizer, config.steps),
    )
    _refuse_coupled(objectives, pieces)

    def loss_fn(trained, frozen, batches, counts, step):
        variables, total, sums = trees.merge(frozen, trained), jnp.zeros(()), {}
        for stream, named in objectives.items():
            batch = batches[stream]
            row_keys = _keys(config, stream, stream, batch)
            if _dropout(config):
                use = f"{stream}/{vla.DROPOUT}"
                row_keys[vla.DROPOUT] = keys.row_keys(config.seed, use, batch.row_id)
            answers, errors = apply(variables, batch, stream, row_keys)
            for name, (objective, weight) in named.items():
                value, metrics = objective(answers, errors, batch)
                total += _weight(weight, step) * value / jnp.maximum(counts[stream][name], 1.0)
                sums[f"{stream}/{name}"] = (value, jnp.zeros(()))  # its count stands outside
                sums |= {f"{stream}/{name}/{key}": pair for key, pair in metrics.items()}
        return total, sums

    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def train_step(state, batches):
        counts = _counts(objectives, batches)

        def piece(batches):
            return gradient(state.trained, state.frozen, batches, counts, state.step)

        (loss, metrics), grads = _accumulate(piece, batches, pieces)
        for stream, named in counts.items():
            for name, count in named.items():
                metrics[f"{stream}/{name}"] = (metrics[f"{stream}/{name}"][0], count)
        after = _advance(state, grads, loss, optimizer, config.optimizer)
        one = jnp.ones(())
        metrics |= {
            "loss": (loss, one),
            "gradient_norm": (_norm(grads), one),
            **{f"gradient_norm/{k}": (_norm(g), one) for k, g in _parts(config, grads).items()},
            "parameter_norm": (_norm(after.trained), one),
            "lr": (rate(state.step), one),
        } | optimizers.metrics(state.opt_state, after.opt_state)
        return after, metrics

    return train_step


def make_eval_step(
    apply: Apply, objectives: Objectives, config: config_lib.TrainConfig
) -> Callable[[Any, Batches], Metrics]:
    """The function (variables, {stream: Batch}) -> {"stream/objective[/metric]": (sum, count)}.

    The batches may be of some of the streams. The random keys are a validation's own, always
    the same.
    """

    def eval_step(variables, batches):
        metrics = {}
        for stream, batch in batches.items():
            row_keys = _keys(config, f"validation/{stream}", stream, batch)
            answers, errors = apply(variables, batch, stream, row_keys)
            counts = _counts({stream: objectives[stream]}, batches)[stream]
            for name, (objective, _) in objectives[stream].items():
                value, extra = objective(answers, errors, batch)
                metrics[f"{stream}/{name}"] = (value, counts[name])
                metrics |= {f"{stream}/{name}/{key}": pair for key, pair in extra.items()}
        return metrics

    return eval_step


def _advance(
    state: states.TrainState,
    grads: Any,
    loss: jax.Array,
    optimizer: optax.GradientTransformation,
    config: config_lib.OptimizerConfig,
) -> states.TrainState:
    """The state after one update of the trained parameters and of their moving average."""
    update = optax.with_extra_args_support(optimizer).update  # most look at no loss
    updates, opt_state = update(grads, state.opt_state, state.trained, loss=loss)
    trained = optax.apply_updates(state.trained, updates)
    ema = state.ema
    if ema is not None:
        ema = optimizers.average(ema, trained, config.ema, state.step)
    return states.TrainState(
        step=state.step + 1, trained=trained, frozen=state.frozen, opt_state=opt_state, ema=ema
    )


def _keys(config: config_lib.TrainConfig, use: str, stream: str, batch: Any) -> dict:
    """{head: key [B]}; `use` is the stream, or keeps validation apart from training."""
    heads = config.streams[stream].heads
    return {name: keys.row_keys(config.seed, f"{use}/{name}", batch.row_id) for name in heads}


def _dropout(config: config_lib.TrainConfig) -> bool:
    """Whether the trunk drops anything in training."""
    trunk = config.model.trunk
    return "dropout" in trunk and trunk["dropout"] > 0


def _counts(objectives: Objectives, batches: Batches) -> dict[str, dict[str, jax.Array]]:
    """{stream: {objective: number of real entries}} of the whole global batch, float32."""
    return {
        stream: {name: objective.count(batches[stream]) for name, (objective, _) in named.items()}
        for stream, named in objectives.items()
    }


def _accumulate(piece: Callable, batches: Batches, pieces: int) -> Any:
    """The sum of `piece` over strided microbatches, one at a time."""
    if pieces == 1:
        return piece(batches)

    def strided(x):  # [B, …] -> [k, B/k, …]
        if x.shape[0] % pieces:
            raise plugin.UserError(
                f"config.optimizer.accumulation: {pieces} does not divide the batch of {x.shape[0]}"
            )
        x = x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]).swapaxes(0, 1)
        return meshes.constrain(x, None, "batch")

    stacked = jax.tree.map(strided, dict(batches))
    shapes = jax.eval_shape(piece, jax.tree.map(lambda x: x[0], stacked))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def body(total, batch):
        return jax.tree.map(jnp.add, total, piece(batch)), None

    return jax.lax.scan(body, zeros, stacked)[0]


def _refuse_coupled(objectives: Objectives, pieces: int) -> None:
    for stream, named in objectives.items():
        for name, (objective, _) in named.items():
            if pieces > 1 and objective.couples_rows:
                raise plugin.UserError(
                    f"config.optimizer.accumulation is {pieces}, but the objective {name!r} of "
                    f"stream {stream!r} compares rows of the whole batch; set it to 1, or drop it"
                )


def _weight(weight: config_lib.Schedule, step: jax.Array) -> jax.Array | float:
    """A constant, or the value at `step` of (step, value) points joined by lines."""
    if isinstance(weight, int | float):
        return weight
    xs, ys = zip(*weight)
    return jnp.interp(step.astype(jnp.float32), jnp.asarray(xs, jnp.float32), jnp.asarray(ys))


def _parts(config: config_lib.TrainConfig, grads: Mapping[str, Any]) -> dict[str, list]:
    """{module or group of the optimizer: its gradients}, e.g. trunk, heads_action, group_1."""
    flat, found = dict(trees.items(grads)), {}
    for path, leaf in flat.items():
        found.setdefault(path.split("/")[1], []).append(leaf)
    for name, paths in optimizers.groups(config.optimizer, grads).items():
        found[name] = [flat[path] for path in paths]
    return found


def _norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))
