"""Multi-layer perceptron of the trunk, the proprio tokenizer and the heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax import plugin
from vla_jax.nn import linear
from vla_jax.parallel import mesh

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": nn.gelu,  # the tanh form, as in ViT and Octo
    "relu": nn.relu,
    "silu": nn.silu,
    "tanh": nn.tanh,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function called `name`; UserError naming the nearest for an unknown one."""
    if name not in ACTIVATIONS:
        raise plugin.UserError(plugin.unknown("activation", name, ACTIVATIONS))
    return ACTIVATIONS[name]


class Mlp(nn.Module):
    """[B, ..., D] → [B, ..., features]: Dense and activation per hidden width, then Dense.

    Layers are named ``hidden_0, hidden_1, …, out``. Hidden widths are laid over the mesh axis
    `tensor`.
    """

    hidden: tuple[int, ...]
    features: int
    activation: str = "gelu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, width in enumerate(self.hidden):
            x = linear.Dense(width, dtype=self.dtype, name=f"hidden_{i}")(x)
            # Of an activation only its argument is kept: its parts cost more to store than to make.
            x = jax.checkpoint(activation(self.activation), prevent_cse=False)(x)
            x = mesh.constrain(x, "batch", *(None,) * (x.ndim - 2), "tensor")  # [B, ..., F]
        return linear.Dense(self.features, dtype=self.dtype, name="out")(x)
