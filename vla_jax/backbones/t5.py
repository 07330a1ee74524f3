"""T5's encoder: pieces of text to vectors (Raffel et al. 2020), frozen under Octo's policies.

    ids → table → depth x │ norm → attention + a bias by distance → +    no bias vectors, and the
                          │ norm → MLP → +                               query is not scaled
                → final norm → [B, T, D]

Norms divide by the root mean square and subtract nothing. Distances fall into buckets, the near
ones one each, the far ones logarithmically; the first layer's table of biases serves all layers.
T5 1.1 has a gated MLP (Shazeer 2020). There is no dropout: the encoder is frozen as a rule.

Weights come from files: `from_flax` (the copy in Octo's checkpoints) and `from_safetensors`
(Hugging Face) give the tree of parameters, `config_from_hf` the arguments of `make`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vla_jax import plugin, types
from vla_jax.backbones._t5_files import ACTIVATIONS, config_from_hf, from_flax, from_safetensors
from vla_jax.nn import attention, linear, norms
from vla_jax.parallel import mesh

__all__ = ["DEBUG", "T5", "bucket", "config_from_hf", "from_flax", "from_safetensors", "make"]

# The vocabulary stays whole: a smoke test's text comes from the real tokenizer.
DEBUG = dict(vocabulary_size=32_128, width=8, depth=2, heads=2, head_dim=4, mlp=16)

modality = "text"


class Layer(nn.Module):
    """Self-attention with the bias [B, N, T, T] that all layers share, then the MLP."""

    width: int
    heads: int
    head_dim: int
    mlp: int
    epsilon: float
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
        mixed = self._attend(self._norm("attention_norm")(x), bias)
        out = linear.Einsum(
            "BLNH,NHD->BLD",
            (self.heads, self.head_dim, self.width),
            self.dtype,
            kernel_init=nn.initializers.normal((self.heads * self.head_dim) ** -0.5),
            name="out",
        )
        x = mesh.constrain(x + out(mixed), "batch", None, None)
        x = x + self._feed_forward(self._norm("mlp_norm")(x))
        return mesh.constrain(x, "batch", None, None), None

    def _norm(self, name: str) -> norms.RMSNorm:
        return norms.RMSNorm(self.dtype, self.epsilon, name=name)

    def _attend(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """[B, T, N, H] of x [B, T, D]."""

        def into(name, deviation):
            shape = (self.width, self.heads, self.head_dim)
            init = nn.initializers.normal(deviation)
            y = linear.Einsum("BLD,DNH->BLNH", shape, self.dtype, kernel_init=init, name=name)(x)
            return mesh.constrain(y, "batch", None, "tensor", None)

        # Scores are not divided by √H: the query's kernel begins that much smaller instead.
        query = into("query", (self.width * self.head_dim) ** -0.5)
        key, value = into("key", self.width**-0.5), into("value", self.width**-0.5)
        scores = jnp.einsum("BLNH,BSNH->BNLS", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores + bias, axis=-1)
        return jnp.einsum("BNLS,BSNH->BLNH", weights.astype(self.dtype), value)

    def _feed_forward(self, x: jax.Array) -> jax.Array:
        """[B, T, D] of x [B, T, D]; gated, `gate` is the half that goes through the activation."""

        def dense(name, fan_in, features):
            init = nn.initializers.normal(fan_in**-0.5)
            return linear.Dense(features, False, self.dtype, kernel_init=init, name=name)

        hidden = dense("hidden", self.width, self.mlp)(x)
        if self.activation == "relu":
            hidden = nn.relu(hidden)
        else:
            hidden = nn.gelu(dense("gate", self.width, self.mlp)(x)) * hidden
        hidden = mesh.constrain(hidden, "batch", None, "tensor")  # [B, T, F]
        return dense("mlp_out", self.mlp, self.width)(hidden)


class T5(nn.Module):
    """[B, T, D] in `dtype` of ids int32 [B, T] and mask bool [B, T]; see the module's drawing.

    Pieces where the mask is False are seen by none; their own vectors are finite and mean nothing.
    """

    vocabulary_size: int
    width: int
    depth: int
    heads: int
    head_dim: int
    mlp: int
    buckets: int
    max_distance: int
    epsilon: float
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """The pieces' vectors; UserError unless ids and mask have one shape [B, T]."""
        if ids.ndim != 2 or ids.shape != mask.shape:
            raise plugin.UserError(
                f"backbones.t5: ids have shape {ids.shape} and the mask {mask.shape}; expected "
                "[B, T] of both"
            )
        shape = (self.vocabulary_size, self.width)
        table = self.param("table", nn.initializers.normal(1.0), shape, jnp.float32)
        layers = nn.scan(
            Layer,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
        )(
            self.width, self.heads, self.head_dim, self.mlp, self.epsilon, self.activation,
            self.dtype, name="layers",
        )  # fmt: skip
        x = mesh.constrain(table[ids].astype(self.dtype), "batch", None, None)
        x, _ = layers(x, self._bias(mask))
        return norms.RMSNorm(self.dtype, self.epsilon, name="final_norm")(x)

    def _bias(self, mask: jax.Array) -> jax.Array:
        """float32 [B, N, T, T]: how far apart query and key stand, and which keys are no text."""
        init = nn.initializers.normal(self.width**-0.5)
        table = self.param("buckets_bias", init, (self.buckets, self.heads), jnp.float32)
        place = np.arange(mask.shape[1])
        rows = bucket(place[None] - place[:, None], self.buckets, self.max_distance)  # [T, T]
        bias = table[rows].transpose(2, 0, 1)[None]  # [1, N, T, T]
        return bias + jnp.where(mask, 0.0, attention.MASKED)[:, None, None]


def bucket(distance: np.ndarray, buckets: int = 32, max_distance: int = 128) -> np.ndarray:
    """int32 bucket of each distance (key's place minus query's), in 0 … buckets - 1.

    Half of them are for keys before the query and the query itself, half for keys after it. In each
    half, half are one distance each; the others grow logarithmically up to `max_distance`, and the
    last one holds all that is farther.
    """
    half, exact = buckets // 2, buckets // 4
    far = np.abs(distance)
    # In float32 as T5 has it: a distance on the border of two buckets may depend on it.
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.log(np.float32(max_distance / exact)) * np.float32(half - exact)
    coarse = np.minimum(exact + ratio.astype(np.int32), half - 1)
    return (half * (distance > 0) + np.where(far < exact, far, coarse)).astype(np.int32)


def make(
    context: types.Context,
    *,
    vocabulary_size: int,
    width: int,
    depth: int,
    heads: int,
    head_dim: int,
    mlp: int,
    buckets: int = 32,
    max_distance: int = 128,
    epsilon: float = 1e-6,
    activation: str = "relu",
    dtype: str | None = None,
) -> T5:
    """The encoder; `dtype` ("bfloat16") of its computation, None: that of the rest of the network.

    T5-base is vocabulary_size=32128, width=768, depth=12, heads=12, head_dim=64, mlp=3072.
    UserError for an unknown activation or dtype, and for buckets that do not divide into four.
    """
    where = f"backbones.t5 of {context.name}"
    if activation not in ACTIVATIONS:
        raise plugin.UserError(plugin.unknown(f"{where}.activation", activation, ACTIVATIONS))
    if buckets % 4 or not 0 < buckets // 4 < max_distance:
        raise plugin.UserError(
            f"{where}: {buckets} buckets up to a distance of {max_distance}; expected a multiple "
            "of 4, and a distance beyond the fourth part of it"
        )
    known = ("float32", "bfloat16", "float16")
    if dtype is not None and dtype not in known:
        raise plugin.UserError(plugin.unknown(f"{where}.dtype", dtype, known))
    return T5(
        vocabulary_size, width, depth, heads, head_dim, mlp, buckets, max_distance, epsilon,
        activation, context.dtype if dtype is None else jnp.dtype(dtype),
    )  # fmt: skip
