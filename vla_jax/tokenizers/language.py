"""The instruction to task tokens: one pooled token, or a token per piece.

`stem` is the shared text embedding before any projection: the pooled vector as [B, 1, D'], or the
pieces' [B, T, D']; region-text and FiLM read it there.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from vla_jax import plugin, types
from vla_jax.nn import linear
from vla_jax.tokenizers import _shared

DEBUG: dict = {}  # the number of pieces belongs to the stream's data, not to this network

MODES = ("pooled", "pieces")


class Language(nn.Module):
    """Tokens [B, 1, D] (mode "pooled") or [B, T, D] ("pieces") of the task's `language` entry."""

    embedding: nn.Module
    max_tokens: int
    mode: str
    reads: tuple[str, ...]
    width: int
    dtype: Any

    per_step = False

    @property
    def num_tokens(self) -> int:
        """n: 1 when pooled, else T."""
        return 1 if self.mode == "pooled" else self.max_tokens

    @nn.compact
    def __call__(self, batch: types.Batch, groups: dict[str, types.TokenGroup]) -> types.TokenGroup:
        """The instruction's token group; UserError when the batch lacks it or T is another."""
        del groups
        where = "tokenizers.language"
        ids = _shared.entry(where, batch.task.values, "language")  # [B, T]
        mask = batch.task.masks["language"]
        if self.mode == "pooled":
            stem = self.embedding.pooled(ids, mask)[:, None]  # [B, 1, D']
            valid = mask.any(-1, keepdims=True)
        else:
            _shared.check_shape(f"{where} (max_tokens)", ids.shape, (self.max_tokens,))
            stem, valid = self.embedding(ids), mask  # [B, T, D']
        stem, tokens = stem.astype(self.dtype), stem.astype(self.dtype)
        if stem.shape[-1] != self.width:
            tokens = linear.Dense(self.width, dtype=self.dtype, name="project")(stem)
        return types.TokenGroup(tokens=tokens, valid=valid, stem=stem)


def make(
    context: types.Context,
    *,
    max_tokens: int = 16,
    mode: str = "pooled",
    reads: tuple[str, ...] = (),
) -> Language:
    """The tokenizer of the instruction; `max_tokens` is T, the stream's number of piece slots.

    Raises UserError for an unknown mode and when the config has no shared text embedding.
    """
    if mode not in MODES:
        raise plugin.UserError(plugin.unknown(f"tokenizers.{context.name}.mode", mode, MODES))
    return Language(
        embedding=_shared.module(context, "text_embedding"),
        max_tokens=max_tokens,
        mode=mode,
        reads=tuple(reads),
        width=context.width,
        dtype=context.dtype,
    )
