"""The cross-entropy of the next text token."""

from __future__ import annotations

import dataclasses

import jax

from vla_jax import types
from vla_jax.objectives import _base

DEBUG = dict()


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextToken(_base.Objective):
    """The sum of a head's `cross_entropy` [B, T − 1] over real tokens after the first (BOS)."""

    def mask(self, batch: types.Batch) -> dict[str, jax.Array]:
        """{"next_token": bool [B, T − 1]}: the token to predict is real, EOS among them."""
        return {"next_token": _base.target_mask(batch, "text", self.head)[:, 1:]}

    def __call__(self, answers, errors, batch: types.Batch) -> tuple[jax.Array, _base.Sums]:
        """(sum of nats, {})."""
        value = _base.error(errors, self.head, "cross_entropy")
        return _base.masked(value, self.mask(batch)["next_token"])[0], {}


def make(context: types.Context, *, head: str) -> NextToken:
    """A NextToken objective of `head`."""
    return NextToken(head=head)
