"""What image encoders share: pixels to numbers of size 1, the grid's size, checks of inputs."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vla_jax import plugin, types

NORMALIZATIONS = ("default", "imagenet")
# Mean and deviation of ImageNet's red, green and blue, of values in [0, 1].
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ImageEncoder(nn.Module, kw_only=True):
    """Images [N, height, width, 3·k] → [N, rows, columns, `features`] in `dtype`.

    k pictures (views, goals) lie stacked on the channel axis. Subclasses say `cell` and `features`
    and write `__call__(images, film=None)`, which begins with `_pixels`.
    """

    where: str  # of error messages
    normalize: str
    conditioned: bool  # whether calls bring the FiLM vector [N, F]
    dtype: Any

    @property
    def cell(self) -> int:
        """Pixels per row and per column of the grid."""
        raise NotImplementedError

    @nn.nowrap
    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) for images of (height, width); UserError when they do not divide."""
        if any(side % self.cell or not side for side in image_size):
            near = tuple(max(1, round(side / self.cell)) * self.cell for side in image_size)
            raise plugin.UserError(
                f"{self.where}: an image of {tuple(image_size)} px does not divide into cells of "
                f"{self.cell} px; the nearest that does is {near}"
            )
        return tuple(side // self.cell for side in image_size)

    def _pixels(self, images: jax.Array, film: jax.Array | None) -> jax.Array:
        """Images, uint8 or float in [0, 255], as float32 of size 1, once all inputs are checked."""
        if images.ndim != 4:
            raise plugin.UserError(
                f"{self.where}: got images of shape {images.shape}, expected [N, height, width, "
                "channels]"
            )
        self.grid(images.shape[1:3])
        if self.conditioned and film is None:
            raise plugin.UserError(
                f"{self.where}: film=True, but no FiLM vector came; give the task group to read, "
                "or film=False"
            )
        if film is not None:
            if not self.conditioned:
                raise plugin.UserError(
                    f"{self.where}: film=False, but a FiLM vector of shape {film.shape} came; set "
                    "film=True, or read no task group"
                )
            if film.ndim != 2 or film.shape[0] != images.shape[0]:
                raise plugin.UserError(
                    f"{self.where}: got a FiLM vector of shape {film.shape}, expected "
                    f"[{images.shape[0]}, F], a row per image"
                )
        return normalized(self.where, images, self.normalize)


def normalized(where: str, images: jax.Array, normalization: str) -> jax.Array:
    """Pixels in [0, 255] as float32: in [-1, 1] ("default"), or of ImageNet's mean 0, deviation 1.

    Raises UserError for "imagenet" when the channels are no stack of red, green and blue.
    """
    images = images.astype(jnp.float32)
    if normalization == "default":
        return images / 127.5 - 1.0
    pictures, rest = divmod(images.shape[-1], 3)
    if rest:
        raise plugin.UserError(
            f"{where}: normalize='imagenet' needs red, green and blue of every picture, got "
            f"{images.shape[-1]} channels; use normalize='default'"
        )
    mean, deviation = (np.tile(np.float32(c), pictures)[None, None, None] for c in IMAGENET)
    return (images / 255 - mean) / deviation


def arguments(context: types.Context, kind: str, normalize: str, film: bool) -> dict[str, Any]:
    """The fields that every image encoder has; UserError for an unknown normalization."""
    where = f"backbones.{kind} of {context.name}"
    if normalize not in NORMALIZATIONS:
        raise plugin.UserError(plugin.unknown(f"{where}.normalize", normalize, NORMALIZATIONS))
    return dict(where=where, normalize=normalize, conditioned=bool(film), dtype=context.dtype)
