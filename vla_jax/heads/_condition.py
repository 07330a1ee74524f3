"""What a head that predicts actions or waypoints knows: read answers, proprio and tokens.

A read head's answer is turned into features by the names of its entries:

    point    [B, W, 2]  ->  x, y, x², y², x·y                        5 numbers
    waypoint [B, W, P]  ->  waypoint − hand in units of 10 cm, and
                            tanh of twice that                       6 numbers

The tanh keeps full resolution near the target and a bounded direction far from it. The difference
is taken in metres: `proprio group * scale` of the row's dataset key (the shift cancels).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vla_jax import plugin, types
from vla_jax.heads import _pool

OFFSET_UNIT = 0.1  # m
POSITION_SIZE = 3  # a proprio group that waypoints are relative to begins with x, y, z


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """The input vector [B, W, F] of a head, float32; holds no parameters.

    Where there is a `source`, the head makes its `_pool.Pool`, which may have some.
    """

    source: _pool.Source | None
    reads: tuple[str, ...]
    proprio: tuple[str, ...]
    relative_to: str | None
    scale: tuple  # [dataset_key][P], SI per normalised unit of the group `relative_to`

    def __call__(
        self,
        outputs: Mapping[str, types.Output],
        heads: Mapping[str, Any],
        batch: types.Batch,
        pool: _pool.Pool | None,
    ) -> jax.Array:
        """Features of the answers in the order of `reads`, then proprio, then the pooled tokens."""
        parts = []
        for name in self.reads:
            parts += self._features(name, heads[name], batch)
        parts += [proprio(batch, group) for group in self.proprio]
        if pool is not None:
            parts.append(pool(outputs)[:, :, 0])
        return jnp.concatenate([part.astype(jnp.float32) for part in parts], axis=-1)

    def by_token(
        self,
        outputs: Mapping[str, types.Output],
        heads: Mapping[str, Any],
        batch: types.Batch,
        pool: _pool.Pool,
    ) -> jax.Array:
        """[B, W, n, F]: the same, once with each of the n tokens of the source."""
        tokens = pool(outputs).astype(jnp.float32)  # [B, W, n, D]
        if not (self.reads or self.proprio):
            return tokens
        shared = self(outputs, heads, batch, None)[:, :, None]
        shared = jnp.broadcast_to(shared, (*tokens.shape[:3], shared.shape[-1]))
        return jnp.concatenate([shared, tokens], axis=-1)

    def pool(self, dtype: Any) -> _pool.Pool | None:
        """What reads the source's tokens, for a head's `setup`; None without a source."""
        return None if self.source is None else _pool.Pool(source=self.source, dtype=dtype)

    def _features(self, name: str, answer: Mapping[str, jax.Array], batch: types.Batch):
        if "waypoint" in answer:
            return [self._offset(answer["waypoint"], batch)]
        if "point" in answer:
            return [quadratic(answer["point"])]
        raise plugin.UserError(
            f"a head reads {name!r}, whose answer has {sorted(answer)}; expected waypoint or point."
        )

    def _offset(self, waypoint: jax.Array, batch: types.Batch) -> jax.Array:
        if self.relative_to is None:
            return waypoint.astype(jnp.float32)
        hand = proprio(batch, self.relative_to)
        scale = per_row(self.scale, batch.dataset_key)[:, None, :]  # [B, 1, P]
        metres = (waypoint.astype(jnp.float32) - hand) * scale
        offset = metres[..., :POSITION_SIZE] / OFFSET_UNIT
        known = batch.observation.proprio_masks[self.relative_to][..., None]
        offset = jnp.where(known, offset, 0.0)
        return jnp.concatenate([offset, jnp.tanh(2.0 * offset)], axis=-1)


def make(
    context: types.Context,
    *,
    readout: str | None,
    reads: tuple[str, ...],
    proprio: tuple[str, ...],
    relative_to: str | None,
    groups: tuple[str, ...] = (),
    pool: str | None = None,
    count: int | None = None,
) -> Condition:
    """A checked Condition; UserError when there is nothing to predict from.

    `count` tokens are read one by one (`by_token`), as they are or pooled to so many by "map";
    without it, all become one, their mean unless `pool` says otherwise.
    """
    several = {} if count is None else dict(count=count, known=("none", "map"))
    pool = pool or ("mean" if count is None else "none")
    source = _pool.make(context, readout=readout, groups=groups, pool=pool, **several)
    if not (source or reads or proprio):
        raise plugin.UserError(
            f"heads.{context.name}: nothing to predict from; name a readout, token groups, a head "
            "in reads or a proprio group."
        )
    scale = () if relative_to is None else constants(context, relative_to)[1]
    return Condition(
        source=source,
        reads=tuple(reads),
        proprio=tuple(proprio),
        relative_to=relative_to,
        scale=scale,
    )


def constants(context: types.Context, group: str) -> tuple[tuple, tuple]:
    """(shift, scale) of a proprio group, tuples [dataset_key][P]: SI = value * scale + shift."""
    if group not in context.normalizers:
        where = f"heads.{context.name}: normalizer of a proprio group"
        raise plugin.UserError(plugin.unknown(where, group, context.normalizers))
    shift, scale = context.normalizers[group]
    return shift, scale


def per_row(table: tuple, dataset_key: jax.Array) -> jax.Array:
    """Each row's entry of a table [dataset_key][P]: [B, P]; a row without a key gets the first."""
    return jnp.asarray(table, jnp.float32)[jnp.maximum(dataset_key, 0)]


def proprio(batch: types.Batch, group: str) -> jax.Array:
    """A normalised reading [B, W, P], zeros where it is missing."""
    seen = batch.observation
    if group not in seen.proprio:
        raise plugin.UserError(plugin.unknown("a head's proprio group", group, seen.proprio))
    reading = seen.proprio[group].astype(jnp.float32)
    return jnp.where(seen.proprio_masks[group][..., None], reading, 0.0)


def quadratic(point: jax.Array) -> jax.Array:
    """x, y, x², y², x·y of points: [..., 2] -> [..., 5], enough to undo a camera's perspective."""
    point = point.astype(jnp.float32)
    product = point[..., :1] * point[..., 1:]
    return jnp.concatenate([point, point**2, product], axis=-1)
