"""What every objective has: a head's name, a mask and sums; never a mean, never a parameter.

    mask(batch)                       {name: bool mask}; its sum is the count of the loss
    count(batch)                      that sum, or what else the loss is divided by
    __call__(answers, errors, batch)  (sum, {name: (sum, count)})

An objective has one mask. The step divides `sum` by `count` of the whole global batch, so that
masks, gradient accumulation and hosts stay exact. The dict holds further figures to
log.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from vla_jax import plugin, types

Reaches = Callable[[str, str], bool]  # (source, target) -> may the target know the source?
Sums = dict[str, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """An objective over the errors of one head."""

    head: str
    couples_rows: ClassVar[bool] = False  # True: a row's error depends on other rows of the batch

    def count(self, batch: types.Batch) -> jax.Array:
        """Float32 scalar that the sum is divided by: how many entries of the mask are real."""
        return sum(jnp.sum(mask, dtype=jnp.float32) for mask in self.mask(batch).values())

    def check(self, reaches: Reaches) -> None:
        """Raises UserError when the stream's visibility defeats the objective; asked at build."""


def known(batch: types.Batch, target: str, head: str) -> jax.Array:
    """The mask of a per-step target where the step is real too: bool, the target mask's shape."""
    mask = target_mask(batch, target, head)
    steps = batch.observation.timestep_mask
    return mask & steps.reshape(steps.shape + (1,) * (mask.ndim - steps.ndim))


def target_mask(batch: types.Batch, target: str, head: str) -> jax.Array:
    """`batch.target_masks[target]`; UserError when the batch has no such target."""
    if target not in batch.target_masks:
        where = f"the objective of head {head!r}: a target that the stream's sources lack"
        raise plugin.UserError(plugin.unknown(where, target, batch.target_masks))
    return batch.target_masks[target]


def error(errors: Mapping[str, Mapping[str, jax.Array]], head: str, name: str) -> jax.Array:
    """One error of one head, float32; UserError when the head or the error is not there."""
    if head not in errors:
        raise plugin.UserError(plugin.unknown("an objective's head", head, errors))
    if name not in errors[head]:
        raise plugin.UserError(plugin.unknown(f"errors of head {head!r}", name, errors[head]))
    return errors[head][name].astype(jnp.float32)


def masked(value: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum of `value` where `mask`, count of `mask`), float32 scalars; the rest may be anything."""
    total = jnp.sum(jnp.where(mask, value.astype(jnp.float32), 0.0))
    return total, jnp.sum(mask.astype(jnp.float32))
