"""What a run begins with: shapes, shardings, optimizer; then a fresh, pretrained or resumed state.

Nothing here touches data. The state is made under jit with its shardings, so that no host ever
holds the whole of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from vla_jax import config as config_lib
from vla_jax import plugin, trees
from vla_jax.nn import attention_kernels
from vla_jax.parallel import mesh as meshes
from vla_jax.parallel import processes, sharding
from vla_jax.train import optimizer as optimizers
from vla_jax.train import state as states

# (the parameters as ShapeDtypeStructs with shardings) -> the same tree: those that stay begin
# fresh, numpy arrays are cut, jax's lie as asked and are used up
Pretrained = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Model(Protocol):
    """All that train/ knows of a model."""

    def init(self, key: jax.Array, batches: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of all streams by collection, {"params": {…}}."""

    def apply(
        self, variables: Any, batch: Any, stream: str, keys: Mapping[str, jax.Array]
    ) -> tuple[Any, Any]:
        """(answers, errors) of the stream's heads; `keys` holds one key per row for each head."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A run's shapes on its mesh, before any array is made."""

    mesh: Mesh
    variables: dict[str, Any]  # ShapeDtypeStructs of all parameters
    optimizer: optax.GradientTransformation
    groups: tuple[str, ...]  # the optimizer's, in words
    create: Callable[..., states.TrainState]  # optionally from {path: array}, the rest random
    abstract: states.TrainState  # ShapeDtypeStructs with shardings

    @property
    def shardings(self) -> states.TrainState:
        """The sharding of every leaf of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def report(self) -> str:
        """The mesh, every parameter with its shape, axes and bytes per device, and the groups."""
        table = sharding.report(self.abstract.variables, self.shardings.variables)
        return "\n".join([f"mesh {dict(self.mesh.shape)}", *self.groups, table])


def plan(
    config: config_lib.TrainConfig, model: Model, examples: Mapping[str, Any], mesh: Mesh
) -> Plan:
    """The plan of a run; `examples` are Batches of the config's shapes (values do not matter).

    UserError for tables that do not fit the parameters, batches that do not divide, and a kernel of
    attention that the mesh's devices do not have.
    """
    check_batches(config, mesh)

    def init():
        return dict(model.init(jax.random.key(config.seed), examples))

    with meshes.use(mesh):
        if "attention" in config.model.trunk:
            attention_kernels.check(config.model.trunk["attention"], config.model.dtype)
        variables = jax.eval_shape(init)
        optimizer = optimizers.make(config.optimizer, config.steps, variables)

        def create(given: Mapping[str, jax.Array] | None = None):
            made = trees.map_with_path(
                lambda path, leaf: given[path] if given and path in given else leaf, init()
            )
            ema = config.optimizer.ema is not None
            return states.create(made, config.freeze, optimizer, ema, config.frozen_dtype)

        shapes = jax.eval_shape(create)
    shardings = sharding.state_shardings(
        shapes, variables, config.sharding.rules, mesh, config.sharding.small
    )
    abstract = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), shapes, shardings
    )
    return Plan(
        mesh=mesh,
        variables=variables,
        optimizer=optimizer,
        groups=tuple(optimizers.describe(config.optimizer, shapes.trained)),
        create=create,
        abstract=abstract,
    )


def fresh(plan: Plan, pretrained: Pretrained | None = None) -> states.TrainState:
    """The state before the first train_step, sharded from its first moment on.

    `pretrained` gives values for some parameters; the moving average begins with them too. They
    are donated: what they lie in becomes the state, and no random ones are made beside them.
    """
    # First, since it may refuse, and compiling takes time.
    given = _given(plan, pretrained) if pretrained else {}
    create = jax.jit(
        plan.create,
        out_shardings=plan.shardings,
        donate_argnums=0,
        compiler_options=_cheap_to_compile(plan),
    )
    return processes.beginning_together(create, "the fresh parameters")(given)


def _given(plan: Plan, pretrained: Pretrained) -> dict[str, jax.Array]:
    """{path: array as the state has it} of the parameters that `pretrained` gives."""
    wanted = plan.abstract.variables

    def place(leaf, value):
        if isinstance(value, jax.ShapeDtypeStruct | jax.Array):
            return value
        value = np.asarray(value, leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])

    placed = trees.items(jax.tree.map(place, wanted, pretrained(wanted)))
    return {path: value for path, value in placed if isinstance(value, jax.Array)}


def _cheap_to_compile(plan: Plan) -> dict[str, Any] | None:
    """Compiler options of a program that runs once: on a CPU, optimizing random draws costs more.

    40 arrays of random numbers compile in 20 CPU seconds by default, in 4 without (jax 0.10.2).
    """
    if plan.mesh.devices.flat[0].platform != "cpu":
        return None
    return {"xla_backend_optimization_level": 0 if trees.count(plan.variables) < 2**24 else 1}


def check_intervals(config: config_lib.TrainConfig, measured: Collection[str]) -> None:
    """UserError for an interval below 1, and for a best metric that no validation measures.

    `measured`: the metrics of a validation.
    """
    intervals = {
        "log_every": config.log_every,
        "checkpoint.every": config.checkpoint.every,
        "validation.every": config.validation.every,
    }
    for name, every in intervals.items():
        if every is not None and every < 1:
            raise plugin.UserError(f"config.{name}: got {every}, expected 1 train_step or more")
    keep = config.checkpoint
    if keep.keep_every is not None and (keep.keep_every < 1 or keep.keep_every % keep.every):
        raise plugin.UserError(
            f"config.checkpoint.keep_every: got {keep.keep_every}, expected a multiple of "
            f"config.checkpoint.every ({keep.every}): others are never saved; nearest: "
            f"{max(round(keep.keep_every / keep.every), 1) * keep.every}"
        )
    if not config.patience > 0:
        raise plugin.UserError(f"config.patience: got {config.patience}, expected seconds above 0")
    metric = config.checkpoint.best_metric
    if metric is None:
        return
    if metric not in measured and not any(metric.startswith(f"{name}/") for name in measured):
        raise plugin.UserError(plugin.unknown("config.checkpoint.best_metric", metric, measured))


def check_batches(config: config_lib.TrainConfig, mesh: Mesh) -> None:
    """UserError unless every stream's batch divides over the mesh and the microbatches."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    pieces = config.optimizer.accumulation
    for name, stream in config.streams.items():
        if stream.batch_size % (ways * pieces):
            raise plugin.UserError(
                f"config.streams.{name}.batch_size: {stream.batch_size} is not divisible by {ways} "
                f"(data x fsdp) x {pieces} (optimizer.accumulation); nearest: "
                f"{max(round(stream.batch_size / (ways * pieces)), 1) * ways * pieces}"
            )
