"""Rows of a picture stream: one picture in the newest step, an instruction, and masked targets.

The sources of one stream give rows of one structure (they are stacked), so each names the targets
that its stream has, and a target that a source knows nothing about comes masked out.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from PIL import Image, ImageOps

from vla_jax import plugin
from vla_jax.data import images

TARGETS = ("point", "region_point", "region_name", "text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How pictures with words become samples; the arguments that their sources share.

    Attributes:
      view: the view that the picture stands for.
      targets: those of the stream; what a source knows nothing about comes masked out.
      regions: K of the region targets: as many as the stream's other sources have.
      cut: shorten texts that are longer than the stream's max_tokens instead of raising.
      crop: in training, the smallest share of the side that a random crop keeps (1: the whole).
      holdout: share of the pictures, by a hash of their names, that is held out of training.
      bad_samples: "error", or "skip": a sample that cannot be read gives way to the next one, which
        engine.Stream counts.
      index_dir: where the files' indices are kept, so that only the first start scans them; those
        beside the files (`vla data index`) are found without.
    """

    view: str = "primary"
    targets: tuple[str, ...] = ("text",)
    regions: int = 0
    cut: bool = False
    crop: float = 1.0
    holdout: float = 0.1
    bad_samples: str = "error"
    index_dir: str | None = None

    @classmethod
    def make(cls, where: str, arguments: Mapping) -> Self:
        """From a config's arguments, whose names plugin.build has checked; checks their values."""
        made = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})
        made.check(where)
        return made

    def check(self, where: str) -> None:
        """UserError, beginning with `where`, for a value out of range."""
        if not 0 < self.crop <= 1 or not 0 <= self.holdout < 1:
            raise plugin.UserError(
                f"{where}: got crop={self.crop}, holdout={self.holdout}; expected 0 < crop <= 1, "
                "0 <= holdout < 1"
            )
        self.one_of(where, "bad_samples", ("error", "skip"))

    def one_of(self, where: str, name: str, known: Sequence[str]) -> None:
        """UserError where the attribute `name` is none of `known`."""
        value = str(getattr(self, name))
        if value not in known:
            raise plugin.UserError(plugin.unknown(f"{where}: {name}", value, known))

    def described(self) -> str:
        """All that samples depend on, for fingerprints."""
        return repr(dataclasses.replace(self, index_dir=None))


def part_of(context, path, shares: np.ndarray, holdout: float, of="pictures") -> np.ndarray:
    """Bool [S], the samples of the context's part: training, or what is held out.

    Args:
      context: SourceContext; `train` says which part.
      path: of the data, for messages.
      shares: [S] in [0, 1), hashes of what the samples are called.
      holdout: those below it are held out.
      of: what the samples are.

    Raises UserError where none is left.
    """
    inside = (shares < holdout) != context.train
    if not inside.any():
        raise plugin.UserError(
            f"{context.name}: {len(shares)} {of} at {path!r}, none of them in the "
            f"{'training' if context.train else 'held-out'} part (holdout={holdout})"
        )
    return inside


def blank_targets(context, names, regions: int) -> tuple[dict, dict]:
    """(targets, target_masks) of the named targets, all masked out; W, T from `context`, K regions.

    Raises UserError for a name that no picture source knows.
    """
    window = context.window
    blank = {
        "point": np.zeros((window, 2), np.float32),
        "region_point": np.zeros((window, regions, 2), np.float32),
        "region_name": np.zeros((window, regions), np.int32),
        "text": np.zeros(context.max_tokens, np.int32),
    }
    masks = {
        "point": np.zeros(window, np.bool_),
        "region_point": np.zeros((window, regions), np.bool_),
        "region_name": np.zeros((window, regions), np.bool_),
        "text": np.zeros(context.max_tokens, np.bool_),
    }
    for name in names:
        if name not in blank:
            raise plugin.UserError(plugin.unknown(f"{context.name}.targets", name, TARGETS))
    return {name: blank[name] for name in names}, {name: masks[name] for name in names}


def row(context, view: str, image, language, targets: dict, target_masks: dict) -> dict:
    """A row of the vl stream (Batch's nested dicts without the batch axis and row_id).

    Args:
      context: the SourceContext.
      view: the name under which the picture is seen.
      image: uint8 [height, width, 3]; stands in the newest step, earlier steps are masked.
      language: (ids int32 [T], mask bool [T]) of the instruction.
      targets: as in types.py, without the batch axis.
      target_masks: the same names.
    """
    steps = np.zeros(context.window, np.bool_)
    steps[-1] = True
    images = np.zeros((context.window, *image.shape), np.uint8)
    images[-1] = image
    return {
        "observation": {
            "images": {view: images},
            "image_masks": {view: steps},
            "proprio": {},
            "proprio_masks": {},
            "timestep_mask": steps,
        },
        "task": {"values": {"language": language[0]}, "masks": {"language": language[1]}},
        "targets": targets,
        "target_masks": target_masks,
        "action_space": np.int32(-1),
        "dataset_key": np.int32(-1),
    }


def image_size(context, view: str) -> tuple[int, int]:
    """(height, width) of `view` in this stream; UserError when the stream gives no size for it."""
    if view not in context.image_sizes:
        raise plugin.UserError(
            f"{context.name}: stream {context.stream!r} has no image size for view {view!r}; "
            f"got sizes for {sorted(context.image_sizes)}; add it to the stream's image_sizes"
        )
    height, width = context.image_sizes[view]
    return int(height), int(width)


def decoded(data: bytes, where: str) -> np.ndarray:
    """uint8 [height, width, 3]; transparency laid on white, turned as its EXIF says.

    Raises UserError, beginning with `where`, for bytes that are no image.
    """
    try:
        if data[:2] == b"\xff\xd8" and b"Exif" not in data[:4096]:
            return images.decode(data)
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if not image.has_transparency_data:
            return np.asarray(image.convert("RGB"))
        rgba = np.asarray(image.convert("RGBA"))
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise plugin.UserError(
            f"{where}: {len(data)} bytes that are no readable image ({error}); repack or remove it"
        ) from error
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def part(shape, size: tuple[int, int], smallest: float, rng) -> tuple[int, int, int, int]:
    """(top, left, rows, columns) of the part of a picture of `shape` that a row shows.

    The largest part of the aspect ratio of `size`, in the middle; with `rng` (training) at a random
    place, and a random share, at least `smallest`, of its side.
    """
    height, width = size
    zoom = min(shape[0] / height, shape[1] / width)
    share, across, down = 1.0, 0.5, 0.5
    if rng is not None:
        share, across, down = rng.random(3)
        share = smallest + (1 - smallest) * share
    rows = max(1, round(zoom * height * share))
    columns = max(1, round(zoom * width * share))
    return round(down * (shape[0] - rows)), round(across * (shape[1] - columns)), rows, columns


def cut(image: np.ndarray, shown: tuple[int, int, int, int], size, method: str) -> np.ndarray:
    """uint8 [height, width, 3]: the `shown` part of a picture, scaled to `size`."""
    top, left, rows, columns = shown
    piece = np.ascontiguousarray(image[top : top + rows, left : left + columns])
    return images.resize(piece, size, method)


def encoded(tokenizer, where: str, said: str, answer: str | None, length: int, short: bool):
    """((ids, mask) of the instruction, (ids, mask) of the answer with its ends, or None).

    Raises UserError, beginning with `where`, for a text of more than `length` pieces unless `short`
    cuts it.
    """
    try:
        language = tokenizer.encode_padded(said, length, cut=short)
        if answer is None:
            return language, None
        return language, tokenizer.encode_padded(answer, length, ends=True, cut=short)
    except plugin.UserError as error:
        raise plugin.UserError(f"{where}: {error}; or cut texts with cut=True") from None
