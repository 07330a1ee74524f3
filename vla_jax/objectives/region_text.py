"""The error of a region-text head over the labelled regions of a picture."""

from __future__ import annotations

import dataclasses

import jax

from vla_jax import types
from vla_jax.objectives import _base

DEBUG = dict()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionText(_base.Objective):
    """The sum of a head's `cross_entropy` [B, W, K] over labelled regions."""

    def mask(self, batch: types.Batch) -> dict[str, jax.Array]:
        """{"region_text": bool [B, W, K]}: the region has a place and a name."""
        place = _base.known(batch, "region_point", self.head)
        return {"region_text": place & _base.known(batch, "region_name", self.head)}

    def __call__(self, answers, errors, batch: types.Batch) -> tuple[jax.Array, _base.Sums]:
        """(sum of nats, {"wrong": (regions named wrongly, regions)})."""
        mask = self.mask(batch)["region_text"]
        total, _ = _base.masked(_base.error(errors, self.head, "cross_entropy"), mask)
        wrong = _base.masked(_base.error(errors, self.head, "wrong"), mask)
        return total, {"wrong": wrong}


def make(context: types.Context, *, head: str) -> RegionText:
    """A RegionText objective of `head`."""
    return RegionText(head=head)
