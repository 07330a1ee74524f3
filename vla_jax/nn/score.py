"""The network of diffusion heads: which noise is in a flat action chunk, at a time of the process.

    time ──▶ Fourier features ──▶ MLP ──┐
    given (readout, proprio, …) ────────┼──▶ Dense ──▶ depth × (+ norm → MLP) ──▶ silu ──▶ Dense
    noisy chunk ────────────────────────┘

The MLP-ResNet of Octo's diffusion.py, after IDQL (Hansen-Estruch et al. 2023).
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vla_jax.nn import linear, mlp, norms

LONGEST = 10_000.0  # ratio of the fixed frequencies, as in the transformer's positions
XAVIER = linear.xavier((0,), (1,))


class FourierFeatures(nn.Module):
    """[...] → float32 [..., features]: cosines and sines of a number at learned frequencies.

    With `learned=False` the frequencies fall geometrically from 1 to 1/10,000.
    """

    features: int = 32
    learned: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        half, x = self.features // 2, x.astype(jnp.float32)
        if self.learned:
            frequency = self.param("frequency", nn.initializers.normal(0.2), (half,), jnp.float32)
            x = 2.0 * math.pi * x  # first, as Octo: of 60 rad the last bits are felt
        else:
            powers = np.arange(half, dtype=np.float32) / (half - 1)
            frequency = jnp.asarray(LONGEST**-powers)
        # Products of numbers, no matmul; float32, for bfloat16 is half a turn off at 40·2π.
        angles = x[..., None] * frequency.reshape((1,) * x.ndim + (half,))
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class ScoreNetwork(nn.Module):
    """noisy [..., E], time [...], given [..., F] → the noise in `noisy`, float32 [..., E]."""

    hidden: int = 256
    depth: int = 3
    time_features: int = 32
    learned_time: bool = True
    layer_norm: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, noisy: jax.Array, time: jax.Array, given: jax.Array) -> jax.Array:
        def dense(features: int, name: str) -> linear.Dense:
            return linear.Dense(features, dtype=self.dtype, kernel_init=XAVIER, name=name)

        times = FourierFeatures(self.time_features, self.learned_time, name="time")(time)
        times = nn.silu(dense(2 * self.time_features, "time_hidden")(times))
        times = dense(self.time_features, "time_out")(times)
        parts = (part.astype(self.dtype) for part in (times, given, noisy))
        x = dense(self.hidden, "project")(jnp.concatenate(list(parts), axis=-1))
        for i in range(self.depth):
            y = norms.LayerNorm(self.dtype, name=f"norm_{i}")(x) if self.layer_norm else x
            x = x + mlp.Mlp(
                (4 * self.hidden,), self.hidden, activation="silu", dtype=self.dtype,
                name=f"mlp_{i}",
            )(y)  # fmt: skip
        return dense(noisy.shape[-1], "out")(nn.silu(x)).astype(jnp.float32)
