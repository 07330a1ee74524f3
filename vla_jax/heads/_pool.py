"""Which of the trunk's tokens a head reads, and how many become the few that it needs.

    mean       the mean of the real tokens; of all of them where none is real
    mean_all   the mean of all tokens, real or not (Octo, where a head reads observations by mean)
    map        learned queries attend to the real tokens (nn/pooling.py), or to all where none is
    none       the tokens as they are, for heads that need several

Octo's MAPHead is "map"; only that has parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax import plugin, types
from vla_jax.nn import pooling

POOLS = ("mean", "mean_all", "map")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The groups that a head reads and what makes `count` vectors of their tokens."""

    where: str  # the head, for messages
    groups: tuple[str, ...]
    pool: str
    count: int


class Pool(nn.Module):
    """outputs → [B, W, count, D], of the tokens of all groups of the source, one after another.

    UserError for a group that is not there, that has no time axis, or
    whose tokens are not `count` where the pool is "none".
    """

    source: Source
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, outputs: Mapping[str, types.Output]) -> jax.Array:
        source = self.source
        for name in source.groups:
            if name not in outputs:
                raise plugin.UserError(plugin.unknown(f"{source.where}: a group", name, outputs))
            if outputs[name].final.ndim != 4:
                raise plugin.UserError(
                    f"{source.where}: group {name!r} has no time axis; expected groups of the "
                    "observation, or a readout."
                )
        read = [outputs[name] for name in source.groups]
        tokens = jnp.concatenate([output.final for output in read], axis=2)  # [B, W, n, D]
        valid = jnp.concatenate([output.valid for output in read], axis=2)
        if source.pool == "map":
            attend = pooling.AttentionPool(
                probes=source.count, unseeing="mean", dtype=self.dtype, name="map"
            )
            return attend(tokens, valid)
        if source.pool == "mean_all":
            return jnp.mean(tokens, axis=2, keepdims=True)
        if source.pool == "mean":
            real = (valid | ~valid.any(-1, keepdims=True))[..., None]  # [B, W, n, 1]
            count = jnp.sum(real, axis=2, keepdims=True).astype(tokens.dtype)
            return jnp.sum(jnp.where(real, tokens, 0.0), axis=2, keepdims=True) / count
        if tokens.shape[2] != source.count:
            raise plugin.UserError(
                f"{source.where}: {' + '.join(source.groups)} has {tokens.shape[2]} tokens, "
                f"expected {source.count}; give the readout so many, or say pool='map'."
            )
        return tokens


def make(
    context: types.Context,
    *,
    readout: str | None,
    groups: tuple[str, ...],
    pool: str,
    count: int = 1,
    known: tuple[str, ...] = POOLS,
) -> Source | None:
    """The Source of a readout or of groups, None without either; UserError for both."""
    where = f"heads.{context.name}"
    if readout and groups:
        raise plugin.UserError(
            f"{where}: got readout={readout!r} and groups={tuple(groups)}; give one of them."
        )
    if pool not in known:
        raise plugin.UserError(plugin.unknown(f"{where}.pool", pool, known))
    groups = (f"readout_{readout}",) if readout else tuple(groups)
    return Source(where=where, groups=groups, pool=pool, count=count) if groups else None
