"""Pointing: a distribution over an image's tokens for "point to the {name}".

    q(readout) · k(image token)  ──softmax──▶  probs [rows, columns]  ──▶  point (x right, y down)

The cells are the tokens of one image group, row-major; the centre of cell (r, c) is
((c + ½)/columns, (r + ½)/rows). The target is spread bilinearly over the four cells around the
point, so that a distribution which fits it has the point as its mean.

Training gives readers of this head the mean of the whole distribution (soft-argmax), which has a
gradient everywhere. Sampling gives the mean of the 3x3 cells around the peak only: with two
candidates the whole mean lies between them, where there is nothing. Where no image token is valid
(a missing or covered camera) the distribution is uniform and the point is the image's centre.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vla_jax import plugin, types
from vla_jax.heads import _base
from vla_jax.nn import linear

DEBUG = dict(dim=8)
MASKED = -1e30  # a finite stand-in for −∞: differences of it stay numbers


class Pointing(_base.Head, kw_only=True):
    """Where a readout points to in an image.

    answer: probs float32 [B, W, rows, columns]; point [B, W, 2]; peak [B, W, 2] (the 3x3 mean).
    errors: cross_entropy [B, W] (nats) and l1 [B, W] (|x error| + |y error| of the soft-argmax).
    """

    readout: str
    image: str
    dim: int
    dtype: jnp.dtype

    def setup(self):
        self.query = linear.Dense(self.dim, dtype=self.dtype)
        self.key = linear.Dense(self.dim, dtype=self.dtype)

    def __call__(self, outputs, heads, batch: types.Batch, carry=None):
        """(answer, errors) of every step; `point` is the soft-argmax. No target, no errors."""
        log_probs, grid = self._log_probs(outputs)
        answer = self._answer(log_probs, grid)
        goal = _base.target(batch, "point")
        if goal is None:
            return answer, {}
        wanted = jnp.where(log_probs > MASKED / 2, bilinear_target(goal, grid), 0.0)
        cross_entropy = -jnp.sum(wanted * jnp.maximum(log_probs, MASKED / 2), axis=-1)
        l1 = jnp.sum(jnp.abs(answer["point"] - goal), axis=-1)
        return answer, {"cross_entropy": cross_entropy, "l1": l1}

    def sample(self, outputs, heads, batch: types.Batch, cache, decode, key):
        """(answer of the newest step, cache); `point` is the 3x3 mean, as `peak`."""
        outputs, heads, batch = _base.newest(outputs, heads, batch)
        answer = _base.squeeze(self._answer(*self._log_probs(outputs)))
        return answer | {"point": answer["peak"]}, cache

    def _log_probs(self, outputs) -> tuple[jax.Array, tuple[int, int]]:
        if self.image not in outputs:
            raise plugin.UserError(plugin.unknown("pointing head's image", self.image, outputs))
        image = outputs[self.image]
        if image.grid is None:
            raise plugin.UserError(f"pointing head: group {self.image!r} is no image group.")
        query = self.query(_base.readout(outputs, self.readout))  # [B, W, dim]
        key = self.key(image.final)  # [B, W, n, dim]
        scores = jnp.einsum("bwd,bwnd->bwn", query, key, preferred_element_type=jnp.float32)
        scores = scores * self.dim**-0.5
        seen = jnp.any(image.valid, axis=-1, keepdims=True)
        scores = jnp.where(image.valid, scores, jnp.where(seen, MASKED, 0.0))
        return jax.nn.log_softmax(scores, axis=-1), image.grid

    def _answer(self, log_probs: jax.Array, grid: tuple[int, int]) -> dict[str, jax.Array]:
        probs = jnp.exp(log_probs)
        return {
            "probs": probs.reshape(*probs.shape[:-1], *grid),
            "point": mean_point(probs, grid),
            "peak": mean_point(around_peak(probs, grid), grid),
        }


def cell_centres(grid: tuple[int, int]) -> jax.Array:
    """(x, y) in [0, 1] of each cell's centre, row-major: [n, 2]."""
    rows, columns = grid
    y, x = jnp.meshgrid(
        (jnp.arange(rows) + 0.5) / rows, (jnp.arange(columns) + 0.5) / columns, indexing="ij"
    )
    return jnp.stack([x, y], axis=-1).reshape(-1, 2)


def mean_point(probs: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """The mean of the cells' centres under `probs`: [..., n] -> [..., 2]."""
    # Full precision: at a TPU's default the point would be rounded to a hundredth of the image.
    return jnp.matmul(probs, cell_centres(grid), precision=jax.lax.Precision.HIGHEST)


def around_peak(probs: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """`probs` [..., n] kept in the 3x3 cells around the largest and renormalised.

    A uniform distribution has no peak and is kept whole.
    """
    cells = jnp.arange(grid[0] * grid[1]).reshape((1,) * (probs.ndim - 1) + (-1,))
    peak = jnp.argmax(probs, axis=-1, keepdims=True)
    near_row = jnp.abs(cells // grid[1] - peak // grid[1]) <= 1
    near_column = jnp.abs(cells % grid[1] - peak % grid[1]) <= 1
    flat = jnp.max(probs, axis=-1, keepdims=True) == jnp.min(probs, axis=-1, keepdims=True)
    kept = jnp.where((near_row & near_column) | flat, probs, 0.0)
    return kept / jnp.sum(kept, axis=-1, keepdims=True)


def bilinear_target(point: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Weights of the four cells around each point: [..., 2] -> [..., n], summing to one.

    Their mean is the point itself, except nearer than half a cell to the border, where it is the
    nearest position between cell centres.
    """

    def weights(value: jax.Array, count: int) -> jax.Array:
        place = jnp.clip(value * count - 0.5, 0.0, count - 1.0)[..., None]
        cells = jnp.arange(count, dtype=jnp.float32).reshape((1,) * value.ndim + (count,))
        return jnp.maximum(0.0, 1.0 - jnp.abs(place - cells))

    rows, columns = grid
    across, down = weights(point[..., 0], columns), weights(point[..., 1], rows)
    joint = down[..., :, None] * across[..., None, :]  # [..., rows, columns]
    return joint.reshape(*point.shape[:-1], rows * columns)


def make(
    context: types.Context,
    *,
    readout: str,
    image: str = "primary",
    dim: int = 64,
    reads: tuple[str, ...] = (),
    detach: tuple[str, ...] = (),
) -> Pointing:
    """A Pointing head from `readout` over the tokens of image group `image`; it reads no head."""
    _base.check_reads(context, reads, detach)
    return Pointing(
        reads=tuple(reads),
        detach=tuple(detach),
        readout=readout,
        image=image,
        dim=dim,
        dtype=context.dtype,
    )
