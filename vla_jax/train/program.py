"""The programs of a run, each made in one way: what is planned, traced and smoked is what trains.

config ─▶ options of the devices' platform ─┐
plan ─▶ shardings in and out, state donated ┴▶ train_step ─▶ loop │ plan │ profile │ smoke
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.parallel import arrays
from vla_jax.train import start
from vla_jax.train import step as steps


def train_step(
    config: config_lib.TrainConfig,
    model: start.Model,
    objectives: steps.Objectives,
    run: start.Plan,
) -> Any:
    """The jitted (state, {stream: Batch}) -> (state, metrics) of a plan, on its mesh.

    The state given is donated. UserError for options that the platform's XLA does not know.
    """
    return jax.jit(
        steps.make_train_step(model.apply, objectives, run.optimizer, config),
        in_shardings=(run.shardings, arrays.batch_sharding(run.mesh)),
        out_shardings=(run.shardings, arrays.replicated(run.mesh)),
        donate_argnums=0,
        compiler_options=options(config, arrays.replicated(run.mesh)),
    )


def eval_step(
    config: config_lib.TrainConfig,
    model: start.Model,
    objectives: steps.Objectives,
    run: start.Plan,
) -> Any:
    """The jitted (variables, {stream: Batch}) -> metrics of a plan, on its mesh."""
    return jax.jit(
        steps.make_eval_step(model.apply, objectives, config),
        out_shardings=arrays.replicated(run.mesh),
        compiler_options=options(config, arrays.replicated(run.mesh)),
    )


def lower(program: Any, run: start.Plan, batches: Mapping[str, Any]) -> Any:
    """A `train_step` lowered for the shapes of `batches` (jax.stages.Lowered); nothing is run."""
    sharding = arrays.batch_sharding(run.mesh)
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), dict(batches)
    )
    return program.lower(run.abstract, placed)


def options(
    config: config_lib.TrainConfig, where: jax.sharding.Sharding, known_only: bool = False
) -> dict[str, Any] | None:
    """XLA's options of a config on a platform, for jax.jit; None where it has none.

    `where`: the arrays' place, on a mesh or one device, there or planned for. UserError for one
    that this version's XLA does not know; with `known_only` it is left out and logged instead, for
    a checkpoint's config: options change how long a program takes, never what it answers.
    """
    found = vars(config.compiler)
    platform = next(iter(where.device_set)).platform
    given = dict(found[platform]) if platform in found else {}
    for name, value in list(given.items()):
        refused, at = _refused(where, name, value), f"config.compiler.{platform}.{name}"
        if refused and not known_only:
            raise plugin.UserError(
                f"{at}: got {value!r}; XLA (jax {jax.__version__}) says: {refused}. "
                "Give it another value, or leave it out"
            )
        if refused:
            logging.warning("%s of the checkpoint is left out: %s", at, refused)
            del given[name]
    return given or None


@functools.cache
def _refused(where: jax.sharding.Sharding, name: str, value: Any) -> str:
    """What XLA says against an option, or "": it alone knows, so next to nothing is compiled."""
    nothing = jax.jit(lambda x: x, in_shardings=where, compiler_options={name: value})
    try:
        nothing.lower(jax.ShapeDtypeStruct((), "float32")).compile()
    except RuntimeError as error:  # XLA's
        return str(error).splitlines()[0][:300]
    return ""
