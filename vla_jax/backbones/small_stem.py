"""A few light convolutions, then patches ("Early Convolutions", Xiao et al. 2021).

(conv 3x3, stride 2 → group norm → ReLU) per width → conv onto cells of `patch` px → FiLM
"""

from __future__ import annotations

import flax.linen as nn
import jax

from vla_jax import plugin, types
from vla_jax.backbones import _image
from vla_jax.nn import film as films
from vla_jax.nn import linear, norms

DEBUG = dict(widths=(8, 8), features=16, groups=4)

modality = "image"


class SmallStem(_image.ImageEncoder, kw_only=True):
    """Images to one token per cell of `patch` pixels; weights of the stem are standardized."""

    patch: int
    widths: tuple[int, ...]
    features: int
    groups: int

    @property
    def cell(self) -> int:
        """Pixels per row and per column of the grid."""
        return self.patch

    @nn.compact
    def __call__(self, images: jax.Array, film: jax.Array | None = None) -> jax.Array:
        """[N, rows, columns, features]; UserError when the image or the FiLM vector do not fit."""
        x = self._pixels(images, film)
        for i, width in enumerate(self.widths):
            x = linear.Conv(
                width,
                strides=(2, 2),
                padding=((1, 1), (1, 1)),
                dtype=self.dtype,
                standardize=True,
                name=f"conv_{i}",
            )(x)  # [N, height / 2, width / 2, features]
            x = nn.relu(norms.GroupNorm(self.groups, self.dtype, name=f"norm_{i}")(x))
        side = (self.patch >> len(self.widths),) * 2
        x = linear.Conv(self.features, side, side, "VALID", self.dtype, name="embed")(x)
        return x if film is None else films.Film(self.dtype, name="film")(x, film)


def make(
    context: types.Context,
    *,
    patch: int = 16,
    widths: tuple[int, ...] = (32, 96, 192, 384),
    features: int = 512,
    groups: int = 32,
    normalize: str = "default",
    film: bool = False,
) -> SmallStem:
    """The encoder of Octo's vit_encoders.py: SmallStem; its released models have these defaults.

    SmallStem32 is `patch=32`, SmallStem8 `patch=8, widths=(32, 96, 192)`. `groups` are those of the
    group norms. UserError for unknown `normalize`, and when `patch` is no multiple of the stem's
    stride, 2 per width.
    """
    shared = _image.arguments(context, "small_stem", normalize, film)
    stride = 2 ** len(widths)
    if patch % stride or patch < stride:
        raise plugin.UserError(
            f"{shared['where']}: patch={patch} px is no multiple of {stride} px, to which "
            f"{len(widths)} widths bring the image down; choose another patch or fewer widths"
        )
    return SmallStem(patch=patch, widths=tuple(widths), features=features, groups=groups, **shared)
