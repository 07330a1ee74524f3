"""Next-token prediction over a group of text tokens, through the tied embedding.

    targets.text     BOS  a   red  car  EOS          [B, T]
    group's token     0   1    2    3    4           (causal_position among themselves)
    predicts          a  red  car  EOS   –           errors [B, T − 1]

The read-out is the shared text embedding transposed, so the head has no parameters of its own.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax import plugin, types
from vla_jax.heads import _base

DEBUG = dict()


class Language(_base.Head, kw_only=True):
    """answer: logits float32 [B, T, V] of the next token; errors: cross_entropy [B, T − 1]."""

    group: str
    text_embedding: nn.Module

    def __call__(self, outputs, heads, batch: types.Batch, carry=None):
        """(answer, errors); errors[:, t] is −log p(text[t + 1] | text[: t + 1], …), in nats."""
        logits = self._logits(outputs)
        text = _base.target(batch, "text")
        if text is None:
            return {"logits": logits}, {}
        if text.shape[1] != logits.shape[1]:
            raise plugin.UserError(
                f"language head: group {self.group!r} has {logits.shape[1]} tokens, targets.text "
                f"has {text.shape[1]}; give both the same max_tokens."
            )
        log_probs = jax.nn.log_softmax(logits[:, :-1], axis=-1)
        right = jnp.take_along_axis(log_probs, text[:, 1:, None], axis=-1)
        return {"logits": logits}, {"cross_entropy": -right[..., 0]}

    def sample(self, outputs, heads, batch: types.Batch, cache, decode, key):
        """({"logits": [B, T, V]}, cache): scores of given text; text is not generated yet."""
        return {"logits": self._logits(outputs)}, cache

    def _logits(self, outputs) -> jax.Array:
        if self.group not in outputs:
            raise plugin.UserError(plugin.unknown("language head's group", self.group, outputs))
        return self.text_embedding.logits(outputs[self.group].final).astype(jnp.float32)


def make(
    context: types.Context,
    *,
    group: str = "text",
    reads: tuple[str, ...] = (),
    detach: tuple[str, ...] = (),
) -> Language:
    """A Language head over the task group `group`; needs the shared module "text_embedding"."""
    _base.check_reads(context, reads, detach)
    return Language(
        reads=tuple(reads),
        detach=tuple(detach),
        group=group,
        text_embedding=_base.shared(context, "text_embedding"),
    )
