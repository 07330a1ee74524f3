"""The tokens of a task group again at every timestep (Octo 1.5's `repeat_task_tokens`).

A repeated token begins as the task's token does, with the task's position; `models/vla.py` reads
`repeats` and makes no table of positions for it. From there on each copy is its own: it sees the
observations of its time, which the task's own tokens never do.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from vla_jax import types

DEBUG: dict = {}


class Repeat(nn.Module):
    """Tokens [B, W, n, D] like those of the task group `repeats`; holds no parameters."""

    repeats: str
    num_tokens: int
    masked: bool

    per_step = True

    @property
    def reads(self) -> tuple[str, ...]:
        """The group that is repeated."""
        return (self.repeats,)

    def __call__(self, batch: types.Batch, groups: dict[str, types.TokenGroup]) -> types.TokenGroup:
        """The task group's tokens, spread over the window."""
        group, real = groups[self.repeats], batch.observation.timestep_mask  # [B, W]

        def spread(x):
            return jnp.broadcast_to(x[:, None], (x.shape[0], real.shape[1], *x.shape[1:]))

        valid = spread(group.valid)
        if self.masked:
            valid = valid & real[..., None]
        return types.TokenGroup(
            tokens=spread(group.tokens), valid=valid, stem=spread(group.stem), grid=group.grid
        )


def make(
    context: types.Context, *, repeats: str = "language", tokens: int = 1, masked: bool = True
) -> Repeat:
    """The repetition of the task group `repeats`, which has `tokens` tokens.

    `masked=False` leaves the tokens real in steps before the episode's beginning, as in Octo.
    """
    return Repeat(repeats, tokens, masked)
