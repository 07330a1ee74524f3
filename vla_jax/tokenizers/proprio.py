"""One named reading of the body to one token per timestep."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from vla_jax import types
from vla_jax.nn import mlp
from vla_jax.tokenizers import _shared

DEBUG = dict(hidden=(16,))


class Proprio(nn.Module):
    """One token [B, W, 1, D] per timestep: an MLP of the normalised reading of a proprio group."""

    group: str
    size: int
    hidden: tuple[int, ...]
    reads: tuple[str, ...]
    width: int
    dtype: Any

    per_step = True
    num_tokens = 1

    @nn.compact
    def __call__(self, batch: types.Batch, groups: dict[str, types.TokenGroup]) -> types.TokenGroup:
        """The reading's token group; UserError when the batch lacks it or P is not `size`."""
        del groups
        where = f"tokenizers.proprio, group {self.group!r}"
        observation = batch.observation
        reading = _shared.entry(where, observation.proprio, self.group)  # [B, W, P]
        _shared.check_shape(where, reading.shape, (self.size,))
        tokens = mlp.Mlp(self.hidden, self.width, dtype=self.dtype, name="mlp")(
            reading.astype(self.dtype)
        )[:, :, None]  # [B, W, 1, D]
        real = observation.proprio_masks[self.group] & observation.timestep_mask
        return types.TokenGroup(tokens=tokens, valid=real[..., None], stem=tokens)


def make(
    context: types.Context,
    *,
    group: str,
    size: int,
    hidden: tuple[int, ...] = (128,),
    reads: tuple[str, ...] = (),
) -> Proprio:
    """The tokenizer of a proprio group of `size` numbers (P)."""
    return Proprio(group, size, tuple(hidden), tuple(reads), context.width, context.dtype)
