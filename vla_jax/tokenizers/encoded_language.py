"""The instruction through a text encoder of `backbones/`, or as an embedding made elsewhere.

    `language` ids → encoder (stem) ┐
                                    ├ Dense → a token per piece
    `language_embedding`     (stem) ┘

The encoder is a frozen one unless `finetune`: no gradient enters it, and config.freeze should keep
it out of the trained parameters (and the optimizer's memory) with the row

    (r"params/tokenizers_NAME/encoder/.*", True)        NAME: "language", as the config calls this

With `in_trunk=False` the trunk never sees it: other tokenizers read its stem (FiLM), as in
CrossFormer, where an embedding of the sentence modulates the images and nothing else.

A batch that brings `language_embedding` beside the ids is believed: the encoder does not run. So a
policy may keep what it said of an instruction (`embed`; models/build.py, Network.embed_text).
Octo: model/components/tokenizers.py, LanguageTokenizer.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax import plugin, types
from vla_jax.nn import linear
from vla_jax.tokenizers import _shared

DEBUG = dict(
    encoder=dict(
        type="t5", vocabulary_size=32_128, width=8, depth=1, heads=2, head_dim=4, mlp=8, dtype=None
    ),
    embedding_size=None,
)

IDS, EMBEDDING = "language", "language_embedding"


class EncodedLanguage(nn.Module):
    """Tokens [B, T, D] of the instruction; `stem` [B, T, D'] is what the encoder says."""

    encoder: nn.Module | None
    max_tokens: int
    finetune: bool
    attend_padding: bool
    in_trunk: bool
    masked: bool
    embedding_size: int | None
    pad_id: int
    reads: tuple[str, ...]
    width: int
    dtype: Any

    per_step = False

    @property
    def num_tokens(self) -> int:
        """T, or none that the trunk sees."""
        return self.max_tokens if self.in_trunk else 0

    @nn.compact
    def __call__(self, batch: types.Batch, groups: dict[str, types.TokenGroup]) -> types.TokenGroup:
        """The instruction's token group; UserError when it is missing or of another size."""
        del groups
        given = EMBEDDING in batch.task.values
        if self.encoder is None or (given and not self.is_initializing()):
            stem, valid = self._given(batch.task)
        else:
            ids = _shared.entry("tokenizers.encoded_language", batch.task.values, IDS)  # [B, T]
            valid = batch.task.masks[IDS]
            stem = self.embed(ids, valid)
        if self.attend_padding:
            valid = jnp.broadcast_to(valid.any(-1, keepdims=True), valid.shape)
        if not self.masked:
            valid = jnp.ones_like(valid)
        stem = stem.astype(self.dtype)
        if not self.in_trunk:
            return types.TokenGroup(tokens=stem[:, :0], valid=valid, stem=stem)
        tokens = linear.Dense(self.width, dtype=self.dtype, name="project")(stem)
        return types.TokenGroup(tokens=tokens, valid=valid, stem=stem)

    def embed(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, T, D'] in the encoder's dtype: what it says of ids and mask [B, T]."""
        where = "tokenizers.encoded_language"
        if self.encoder is None:
            raise plugin.UserError(f"{where}: it has no encoder; give {EMBEDDING!r} in the task")
        _shared.check_shape(f"{where} (max_tokens)", ids.shape, (self.max_tokens,))
        # Where no instruction is, the encoder reads what is written there: an encoder that sees
        # nothing at all says nothing sensible, and Octo's sees the EOS of the empty text.
        seen = jnp.where(mask.any(-1, keepdims=True), mask, ids != self.pad_id)
        stem = self.encoder(ids, seen)
        return stem if self.finetune else jax.lax.stop_gradient(stem)

    def _given(self, task: types.Task) -> tuple[jax.Array, jax.Array]:
        """The batch's own embedding [B, T, D'] and its mask [B, T]."""
        where = f"tokenizers.encoded_language, {EMBEDDING!r}"
        stem = _shared.entry(where, task.values, EMBEDDING)
        mask = task.masks[EMBEDDING]
        if self.finetune:
            raise plugin.UserError(
                f"{where}: given beside an encoder that is fine-tuned, which would not learn from "
                "it; give the ids alone, or finetune=False"
            )
        if stem.ndim == 2:
            stem, mask = stem[:, None], mask[:, None]  # one token
        size = stem.shape[-1] if self.embedding_size is None else self.embedding_size
        _shared.check_shape(
            f"{where} (max_tokens, embedding_size)", stem.shape, (self.max_tokens, size)
        )
        return stem, mask


def make(
    context: types.Context,
    *,
    encoder: dict | None,
    max_tokens: int,
    finetune: bool = False,
    attend_padding: bool = False,
    in_trunk: bool = True,
    masked: bool = True,
    embedding_size: int | None = None,
    embedded_by: str | None = None,
    reads: tuple[str, ...] = (),
) -> EncodedLanguage:
    """The tokenizer of the instruction in T = `max_tokens` tokens.

    Args:
      context: what every tokenizer is told.
      encoder: a text encoder's spec of `backbones/`; None: the task brings `language_embedding`,
        [B, F] (one token, max_tokens=1) or [B, T, F].
      max_tokens: T, the stream's number of piece slots.
      finetune: let gradients into the encoder.
      attend_padding: all T tokens are real where the row has an instruction at all (as in Octo,
        whose released weights need it); False: only its pieces are.
      in_trunk: False: no token of it enters the trunk; others read its stem.
      masked: False: what stands there is real even where the row has no instruction (CrossFormer,
        which embeds the empty text).
      embedding_size: F of a `language_embedding`; None: whatever comes. Random batches
        (`vla smoke`) need it where there is no encoder.
      embedded_by: what made the embeddings that it was trained with, for whoever must make more.
      reads: groups to read; none is needed.

    Raises UserError for an encoder that is no text encoder, or whose table is smaller than the
    vocabulary of the text tokenizer.
    """
    del embedded_by  # the contract says it (models/contract.py)
    words, built = context.text_tokenizer, None
    if encoder is not None:
        built = _encoder(context, encoder)
        embedding_size = built.width if embedding_size is None else embedding_size
    return EncodedLanguage(
        encoder=built,
        max_tokens=max_tokens,
        finetune=finetune,
        attend_padding=attend_padding,
        in_trunk=in_trunk,
        masked=masked,
        embedding_size=embedding_size,
        pad_id=0 if words is None else words.pad_id,
        reads=tuple(reads),
        width=context.width,
        dtype=context.dtype,
    )


def _encoder(context: types.Context, spec: dict) -> nn.Module:
    """The text encoder of a spec; UserError for another kind, or one of fewer pieces than words."""
    where, words = f"tokenizers.{context.name}.encoder", context.text_tokenizer
    if "type" in spec:
        module = plugin.module("backbones", spec["type"])
        if getattr(module, "modality", None) != "text":
            raise plugin.UserError(f"{where}: {spec['type']!r} encodes no text; t5 does")
    built = plugin.build("backbones", spec, context)
    if words is not None and words.vocabulary_size > built.vocabulary_size:
        raise plugin.UserError(
            f"{where}: a table of {built.vocabulary_size} pieces, but the text tokenizer has "
            f"{words.vocabulary_size}; use the tokenizer that the encoder was trained with"
        )
    return built
