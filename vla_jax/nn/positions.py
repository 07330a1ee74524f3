"""Where a token stands: learned tables per token group, and rotary positions."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax import plugin


class Learned(nn.Module):
    """A group's table of positions, normal with deviation 0.02 (Octo's: per timestep and token).

    `steps` is the longest window, 0 for a timeless group. Called with the window W, it returns
    [W, n, D] or, timeless, [n, D], in `dtype`. A shorter window takes the newest rows, so that the
    last row always means "now"; with `oldest` the first ones, as Octo. UserError when the window is
    longer than the table.
    """

    tokens: int
    width: int
    steps: int = 0
    dtype: Any = jnp.float32
    oldest: bool = False

    @nn.compact
    def __call__(self, window: int = 0) -> jax.Array:
        shape = (self.steps, self.tokens, self.width) if self.steps else (self.tokens, self.width)
        table = self.param("table", nn.initializers.normal(0.02), shape, jnp.float32)
        if self.steps:
            if not 0 < window <= self.steps:
                raise plugin.UserError(
                    f"positions {self.name!r}: window {window} does not fit a table of "
                    f"{self.steps} steps"
                )
            table = table[:window] if self.oldest else table[self.steps - window :]
        return table.astype(self.dtype)


def rotate(x: jax.Array, position: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Turns x [B, L, N, H] by its position [B, L] (RoPE, Su et al. 2021).

    The halves of H are paired, as in Gemma. Angles are float32, the result has x's dtype.
    ValueError for an odd H.
    """
    half, odd = divmod(x.shape[-1], 2)
    if odd:
        raise ValueError(f"positions.rotate: head dim {x.shape[-1]} is odd")
    frequency = base ** -(jnp.arange(half, dtype=jnp.float32) / half)
    angle = position.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None]
    sin, cos = jnp.sin(angle), jnp.cos(angle)  # [B, L, 1, H/2]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
