"""A ResNet of bottleneck units with group norm, as before the transformer of a hybrid ViT.

    conv 7x7, stride 2 → norm → ReLU → max pool → stage 1 → stage 2 → FiLM → stage 3 → FiLM → …

A stage doubles the features and, from the second on, halves the grid. ResNet-26 has the stages
(2, 2, 2, 2), ResNet-50 (3, 4, 6, 3).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from vla_jax import plugin, types
from vla_jax.backbones import _image
from vla_jax.nn import film as films
from vla_jax.nn import linear, norms

DEBUG = dict(stages=(1, 1), width=8, groups=4)

modality = "image"


class Unit(nn.Module):
    """A bottleneck: conv 1x1 → 3x3 → 1x1 beside a skip, [N, h, w, D] → [N, h', w', 4·width]."""

    width: int
    stride: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The sum of both after a ReLU; the skip is projected where the shape changes."""
        wide = 4 * self.width

        def conv(x, features, side, stride, name, **norm):
            x = _conv(features, side, stride, self.dtype, f"conv_{name}")(x)
            return norms.GroupNorm(self.groups, self.dtype, name=f"norm_{name}", **norm)(x)

        y = nn.relu(conv(x, self.width, 1, 1, "1"))
        y = nn.relu(conv(y, self.width, 3, self.stride, "2"))
        # At first a unit is its skip (Goyal et al. 2017).
        y = conv(y, wide, 1, 1, "3", scale_init=nn.initializers.zeros_init())
        if x.shape[-1] != wide or self.stride != 1:
            x = conv(x, wide, 1, self.stride, "skip")
        return nn.relu(x + y)


class ResNet(_image.ImageEncoder, kw_only=True):
    """Images to the last stage's grid; FiLM after every stage but the first, or after the root."""

    stages: tuple[int, ...]
    width: int
    groups: int

    @property
    def cell(self) -> int:
        """Pixels per row and per column of the grid."""
        return 4 * 2 ** max(0, len(self.stages) - 1)

    @property
    def features(self) -> int:
        """D', the features of the last stage."""
        return self.width * 2 ** (len(self.stages) + 1) if self.stages else self.width

    @nn.compact
    def __call__(self, images: jax.Array, film: jax.Array | None = None) -> jax.Array:
        """[N, rows, columns, features]; UserError when the image or the FiLM vector do not fit."""
        x = _conv(self.width, 7, 2, self.dtype, "conv_root")(self._pixels(images, film))
        x = nn.relu(norms.GroupNorm(self.groups, self.dtype, name="norm_root")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")  # [N, height / 4, width / 4, width]
        if film is not None and not self.stages:
            return films.Film(self.dtype, name="film_0")(x, film)
        for i, units in enumerate(self.stages):
            for j in range(units):
                stride = 2 if i and not j else 1
                name = f"stage_{i + 1}_unit_{j + 1}"
                x = Unit(self.width * 2**i, stride, self.groups, self.dtype, name=name)(x)
            if film is not None and i:
                x = films.Film(self.dtype, name=f"film_{i - 1}")(x, film)
        return x


def make(
    context: types.Context,
    *,
    stages: tuple[int, ...] = (2, 2, 2, 2),
    width: int = 64,
    groups: int = 32,
    normalize: str = "default",
    film: bool = False,
) -> ResNet:
    """The encoder of Octo's vit_encoders.py: ViTResnet; the defaults with `film` are ResNet26FILM.

    `stages` are the numbers of units, `width` the features of the root, `groups` those of the
    group norms. UserError for unknown `normalize`, and for `film` with a single stage, after which
    there is no FiLM.
    """
    shared = _image.arguments(context, "resnet", normalize, film)
    if film and len(stages) == 1:
        raise plugin.UserError(
            f"{shared['where']}: film=True with stages={tuple(stages)}, but FiLM stands after "
            "every stage but the first; give no stage or two and more, or film=False"
        )
    return ResNet(stages=tuple(stages), width=width, groups=groups, **shared)


def _conv(features: int, side: int, stride: int, dtype: Any, name: str) -> linear.Conv:
    """A standardized convolution without bias."""
    return linear.Conv(
        features,
        (side, side),
        (stride, stride),
        dtype=dtype,
        use_bias=False,
        standardize=True,
        name=name,
    )
