"""The error of a pointing head: cross-entropy of its cells and L1 of its mean point."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from vla_jax import types
from vla_jax.objectives import _base

DEBUG = dict()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pointing(_base.Objective):
    """The weighted sum of a head's `cross_entropy` and `l1`, both [B, W]."""

    cross_entropy: float
    l1: float

    def mask(self, batch: types.Batch) -> dict[str, jax.Array]:
        """{"point": bool [B, W]}."""
        return {"point": _base.known(batch, "point", self.head)}

    def __call__(self, answers, errors, batch: types.Batch) -> tuple[jax.Array, _base.Sums]:
        """(sum, figures); `distance` is from the 3x3 peak to the target, in image sizes."""
        mask = self.mask(batch)["point"]
        cross_entropy = _base.error(errors, self.head, "cross_entropy")
        l1 = _base.error(errors, self.head, "l1")
        total, _ = _base.masked(self.cross_entropy * cross_entropy + self.l1 * l1, mask)
        apart = jax.lax.stop_gradient(answers[self.head]["peak"]) - batch.targets["point"]
        return total, {
            "cross_entropy": _base.masked(cross_entropy, mask),
            "l1": _base.masked(l1, mask),
            "distance": _base.masked(jnp.linalg.norm(apart, axis=-1), mask),
        }


def make(
    context: types.Context, *, head: str, cross_entropy: float = 1.0, l1: float = 2.0
) -> Pointing:
    """A Pointing objective of `head` with the weights of its two parts."""
    return Pointing(head=head, cross_entropy=cross_entropy, l1=l1)
