"""A group's many tokens to a few that the network chooses: positions → norm → attention pool."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax.nn import norms, pooling, positions


class TokenLearner(nn.Module):
    """[..., S, D] → [..., `tokens`, D], the same S in every call (Octo's tokenizers.py).

    After TokenLearner (Ryoo et al. 2021), with attention pooling in place of spatial maps. Raises
    UserError when D does not divide into `heads`.
    """

    tokens: int = 8
    heads: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        place = positions.Learned(*x.shape[-2:], dtype=self.dtype, name="positions")()  # [S, D]
        x = x.astype(self.dtype) + place.reshape((1,) * (x.ndim - 2) + place.shape)
        x = norms.LayerNorm(self.dtype, name="norm")(x)
        return pooling.AttentionPool(self.tokens, self.heads, dtype=self.dtype, name="pool")(x)
