"""One camera view to a grid of tokens: a small convolutional stem, steered by the task if asked.

    uint8 → x / 127.5 - 1 → space to depth (`patch`) → Dense → conv 3x3 → conv 5x5 down to one cell
    per `grid_stride` pixels → residual conv 3x3 = stem → conditioning by the task = tokens

96 px with a grid stride of 12 px give 8x8 tokens, with 8 px 12x12 (a finer map). Space to depth
comes first because convolutions at full resolution are slow on a CPU. Conditioning (`film`):

    "product"   tokens + Dense(patches ∘ word) in the shared grounding space that region-text trains
    "affine"    tokens · (1 + scale) + shift by the word, none at first (FiLM, Perez et al. 2018)
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax import plugin, types
from vla_jax.nn import linear
from vla_jax.tokenizers import _shared

DEBUG = dict(image_size=(24, 24), patch=4, grid_stride=12, widths=(8, 8, 16))

STEMS = ("conv", "patch")
FILMS = ("product", "affine")


class ImagePatch(nn.Module):
    """Tokens [B, W, n, D] of one view, their `grid` (rows, columns) and unconditioned `stem`."""

    view: str
    image_size: tuple[int, int]
    stem: str
    patch: int
    grid_stride: int
    widths: tuple[int, ...]
    film: str | None
    reads: tuple[str, ...]
    width: int
    dtype: Any
    grounding: nn.Module | None = None

    per_step = True

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the token grid."""
        return tuple(side // self.grid_stride for side in self.image_size)

    @property
    def num_tokens(self) -> int:
        """n, tokens per timestep."""
        return self.grid[0] * self.grid[1]

    @nn.compact
    def __call__(self, batch: types.Batch, groups: dict[str, types.TokenGroup]) -> types.TokenGroup:
        """The view's token group; UserError when the batch lacks the view or has another size."""
        where = f"tokenizers.image_patch, view {self.view!r}"
        observation = batch.observation
        image = _shared.entry(where, observation.images, self.view)  # [B, W, height, width, 3]
        _shared.check_shape(where, image.shape, (*self.image_size, 3))
        x = image.astype(self.dtype) / 127.5 - 1.0
        x = self._patches(x) if self.stem == "patch" else self._convolutions(x)
        stem = x.reshape(*image.shape[:2], self.num_tokens, -1)  # [B, W, n, D']
        tokens = stem
        if stem.shape[-1] != self.width:
            tokens = linear.Dense(self.width, dtype=self.dtype, name="project")(stem)
        if self.film is not None and self.reads[0] in groups:  # a stream may read nothing here
            word, known = _shared.pooled(groups[self.reads[0]])
            tokens = self._condition(tokens, stem, word, known)
        real = observation.image_masks[self.view] & observation.timestep_mask  # [B, W]
        valid = jnp.broadcast_to(real[..., None], stem.shape[:3])
        return types.TokenGroup(tokens=tokens, valid=valid, stem=stem, grid=self.grid)

    def _patches(self, x: jax.Array) -> jax.Array:
        """[B, W, rows, columns, D']: each cell's pixels through one Dense (ViT)."""
        x = _space_to_depth(x, self.grid_stride)
        return linear.Dense(self.widths[-1], dtype=self.dtype, name="embed")(x)

    def _convolutions(self, x: jax.Array) -> jax.Array:
        """[B, W, rows, columns, D']: see the module's drawing."""
        first, middle, last = self.widths
        stride = self.grid_stride // self.patch
        kernel = max(5, stride)
        x = _space_to_depth(x, self.patch)
        x = nn.gelu(linear.Dense(first, dtype=self.dtype, name="embed")(x))
        x = nn.gelu(linear.Conv(middle, (3, 3), dtype=self.dtype, name="conv_0")(x))
        x = linear.Conv(last, (kernel, kernel), (stride, stride), dtype=self.dtype, name="conv_1")(
            x
        )
        return x + linear.Conv(last, (3, 3), dtype=self.dtype, name="conv_2")(nn.gelu(x))

    def _condition(
        self, tokens: jax.Array, stem: jax.Array, word: jax.Array, known: jax.Array
    ) -> jax.Array:
        """Tokens steered by the word [B, D]; rows whose task is not `known` [B] stay as is."""
        if self.film == "affine":
            project = linear.Dense(
                2 * self.width,
                dtype=self.dtype,
                kernel_init=nn.initializers.zeros_init(),
                name="film",
            )
            change = project(word) * known.astype(self.dtype)[:, None]
            scale, shift = jnp.split(change[:, None, None], 2, axis=-1)  # [B, 1, 1, D]
            return tokens * (1.0 + scale) + shift
        word = self.grounding.words(word) * known.astype(jnp.float32)[:, None]
        patches = self.grounding.patches(stem)  # [B, W, n, dim]
        # Both are unit vectors: times their number of axes, the product's numbers are of size 1.
        product = patches * word[:, None, None] * patches.shape[-1]
        film = linear.Dense(self.width, use_bias=False, dtype=self.dtype, name="film")
        return tokens + film(product)


def make(
    context: types.Context,
    *,
    view: str,
    image_size: tuple[int, int] = (96, 96),
    stem: str = "conv",
    patch: int = 4,
    grid_stride: int = 12,
    widths: tuple[int, ...] = (64, 64, 128),
    film: str | None = None,
    reads: tuple[str, ...] | None = None,
) -> ImagePatch:
    """The tokenizer of one view; sizes in pixels, `reads` defaults to ("language",) with a film.

    Raises UserError when the image does not divide into cells or patches, for an unknown stem or
    film, and when film="product" finds no shared grounding.
    """
    where = f"tokenizers.{context.name}"
    if view not in types.VIEWS:
        raise plugin.UserError(plugin.unknown(f"{where}.view", view, types.VIEWS))
    if stem not in STEMS:
        raise plugin.UserError(plugin.unknown(f"{where}.stem", stem, STEMS))
    if film is not None and film not in FILMS:
        raise plugin.UserError(plugin.unknown(f"{where}.film", film, FILMS))
    if any(side % grid_stride for side in image_size) or grid_stride % patch:
        raise plugin.UserError(
            f"{where}: an image of {tuple(image_size)} px does not divide into cells of "
            f"grid_stride={grid_stride} px made of patches of {patch} px; choose ones that divide"
        )
    if stem == "conv" and len(widths) != 3:
        raise plugin.UserError(f"{where}: the conv stem has three widths, got {tuple(widths)}")
    reads = tuple(("language",) if reads is None else reads) if film else ()
    if film and not reads:
        raise plugin.UserError(f"{where}: film={film!r} needs a group to read, e.g. ('language',)")
    return ImagePatch(
        view=view,
        image_size=tuple(image_size),
        stem=stem,
        patch=patch,
        grid_stride=grid_stride,
        widths=tuple(widths),
        film=film,
        reads=reads,
        width=context.width,
        dtype=context.dtype,
        grounding=_shared.module(context, "grounding") if film == "product" else None,
    )


def _space_to_depth(x: jax.Array, side: int) -> jax.Array:
    """[..., height, width, 3] → [..., height / side, width / side, side² · 3]."""
    *lead, height, width, channels = x.shape
    x = x.reshape(*lead, height // side, side, width // side, side, channels)
    x = jnp.swapaxes(x, -4, -3)  # [..., rows, columns, side, side, 3]
    return x.reshape(*lead, height // side, width // side, side * side * channels)
