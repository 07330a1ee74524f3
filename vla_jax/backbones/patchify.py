"""Each patch of pixels through one linear map, as in ViT (Dosovitskiy et al. 2021)."""

from __future__ import annotations

import flax.linen as nn
import jax

from vla_jax import types
from vla_jax.backbones import _image
from vla_jax.nn import film as films
from vla_jax.nn import linear

DEBUG = dict(features=16)

modality = "image"


class Patchify(_image.ImageEncoder, kw_only=True):
    """Images to one token per patch of `patch` pixels; FiLM after it if asked."""

    patch: int
    features: int

    @property
    def cell(self) -> int:
        """Pixels per row and per column of the grid."""
        return self.patch

    @nn.compact
    def __call__(self, images: jax.Array, film: jax.Array | None = None) -> jax.Array:
        """[N, rows, columns, features]; UserError when the image or the FiLM vector do not fit."""
        side = (self.patch, self.patch)
        x = self._pixels(images, film)
        x = linear.Conv(self.features, side, side, "VALID", self.dtype, name="embed")(x)
        return x if film is None else films.Film(self.dtype, name="film")(x, film)


def make(
    context: types.Context,
    *,
    patch: int = 32,
    features: int = 512,
    normalize: str = "default",
    film: bool = False,
) -> Patchify:
    """The encoder of Octo's vit_encoders.py: PatchEncoder; UserError for unknown `normalize`.

    `patch` is in pixels; images must divide into patches.
    """
    shared = _image.arguments(context, "patchify", normalize, film)
    return Patchify(patch=patch, features=features, **shared)
