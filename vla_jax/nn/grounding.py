"""The space in which image patches and words are compared.

The same two projections are trained by region-text (which patch is called what) and used by FiLM as
a product (which patches does the instruction mean): what a word means on the web steers the robot's
image tokens.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax.nn import linear


class Grounding(nn.Module):
    """Projects patches and words to unit vectors of `dim` numbers."""

    dim: int
    dtype: Any = jnp.float32

    def setup(self):
        """Makes the two projections."""
        self.patch = linear.Dense(self.dim, dtype=self.dtype)
        self.word = linear.Dense(self.dim, dtype=self.dtype)

    def patches(self, stem: jax.Array) -> jax.Array:
        """float32 unit vectors [..., dim] of an image tokenizer's stem [..., D']."""
        return unit(self.patch(stem))

    def words(self, pooled: jax.Array) -> jax.Array:
        """float32 unit vectors [..., dim] of pooled text embeddings [..., D]."""
        return unit(self.word(pooled))


def unit(x: jax.Array) -> jax.Array:
    """Divides x [..., D] by its length, in float32; zeros stay zeros, with finite gradients."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
