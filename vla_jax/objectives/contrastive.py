"""Contrastive loss between the images and the texts of a batch: SigLIP's or CLIP's.

    sigmoid   every pair (i, j) is a yes-or-no question (Zhai et al. 2023), summed over j
    softmax   which text of the batch belongs to image i, and back (Radford et al. 2021), averaged

Each row is compared with every real row of the global batch, so the objective couples rows and
cannot be accumulated over microbatches.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from vla_jax import plugin, types
from vla_jax.objectives import _base

DEBUG = dict()
MASKED = -1e30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive(_base.Objective):
    """The contrastive loss of a head whose answer has image, text [B, D], scale and bias []."""

    couples_rows: ClassVar[bool] = True
    loss: str
    view: str
    text: str
    image_group: str
    image_readout: str
    text_readout: str

    def check(self, reaches: _base.Reaches) -> None:
        """Raises UserError when text reaches the image readout, or the image the text readout."""
        for source, target in (
            (self.text, f"readout_{self.image_readout}"),
            (self.image_group, f"readout_{self.text_readout}"),
        ):
            if reaches(source, target):
                raise plugin.UserError(
                    f"the contrastive objective of head {self.head!r}: {source!r} reaches "
                    f"{target!r}, so a row would match itself for nothing. Give the stream rules, "
                    "readouts and conditioning under which one readout sees only the image, the "
                    "other only the text."
                )

    def mask(self, batch: types.Batch) -> dict[str, jax.Array]:
        """{"contrastive": bool [B]}: the row's newest step has its image, and the row a text."""
        seen = batch.observation
        if self.view not in seen.image_masks:
            where = f"the contrastive objective of head {self.head!r}, view"
            raise plugin.UserError(plugin.unknown(where, self.view, seen.image_masks))
        if self.text not in batch.task.masks:
            where = f"the contrastive objective of head {self.head!r}, text"
            raise plugin.UserError(plugin.unknown(where, self.text, batch.task.masks))
        image = seen.image_masks[self.view][:, -1] & seen.timestep_mask[:, -1]
        return {"contrastive": image & jnp.any(batch.task.masks[self.text], axis=-1)}

    def __call__(self, answers, errors, batch: types.Batch) -> tuple[jax.Array, _base.Sums]:
        """(sum over rows, figures); `matched` counts images whose own text scores highest."""
        if self.head not in answers:
            raise plugin.UserError(plugin.unknown("an objective's head", self.head, answers))
        answer, mask = answers[self.head], self.mask(batch)["contrastive"]
        cosine = jnp.einsum(
            "id,jd->ij", answer["image"], answer["text"], precision=jax.lax.Precision.HIGHEST
        )
        logits = cosine * answer["scale"] + answer["bias"]  # [B images, B texts]
        per_row = {"sigmoid": sigmoid, "softmax": softmax}[self.loss](logits, mask)
        total, _ = _base.masked(per_row, mask)
        best = jnp.argmax(jnp.where(mask[None, :], logits, MASKED), axis=1)
        matched = _base.masked(best == jnp.arange(mask.shape[0]), mask)
        return total, {"matched": matched}


def sigmoid(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """SigLIP's error of each image over all real texts: [B, B] -> [B]."""
    sign = 2.0 * jnp.eye(mask.shape[0]) - 1.0
    return jnp.sum(jnp.where(mask[None, :], jax.nn.softplus(-sign * logits), 0.0), axis=1)


def softmax(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """CLIP's error of each row, image to text and text to image averaged: [B, B] -> [B]."""
    to_text = jax.nn.log_softmax(jnp.where(mask[None, :], logits, MASKED), axis=1)
    to_image = jax.nn.log_softmax(jnp.where(mask[:, None], logits, MASKED), axis=0)
    return -0.5 * (jnp.diagonal(to_text) + jnp.diagonal(to_image))


def make(
    context: types.Context,
    *,
    head: str,
    loss: str = "sigmoid",
    view: str = "primary",
    text: str = "language",
    image_group: str | None = None,
    image_readout: str = "image",
    text_readout: str = "text",
) -> Contrastive:
    """A Contrastive objective of `head` between `view` and task entry `text` (and its group).

    `image_group` is the token group of the view (default: of the view's name); the readouts are the
    head's. Raises UserError for an unknown loss.
    """
    if loss not in ("sigmoid", "softmax"):
        where = f"objectives.{context.name}.loss"
        raise plugin.UserError(plugin.unknown(where, loss, ("sigmoid", "softmax")))
    return Contrastive(
        head=head,
        loss=loss,
        view=view,
        text=text,
        image_group=image_group or view,
        image_readout=image_readout,
        text_readout=text_readout,
    )
