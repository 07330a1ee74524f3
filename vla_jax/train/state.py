"""What training carries from one train_step to the next: one pytree."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vla_jax import plugin, trees


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Parameters are nested dicts by collection (``params``, ``lora``); paths begin with it."""

    step: jax.Array  # int32 [], train_steps done
    trained: dict[str, Any]  # what the step differentiates
    frozen: dict[str, Any]  # what neither the optimizer nor the average ever sees
    opt_state: Any
    ema: dict[str, Any] | None  # moving average of `trained`, None when it is off

    @property
    def variables(self) -> dict[str, Any]:
        """Trained and frozen parameters in one tree, as the model takes them."""
        return trees.merge(self.frozen, self.trained)

    @property
    def averaged(self) -> dict[str, Any]:
        """Like `variables`, with the moving average where there is one: what a policy serves."""
        return self.variables if self.ema is None else trees.merge(self.frozen, self.ema)


def create(
    variables: Mapping[str, Any],
    freeze: Sequence[tuple[str, bool]],
    optimizer: optax.GradientTransformation,
    ema: bool,
    frozen_dtype: str = "float32",
) -> TrainState:
    """The state before the first train_step; `variables` may be traced or abstract.

    Frozen parameters are stored as `frozen_dtype`: nothing small is ever added to them.
    """
    trained, frozen = split(variables, freeze)
    if frozen_dtype != "float32":
        frozen = jax.tree.map(lambda leaf: leaf.astype(frozen_dtype), frozen)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trained=trained,
        frozen=frozen,
        opt_state=optimizer.init(trained),
        ema=jax.tree.map(jnp.array, trained) if ema else None,  # its own buffers: both are donated
    )


def split(
    variables: Mapping[str, Any], freeze: Sequence[tuple[str, bool]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trained, frozen) by the first-match table; what no row matches is trained.

    UserError for a row that matches no parameter, and when nothing is left to train.
    """
    trees.check_rows("config.freeze", freeze, variables)
    table = (*freeze, (".*", False))
    trained, frozen = trees.split(variables, lambda path: not trees.first_match(table, path))
    if not jax.tree.leaves(trained):
        raise plugin.UserError("config.freeze freezes every parameter; nothing is left to train")
    return trained, frozen
