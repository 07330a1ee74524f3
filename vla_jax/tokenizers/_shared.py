"""What this folder's tokenizers share: modules that the model owns, checks of what they read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vla_jax import plugin, types


def module(context: types.Context, name: str) -> Any:
    """The module `name` of `context.shared`; UserError when the config builds none."""
    if name not in context.shared:
        raise plugin.UserError(
            f"tokenizers.{context.name}: needs the shared module {name!r}, but the config's "
            f"`shared` builds {sorted(context.shared) or 'none'}; add it there"
        )
    return context.shared[name]


def entry(where: str, values: Mapping[str, Any], name: str) -> Any:
    """``values[name]``; UserError naming the nearest when a batch does not have it."""
    if name not in values:
        raise plugin.UserError(plugin.unknown(where, name, values))
    return values[name]


def check_shape(where: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """UserError unless the trailing axes of `shape` are `expected`."""
    if tuple(shape[-len(expected) :]) != tuple(expected):
        raise plugin.UserError(
            f"{where}: got shape {tuple(shape)}, expected it to end with {tuple(expected)}"
        )


def pooled(group: types.TokenGroup) -> tuple[jax.Array, jax.Array]:
    """(mean of a task group's valid stem tokens [B, D], whether it has any, bool [B])."""
    weights = group.valid.astype(group.stem.dtype)
    total = jnp.maximum(weights.sum(-1), 1.0)
    return jnp.einsum("Bn,BnD->BD", weights, group.stem) / total[:, None], group.valid.any(-1)
