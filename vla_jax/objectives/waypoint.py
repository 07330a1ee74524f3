"""The error of a waypoint head: where the hand ends, hindsight from the robot's episodes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from vla_jax import types
from vla_jax.objectives import _base

DEBUG = dict()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Waypoint(_base.Objective):
    """The sum of a head's `waypoint` errors [B, W, P] over steps whose waypoint is known."""

    def mask(self, batch: types.Batch) -> dict[str, jax.Array]:
        """{"waypoint": bool [B, W, P]}."""
        mask = _base.known(batch, "waypoint", self.head)[..., None]
        return {"waypoint": jnp.broadcast_to(mask, batch.targets["waypoint"].shape)}

    def __call__(self, answers, errors, batch: types.Batch) -> tuple[jax.Array, _base.Sums]:
        """(sum, {}) in the normalised units of the proprio group."""
        value = _base.error(errors, self.head, "waypoint")
        return _base.masked(value, self.mask(batch)["waypoint"])[0], {}


def make(context: types.Context, *, head: str) -> Waypoint:
    """A Waypoint objective of `head`."""
    return Waypoint(head=head)
