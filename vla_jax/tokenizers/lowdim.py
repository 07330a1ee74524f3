"""Readings of the body to a token per number, as it is or in bins (Octo's LowdimObsTokenizer).

    reading [B, W, P] ─┬─ as it is       [B, W, P, 1] ─┐
                       └─ bins, one-hot  [B, W, P, V] ─┴─ Dense → tokens [B, W, P, D]

A token per number makes long sequences: for a new network `proprio`, one token per reading, is the
better choice. Octo: model/components/tokenizers.py.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax import types
from vla_jax.codecs import action_tokenizer
from vla_jax.nn import linear
from vla_jax.tokenizers import _shared

DEBUG: dict = {}


class Lowdim(nn.Module):
    """Tokens [B, W, P, D] of the normalised readings of proprio groups, joined to P numbers."""

    groups: tuple[str, ...]
    size: int
    bins: action_tokenizer.Bins | None
    masked: bool
    reads: tuple[str, ...]
    width: int
    dtype: Any

    per_step = True

    @property
    def num_tokens(self) -> int:
        """P, a token per number."""
        return self.size

    @nn.compact
    def __call__(self, batch: types.Batch, groups: dict[str, types.TokenGroup]) -> types.TokenGroup:
        """The readings' token group; UserError when the batch lacks one or P is not `size`."""
        del groups
        where = f"tokenizers.lowdim, groups {self.groups}"
        seen = batch.observation
        readings = [_shared.entry(where, seen.proprio, group) for group in self.groups]
        reading = jnp.concatenate(readings, axis=-1)
        _shared.check_shape(where, reading.shape, (self.size,))
        if self.bins is None:
            stem = reading[..., None]
        else:
            stem = jax.nn.one_hot(self.bins.tokenize(reading), self.bins.count)
        stem = stem.astype(self.dtype)  # [B, W, P, 1 or V]
        tokens = linear.Dense(self.width, dtype=self.dtype, name="project")(stem)
        masks = [
            jnp.broadcast_to(seen.proprio_masks[group][..., None], part.shape)
            for group, part in zip(self.groups, readings)
        ]
        valid = jnp.broadcast_to(seen.timestep_mask[..., None], reading.shape)
        if self.masked:
            valid = valid & jnp.concatenate(masks, axis=-1)
        return types.TokenGroup(tokens=tokens, valid=valid, stem=stem)


def make(
    context: types.Context,
    *,
    groups: tuple[str, ...],
    size: int,
    bins: dict | None = None,
    masked: bool = True,
    reads: tuple[str, ...] = (),
) -> Lowdim:
    """The tokenizer of proprio groups that have `size` numbers (P) together.

    `bins` are arguments of codecs/action_tokenizer.py:Bins; `masked=False` takes a missing reading
    for real, as Octo does. UserError for bins that cannot be.
    """
    where = f"tokenizers.{context.name}"
    made = None if bins is None else action_tokenizer.Bins.make(where, **bins)
    return Lowdim(tuple(groups), size, made, masked, tuple(reads), context.width, context.dtype)
