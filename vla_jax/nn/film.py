"""FiLM: features scaled and shifted by a vector, not at all at first (Perez et al. 2018)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax.nn import linear


class Film(nn.Module):
    """x [N, ..., D] → x · (1 + scale) + shift in `dtype`, both projected from a vector [N, F].

    Both projections start at zero, so that a fresh one changes nothing
    (Octo's film_conditioning_layer.py, after RT-1).
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, vector: jax.Array) -> jax.Array:
        lead = (x.shape[0],) + (1,) * (x.ndim - 2)
        scale, shift = (
            linear.Dense(
                x.shape[-1],
                dtype=self.dtype,
                kernel_init=nn.initializers.zeros_init(),
                name=name,
            )(vector).reshape(*lead, -1)
            for name in ("scale", "shift")
        )
        return x.astype(self.dtype) * (1 + scale) + shift
