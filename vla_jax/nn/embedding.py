"""Pieces of text to vectors: the token embedding, its pooling to one vector, its tied read-out."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vla_jax import plugin


class TextEmbedding(nn.Module):
    """Table of piece embeddings, shared by every tokenizer and head that reads or writes text.

    `pool` says how `pooled` makes one vector of many: "mean", or "query" (a learned query weighs
    the pieces; it starts at the mean). `templates` are id sequences ("touch the"): the longest that
    begins a text is left out of the pool, so that an instruction and a bare name pool alike.
    """

    vocabulary_size: int
    width: int
    pool: str = "mean"
    templates: tuple[tuple[int, ...], ...] = ()
    dtype: Any = jnp.float32

    def setup(self):
        """Makes the table [V, D] and, for `pool="query"`, the query [D]."""
        if self.pool not in ("mean", "query"):
            raise plugin.UserError(
                plugin.unknown("text embedding pool", self.pool, ("mean", "query"))
            )
        shape = (self.vocabulary_size, self.width)
        # Rows of norm 1: scaled by √D they come out of size 1, and tied logits start at size 1
        # (Gemma); a small table also moves fast under Adam, which rare pieces need.
        self.table = self.param(
            "table", nn.initializers.normal(self.width**-0.5), shape, jnp.float32
        )
        if self.pool == "query":
            self.query = self.param(
                "query", nn.initializers.zeros_init(), (self.width,), jnp.float32
            )

    def __call__(self, ids: jax.Array) -> jax.Array:
        """[..., T, D] in `dtype`, of ids int [..., T]."""
        return (self.table[ids] * self.width**0.5).astype(self.dtype)

    def pooled(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """[..., D] in `dtype`: one vector per text, zeros for one that is all padding.

        A text that is nothing but a template is pooled whole.
        """
        content = mask & ~self._in_template(ids, mask)
        content = jnp.where(content.any(-1, keepdims=True), content, mask)  # [..., T]
        pieces = self(ids).astype(jnp.float32)  # [..., T, D]
        weights = content.astype(jnp.float32)
        if self.pool == "query":
            salience = pieces @ self.query * self.width**-0.5  # [..., T]
            salience = jnp.where(content, salience, -1e30)
            salience = salience - jax.lax.stop_gradient(salience.max(-1, keepdims=True))
            weights = weights * jnp.exp(salience)
        weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-6)
        return jnp.einsum("...T,...TD->...D", weights, pieces).astype(self.dtype)

    def logits(self, x: jax.Array) -> jax.Array:
        """float32 [..., V] of x [..., D]: the tied read-out (Press & Wolf 2017)."""
        table = self.table.astype(self.dtype)
        return jnp.einsum(
            "...D,VD->...V", x.astype(self.dtype), table, preferred_element_type=jnp.float32
        )

    def _in_template(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Marks the pieces of the longest template that begins each text, bool [..., T]."""
        length = jnp.zeros(ids.shape[:-1], jnp.int32)
        for template in sorted(self.templates, key=len):
            n = len(template)
            if 0 < n <= ids.shape[-1]:
                pieces = np.asarray(template, np.int32).reshape((1,) * (ids.ndim - 1) + (n,))
                begins = jnp.all((ids[..., :n] == pieces) & mask[..., :n], axis=-1)
                length = jnp.where(begins, n, length)
        place = np.arange(ids.shape[-1]).reshape((1,) * (ids.ndim - 1) + (-1,))
        return place < length[..., None]
