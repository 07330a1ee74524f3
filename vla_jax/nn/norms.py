"""Norms: statistics in float32 whatever the compute dtype, the result in `dtype`.

A norm may be modulated: `modulate(x, projection)` scales and shifts by a projection that starts at
zero (adaptive norm; DiT, Peebles & Xie 2022; the flow expert of pi0.5).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax import plugin

EPSILON = 1e-6


class LayerNorm(nn.Module):
    """[..., D] → [..., D] of mean 0 and variance 1 over D, scaled and shifted (Ba et al. 2016)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + EPSILON)
        lead = (1,) * (x.ndim - 1)
        return (x * scale.reshape(*lead, -1) + bias.reshape(*lead, -1)).astype(self.dtype)


class RMSNorm(nn.Module):
    """[..., D] → [..., D] of mean square 1 over D, scaled (Zhang & Sennrich 2019)."""

    dtype: Any = jnp.float32
    epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * scale.reshape(*(1,) * (x.ndim - 1), -1)).astype(self.dtype)


class GroupNorm(nn.Module):
    """[N, height, width, D] → same, mean 0 and variance 1 over the pixels and each group of D.

    Wu & He 2018. UserError when D does not divide into `groups`.
    """

    groups: int = 32
    dtype: Any = jnp.float32
    scale_init: Any = nn.initializers.ones_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1]
        if features % self.groups:
            raise plugin.UserError(
                f"group norm {self.name!r}: {features} features do not divide into "
                f"{self.groups} groups; choose widths or groups that divide"
            )
        scale = self.param("scale", self.scale_init, (features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (features,), jnp.float32)
        x = x.astype(jnp.float32)
        x = x - self._mean(x)
        x = x * (jax.lax.rsqrt(self._mean(jnp.square(x)) + EPSILON) * scale[None, None, None])
        return (x + bias[None, None, None]).astype(self.dtype)

    def _mean(self, x: jax.Array) -> jax.Array:
        """[N, 1, 1, D]: each feature's mean over the pixels and its group."""
        # Pixels first: the big reduction keeps the features in the lanes of the processor.
        mean = jnp.mean(x, axis=(1, 2)).reshape(x.shape[0], self.groups, -1)  # [N, G, D / G]
        mean = jnp.mean(mean, axis=-1, keepdims=True)
        size = x.shape[-1] // self.groups
        return jnp.repeat(mean, size, axis=-1).reshape(x.shape[0], 1, 1, -1)


KINDS = {"layer": LayerNorm, "rms": RMSNorm}


def make(kind: str, dtype: Any, name: str | None = None) -> nn.Module:
    """The norm called "layer" or "rms"; UserError for another kind."""
    if kind not in KINDS:
        raise plugin.UserError(plugin.unknown("trunk.norm", kind, KINDS))
    return KINDS[kind](dtype=dtype, name=name)


def modulate(x: jax.Array, modulation: jax.Array) -> jax.Array:
    """Scales x [B, L, D] by 1 + the first half of [B, (L,) 2D] and shifts it by the second."""
    if modulation.ndim == x.ndim - 1:
        modulation = modulation[:, None]  # one condition for all tokens of a row
    scale, shift = jnp.split(modulation, 2, axis=-1)
    return x * (1 + scale) + shift
