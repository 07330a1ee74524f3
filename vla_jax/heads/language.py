"""Next-token prediction: the head brings the answer's text into the trunk and reads it out again.

    targets.text     BOS  a   red  car  EOS          [B, T]
    token            0    1   2    3    4            group ``<name>_text``, seen causally
    predicts         a    red car  EOS  –            errors [B, T − 1]

The text is a target, so no tokenizer shows it to the network: `tokens` does, in training only, and
the config's rules say what it sees (what is asked, and itself by ``causal_position``) and that
nothing else reads it. A text belongs to a row, so the stream's window is 1. The read-out is the
shared text embedding transposed.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax import plugin, types
from vla_jax.heads import _base

DEBUG: dict = {}  # T belongs to the stream's data


class Language(_base.Head, kw_only=True):
    """answer: logits float32 [B, T, V] of the next token; errors: cross_entropy [B, T − 1]."""

    group: str
    max_tokens: int  # T
    bos_id: int
    eos_id: int
    pad_id: int
    width: int
    text_embedding: nn.Module

    def setup(self):
        shape = (self.max_tokens, self.width)
        self.position = self.param("position", nn.initializers.normal(0.02), shape)

    @property
    def token_groups(self) -> dict[str, int]:
        """T text tokens at each step."""
        return {self.group: self.max_tokens}

    @property
    def decodes(self) -> bool:
        """`sample` writes text over the trunk's cache."""
        return True

    def tokens(self, batch: types.Batch, key: jax.Array | None):
        """({group: [B, 1, T, D]}, None, None): the target, embedded; {} without one.

        Raises UserError when the target's T is another, or the window is not 1.
        """
        text = _base.target(batch, "text")
        if text is None:
            return {}, None, None
        if text.shape[1] != self.max_tokens:
            raise plugin.UserError(
                f"language head: targets.text has {text.shape[1]} slots, the head "
                f"{self.max_tokens}; give both the same max_tokens."
            )
        window = batch.observation.timestep_mask.shape[1]
        if window != 1:  # older steps' text would be seen in training, and be missing in sampling
            raise plugin.UserError(f"language head: got a window of {window}, expected 1.")
        return {self.group: self._embed(text)[:, None]}, None, None  # [B, 1, T, D]

    def __call__(self, outputs, heads, batch: types.Batch, carry=None):
        """(answer, errors); errors[:, t] is −log p(text[t + 1] | text[: t + 1]).

        Without a target there is nothing to score: ({}, {}).
        """
        text = _base.target(batch, "text")
        if text is None:
            return {}, {}
        logits = self._logits(outputs[self.group].final[:, 0])
        log_probs = jax.nn.log_softmax(logits[:, :-1], axis=-1)
        right = jnp.take_along_axis(log_probs, text[:, 1:, None], axis=-1)
        return {"logits": logits}, {"cross_entropy": -right[..., 0]}

    def sample(self, outputs, heads, batch: types.Batch, cache, decode, key):
        """({"text": int32 [B, T], "logits": [B, T, V]}, cache): the likeliest next token each time.

        Text begins with BOS and is padded after EOS. Each pass decodes all T slots over the prefix.
        """
        rows = batch.row_id.shape[0]
        text = jnp.full((rows, self.max_tokens), self.pad_id, jnp.int32).at[:, 0].set(self.bos_id)
        ended = jnp.zeros((rows,), bool)
        logits = None
        for slot in range(1, self.max_tokens):
            final = decode({self.group: self._embed(text)}, None, cache)[0][self.group]
            logits = self._logits(final)  # [B, T, V]
            best = jnp.argmax(logits[:, slot - 1], axis=-1).astype(jnp.int32)
            text = text.at[:, slot].set(jnp.where(ended, self.pad_id, best))
            ended = ended | (best == self.eos_id)
        return {"text": text, "logits": logits}, cache

    def _embed(self, ids: jax.Array) -> jax.Array:
        pieces = self.text_embedding(ids)  # [B, T, D]
        return pieces + self.position.astype(pieces.dtype)[None]

    def _logits(self, final: jax.Array) -> jax.Array:
        return self.text_embedding.logits(final).astype(jnp.float32)


def make(
    context: types.Context,
    *,
    max_tokens: int = 16,
    group: str | None = None,
    reads: tuple[str, ...] = (),
    detach: tuple[str, ...] = (),
) -> Language:
    """A Language head with T = `max_tokens` slots in group `group` (default ``<name>_text``).

    Needs the shared module "text_embedding" and a text tokenizer, else UserError.
    """
    _base.check_reads(context, reads, detach)
    where = f"heads.{context.name}"
    if max_tokens < 2:
        raise plugin.UserError(f"{where}.max_tokens: got {max_tokens}, expected BOS and one more.")
    if context.text_tokenizer is None:
        raise plugin.UserError(f"{where}: needs a text tokenizer; set config.text_tokenizer.")
    return Language(
        reads=tuple(reads),
        detach=tuple(detach),
        group=group or f"{context.name}_text",
        max_tokens=max_tokens,
        bos_id=context.text_tokenizer.bos_id,
        eos_id=context.text_tokenizer.eos_id,
        pad_id=context.text_tokenizer.pad_id,
        width=context.width,
        text_embedding=_base.shared(context, "text_embedding"),
    )
