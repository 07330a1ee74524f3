"""Region-text: which of a table of names each labelled image patch shows.

    stem patch ──grounding.patches──▶ unit vector ─┐
                                                   ├─ dot × scale ──▶ softmax over names
    name pieces ──pooled──grounding.words──▶ unit ─┘

It reads the image tokenizer's `.stem`, before any conditioning and before the trunk, and the shared
projection that FiLM also uses: what is learned here about a name met only in image-text data
reaches the robot's image tokens. Region-level contrast with words as GLIP (Li et al. 2022); the
learned, clipped scale as CLIP (Radford et al. 2021).
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax import plugin, types
from vla_jax.heads import _base

DEBUG = dict()
MAX_SCALE = 100.0


class RegionText(_base.Head, kw_only=True):
    """Image patches against a table of names.

    answer: names float32 [B, W, n, names], the logits of every patch.
    errors: cross_entropy [B, W, K] of the patch that holds each labelled point, in nats; wrong
    [B, W, K], 1 where another name scores higher (no gradient).
    """

    image: str
    ids: tuple[tuple[int, ...], ...]  # [names][T] padded with zeros
    id_masks: tuple[tuple[bool, ...], ...]  # True = a piece of the name
    initial_scale: float
    text_embedding: nn.Module
    grounding: nn.Module
    dtype: jnp.dtype

    def setup(self):
        start = nn.initializers.constant(math.log(self.initial_scale))
        self.log_scale = self.param("log_scale", start, ())

    def __call__(self, outputs, heads, batch: types.Batch, carry=None):
        """(answer, errors); without labelled regions in the batch there are no errors."""
        output, words = self._image(outputs), self._words()
        answer = {"names": self._logits(output.stem, words)}
        point, name = _base.target(batch, "region_point"), _base.target(batch, "region_name")
        if point is None or name is None:
            return answer, {}
        # Only the labelled patches are compared with the table; XLA drops an answer nobody reads.
        cell = cell_of(point, output.grid)  # [B, W, K]
        patches = jnp.take_along_axis(output.stem, cell[..., None], axis=2)
        log_probs = jax.nn.log_softmax(self._logits(patches, words), axis=-1)
        right = jnp.take_along_axis(log_probs, name[..., None], axis=-1)[..., 0]
        wrong = (right < jnp.max(log_probs, axis=-1)).astype(jnp.float32)
        return answer, {"cross_entropy": -right, "wrong": wrong}

    def sample(self, outputs, heads, batch: types.Batch, cache, decode, key):
        """({"names": [B, n, names]} of the newest step, cache)."""
        outputs, heads, batch = _base.newest(outputs, heads, batch)
        return {"names": self._logits(self._image(outputs).stem, self._words())[:, 0]}, cache

    def _image(self, outputs) -> types.Output:
        if self.image not in outputs:
            raise plugin.UserError(plugin.unknown("region_text head's image", self.image, outputs))
        output = outputs[self.image]
        if output.grid is None or output.stem is None:
            raise plugin.UserError(f"region_text head: group {self.image!r} is no image group.")
        return output

    def _words(self) -> jax.Array:
        pooled = self.text_embedding.pooled(
            jnp.asarray(self.ids, jnp.int32), jnp.asarray(self.id_masks, bool)
        )
        return self.grounding.words(pooled)  # [names, d]

    def _logits(self, stem: jax.Array, words: jax.Array) -> jax.Array:
        patches = self.grounding.patches(stem)  # [B, W, n, d]
        cosine = jnp.einsum("bwnd,vd->bwnv", patches, words, preferred_element_type=jnp.float32)
        return cosine * jnp.exp(jnp.minimum(self.log_scale, math.log(MAX_SCALE)))


def cell_of(point: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """The row-major cell that holds each point (x right, y down, in [0, 1]): [..., 2] -> [...]."""
    rows, columns = grid
    column = jnp.clip(jnp.floor(point[..., 0] * columns), 0, columns - 1)
    row = jnp.clip(jnp.floor(point[..., 1] * rows), 0, rows - 1)
    return (row * columns + column).astype(jnp.int32)


def make(
    context: types.Context,
    *,
    names: tuple[str, ...],
    image: str = "primary",
    initial_scale: float = 10.0,
    reads: tuple[str, ...] = (),
    detach: tuple[str, ...] = (),
) -> RegionText:
    """A RegionText head over `names`, the table that `targets.region_name` indexes.

    Needs the shared modules "text_embedding" and "grounding" and a text tokenizer. Raises UserError
    for an empty or repeated name and a scale outside (0, 100].
    """
    where = f"heads.{context.name}"
    _base.check_reads(context, reads, detach)
    if context.text_tokenizer is None:
        raise plugin.UserError(f"{where}: names need a text tokenizer; set config.text_tokenizer.")
    if not names:
        raise plugin.UserError(f"{where}.names: got none, expected at least one name.")
    if len(set(names)) < len(names):
        repeated = sorted({name for name in names if list(names).count(name) > 1})
        raise plugin.UserError(f"{where}.names: expected distinct names, got repeated {repeated}.")
    if not 0 < initial_scale <= MAX_SCALE:
        raise plugin.UserError(f"{where}.initial_scale: got {initial_scale}, expected in (0, 100].")
    pieces = [[int(piece) for piece in context.text_tokenizer.encode(name)] for name in names]
    for name, found in zip(names, pieces, strict=True):
        if not found:
            raise plugin.UserError(f"{where}.names: {name!r} has no pieces.")
    length = max(len(found) for found in pieces)
    return RegionText(
        reads=tuple(reads),
        detach=tuple(detach),
        image=image,
        ids=tuple(tuple(found + [0] * (length - len(found))) for found in pieces),
        id_masks=tuple(tuple(t < len(found) for t in range(length)) for found in pieces),
        initial_scale=float(initial_scale),
        text_embedding=_base.shared(context, "text_embedding"),
        grounding=_base.shared(context, "grounding"),
        dtype=context.dtype,
    )
