"""The error of an action head over the action dimensions and chunk steps that are real."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from vla_jax import plugin, types
from vla_jax.objectives import _base

DEBUG = dict()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Action(_base.Objective):
    """The sum of a head's `action` errors [B, W, C, A], over rows of its action space."""

    shape: tuple[int, int]  # C, A of the head
    index: int | None  # the head's action space in Batch.action_space; None: every row
    by_rows: bool

    def mask(self, batch: types.Batch) -> dict[str, jax.Array]:
        """{"action": bool [B, W, C, A]}, the head's slice of the padded target."""
        action_horizon, size = self.shape
        mask = _base.known(batch, "action", self.head)[:, :, :action_horizon, :size]
        if self.index is not None:
            mask = mask & (batch.action_space == self.index)[:, None, None, None]
        return {"action": mask}

    def count(self, batch: types.Batch) -> jax.Array:
        """How many numbers are real; with `by_rows` times rows, over those of the action space."""
        numbers = super().count(batch)
        if not self.by_rows or self.index is None:
            return numbers
        rows = jnp.sum(batch.action_space == self.index, dtype=jnp.float32)
        return numbers * batch.action_space.shape[0] / jnp.maximum(rows, 1.0)

    def __call__(self, answers, errors, batch: types.Batch) -> tuple[jax.Array, _base.Sums]:
        """(sum, {}) in the head's own units (L1 or L2, normalised)."""
        value = _base.error(errors, self.head, "action")
        return _base.masked(value, self.mask(batch)["action"])[0], {}


def make(
    context: types.Context,
    *,
    head: str,
    action_space: str | None = None,
    action_horizon: int | None = None,
    by_rows: bool = False,
) -> Action:
    """An Action objective; give the `action_space` and `action_horizon` that the head has.

    With `by_rows` the mean counts as the share of the batch's rows that are of the action space, so
    that heads of several spaces weigh what their data do (CrossFormer, train.py).
    """
    index, size = None, context.action_size
    if action_space is not None:
        names = [space.name for space in context.action_spaces]
        if action_space not in names:
            where = f"objectives.{context.name}.action_space"
            raise plugin.UserError(plugin.unknown(where, action_space, names))
        index = names.index(action_space)
        size = context.action_spaces[index].size
    action_horizon = context.action_horizon if action_horizon is None else action_horizon
    return Action(head=head, shape=(action_horizon, size), index=index, by_rows=by_rows)
