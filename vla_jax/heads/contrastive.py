"""Contrastive image-text learning: two readouts as unit vectors; the objective compares rows.

One readout sees only the image, the other only the text (the objective's `check` refuses anything
else: an image vector that has read its caption matches it for nothing). The learned scale and bias
are CLIP's (Radford et al. 2021) and SigLIP's (Zhai et al. 2023).
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax import plugin, types
from vla_jax.heads import _base
from vla_jax.nn import linear

DEBUG = dict(dim=8)
MAX_SCALE = 100.0


class Contrastive(_base.Head, kw_only=True):
    """answer: image, text float32 [B, dim], unit vectors of the newest step; scale, bias []."""

    image_readout: str
    text_readout: str
    dim: int
    initial_scale: float
    initial_bias: float
    dtype: jnp.dtype

    def setup(self):
        self.image = linear.Dense(self.dim, use_bias=False, dtype=self.dtype)
        self.text = linear.Dense(self.dim, use_bias=False, dtype=self.dtype)
        start = nn.initializers.constant(math.log(self.initial_scale))
        self.log_scale = self.param("log_scale", start, ())
        self.bias = self.param("bias", nn.initializers.constant(self.initial_bias), ())

    def __call__(self, outputs, heads, batch: types.Batch, carry=None):
        """(answer, {}): this head couples rows, so its objective makes the error."""
        return self._features(outputs), {}

    def sample(self, outputs, heads, batch: types.Batch, cache, decode, key):
        """(answer, cache)."""
        return self._features(outputs), cache

    def _features(self, outputs) -> dict[str, jax.Array]:
        image = self.image(_base.readout(outputs, self.image_readout)[:, -1])
        text = self.text(_base.readout(outputs, self.text_readout)[:, -1])
        return {
            "image": unit(image),
            "text": unit(text),
            "scale": jnp.exp(jnp.minimum(self.log_scale, math.log(MAX_SCALE))),
            "bias": self.bias,
        }


def unit(vector: jax.Array) -> jax.Array:
    """`vector` [..., D] at length one, float32; the zero vector stays zero."""
    vector = vector.astype(jnp.float32)
    square = jnp.sum(vector**2, axis=-1, keepdims=True)
    return vector * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def make(
    context: types.Context,
    *,
    image_readout: str = "image",
    text_readout: str = "text",
    dim: int = 128,
    initial_scale: float = 10.0,
    initial_bias: float = -10.0,
    reads: tuple[str, ...] = (),
    detach: tuple[str, ...] = (),
) -> Contrastive:
    """A Contrastive head; scale 10 and bias −10 are SigLIP's, CLIP starts at 1/.07, bias 0."""
    _base.check_reads(context, reads, detach)
    if not 0 < initial_scale <= MAX_SCALE:
        where = f"heads.{context.name}.initial_scale"
        raise plugin.UserError(f"{where}: got {initial_scale}, expected in (0, 100].")
    return Contrastive(
        reads=tuple(reads),
        detach=tuple(detach),
        image_readout=image_readout,
        text_readout=text_readout,
        dim=dim,
        initial_scale=float(initial_scale),
        initial_bias=float(initial_bias),
        dtype=context.dtype,
    )
