"""Camera views through an image encoder of `backbones/`: Octo's image tokenizer.

    views ┐
          ├ stacked on the channel axis → encoder → rows · columns tokens → TokenLearner → Dense
    goals ┘                                 ↑ FiLM by the task        (stem)

Goals are the task's `goal_VIEW` pictures, the same at every timestep; one that is missing is black.
Octo: model/components/tokenizers.py, ImageTokenizer.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vla_jax import plugin, types
from vla_jax.nn import linear, token_learner
from vla_jax.tokenizers import _shared

DEBUG = dict(
    encoder=dict(type="small_stem", patch=8, widths=(8, 8), features=16, groups=4),
    image_size=(24, 24),
)


class EncodedImage(nn.Module):
    """Tokens [B, W, n, D] of one or more views of one size; `stem` is what the encoder says."""

    encoder: nn.Module
    views: tuple[str, ...]
    goals: tuple[str, ...]
    image_size: tuple[int, int]
    learned: int | None
    reads: tuple[str, ...]
    width: int
    dtype: Any

    per_step = True

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the encoder's tokens."""
        return self.encoder.grid(self.image_size)

    @property
    def num_tokens(self) -> int:
        """n, tokens per timestep."""
        return self.learned or self.grid[0] * self.grid[1]

    @nn.compact
    def __call__(self, batch: types.Batch, groups: dict[str, types.TokenGroup]) -> types.TokenGroup:
        """The views' token group; UserError when a view is missing or has another size."""
        observation = batch.observation
        lead = observation.timestep_mask.shape  # B, W
        images = jnp.concatenate([*self._views(batch), *self._goals(batch)], axis=-1)
        film = None
        if self.reads:
            film = jnp.concatenate([_shared.pooled(groups[name])[0] for name in self.reads], -1)
            film = jnp.broadcast_to(film[:, None], (*lead, film.shape[-1]))
            film = film.reshape(-1, film.shape[-1])  # [B · W, D']
        stem = self.encoder(images.reshape(-1, *images.shape[2:]), film)
        stem = stem.reshape(*lead, -1, stem.shape[-1])  # [B, W, rows · columns, D']
        if self.learned:
            learner = token_learner.TokenLearner(self.learned, dtype=self.dtype, name="learner")
            stem = learner(stem.reshape(-1, *stem.shape[2:])).reshape(*lead, self.learned, -1)
        tokens = linear.Dense(self.width, dtype=self.dtype, name="project")(stem)
        seen = jnp.stack([observation.image_masks[view] for view in self.views]).any(0)
        real = seen & observation.timestep_mask
        valid = jnp.broadcast_to(real[..., None], stem.shape[:3])
        grid = None if self.learned else self.grid
        return types.TokenGroup(tokens=tokens, valid=valid, stem=stem, grid=grid)

    def _views(self, batch: types.Batch):
        """Each view, uint8 [B, W, height, width, 3]."""
        where = "tokenizers.encoded_image"
        for view in self.views:
            image = _shared.entry(where, batch.observation.images, view)
            _shared.check_shape(f"{where}, view {view!r}", image.shape, (*self.image_size, 3))
            yield image

    def _goals(self, batch: types.Batch):
        """Each goal, uint8 [B, W, height, width, 3]."""
        lead, shape = batch.observation.timestep_mask.shape, (*self.image_size, 3)
        for name in (f"goal_{view}" for view in self.goals):
            goal = jnp.zeros((lead[0], *shape), jnp.uint8)
            if name in batch.task.values:
                goal = batch.task.values[name]
                _shared.check_shape(f"tokenizers.encoded_image, {name}", goal.shape, shape)
            yield jnp.broadcast_to(goal[:, None], (*lead, *shape))


def make(
    context: types.Context,
    *,
    encoder: dict,
    views: tuple[str, ...] = ("primary",),
    goals: tuple[str, ...] = (),
    image_size: tuple[int, int] = (256, 256),
    token_learner: int | None = None,
    reads: tuple[str, ...] = (),
) -> EncodedImage:
    """The tokenizer of `views` (and `goals`), each `image_size` pixels (height, width).

    `encoder` is a spec of `backbones/`; `token_learner` is the number of tokens that it leaves;
    `reads` are the task groups whose pooled stems modulate the encoder (FiLM). UserError for
    unknown views and for what the encoder refuses.
    """
    for view in (*views, *goals):
        if view not in types.VIEWS:
            where = f"tokenizers.{context.name}.views"
            raise plugin.UserError(plugin.unknown(where, view, types.VIEWS))
    return EncodedImage(
        encoder=plugin.build("backbones", {**encoder, "film": bool(reads)}, context),
        views=tuple(views),
        goals=tuple(goals),
        image_size=tuple(image_size),
        learned=token_learner,
        reads=tuple(reads),
        width=context.width,
        dtype=context.dtype,
    )
