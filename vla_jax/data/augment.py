"""Crops, colour jitter, dropped cameras and readings, noise: each number with a key of its own.

A row's generator gives one 64-bit key; every draw hashes (key, use), e.g. ``primary/hue``, so that
no two parameters or cameras share randomness and a new one changes none of the others. (Octo draws
all of them from one seed; octo_defects.md A2.) Brightness, contrast, saturation and hue are all
affine in RGB: one 3x4 matrix per image, applied once, where the picture is smaller.

    primary   window ──┬─ one crop of the camera ──┬─ one colour draw ──▶ observation.images.primary
    goal_primary ──────┘                           └─ one of its own ───▶ task goal_primary
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

import cv2
import numpy as np

from vla_jax import plugin
from vla_jax.data import images

_LUMA = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
ALONE = ("proprio_noise", "proprio_dropout")  # not of pictures


@dataclasses.dataclass(frozen=True)
class Augment:
    """How much to vary; 0 = off.

    Attributes:
      brightness, contrast, saturation: factors are drawn from [1 - x, 1 + x].
      hue: angle is drawn from ±x turns of the colour circle.
      proprio_noise: standard deviation of the noise on proprio, in normalized units.
      proprio_dropout: probability that a row lacks a proprio group (zeros, mask False).
      image_dropout: probability that a row lacks a camera (zeros, mask False); its goal stays.
      crop_scale: the share of the picture's area that a crop keeps is drawn from [low, high].
      crop_ratio: its sides' ratio, relative to the picture's, is drawn from [low, high] in logs.
      views: view -> its own Augment, where it differs.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    proprio_noise: float = 0.0
    proprio_dropout: float = 0.0
    image_dropout: float = 0.0
    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    views: Mapping[str, Augment] = dataclasses.field(default_factory=dict)

    @classmethod
    def make(cls, where: str, arguments: Mapping | None) -> Augment:
        """From a config's dict; ``color=x`` is brightness, contrast, saturation x and hue x/10.

        ``views=dict(wrist=dict(crop_scale=(1, 1)))`` changes what one camera has. Raises UserError
        for an unknown name or a number out of range.
        """
        arguments = dict(arguments or {})
        views = arguments.pop("views", {})
        made = cls._one(where, arguments)
        own = {}
        for view, changes in views.items():
            for name in changes:
                if name in ALONE:
                    raise plugin.UserError(
                        f"{where}: augment: views.{view}.{name}: is no setting of a camera; set "
                        "it beside views"
                    )
            own[view] = cls._one(f"{where}: views.{view}", {**arguments, **changes})
        return dataclasses.replace(made, views=own)

    @classmethod
    def _one(cls, where: str, arguments: dict) -> Augment:
        arguments = dict(arguments)
        fields = [field.name for field in dataclasses.fields(cls) if field.name != "views"]
        color = arguments.pop("color", 0.0)
        for name in arguments:
            if name not in fields:
                known = [*fields, "color", "views"]
                raise plugin.UserError(plugin.unknown(f"{where}: augment", name, known))
        defaults = dict(brightness=color, contrast=color, saturation=color, hue=color / 10)
        made = cls(**{**defaults, **arguments})
        for name in fields:
            value = getattr(made, name)
            if name.startswith("crop"):
                pair = tuple(map(float, value)) if np.ndim(value) == 1 else ()
                most = 1 if name == "crop_scale" else np.inf
                if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
                    raise plugin.UserError(
                        f"{where}: augment: {name}={value}, expected (low, high) with 0 < low <= "
                        f"high{' <= 1' if most == 1 else ''}"
                    )
                made = dataclasses.replace(made, **{name: pair})
            elif not 0 <= value <= (np.inf if name == "proprio_noise" else 1):
                raise plugin.UserError(f"{where}: augment: {name}={value}, expected 0 to 1")
        return made

    def of(self, view: str) -> Augment:
        """The settings of one camera."""
        return self.views.get(view, self)

    @property
    def color(self) -> bool:
        """Whether images change."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))


def row_key(rng: np.random.Generator) -> bytes:
    """The key that a row's draws are folded from: 8 bytes."""
    return rng.bit_generator.random_raw().to_bytes(8, "little")


def uniform(key: bytes, use: str) -> float:
    """One number in [0, 1), a pure function of (key, use)."""
    digest = hashlib.blake2b(use.encode(), key=key, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def dropped(rate: float, key: bytes, name: str) -> bool:
    """Whether a camera or a proprio group of this row is left out, with probability `rate`."""
    return rate > 0 and uniform(key, f"{name}/dropout") < rate


def crop(augment: Augment, key: bytes, view: str) -> images.Box:
    """The part of a camera's pictures that this row shows: a random resized crop.

    Area and ratio are drawn as dlimp's random_resized_crop draws them (dlimp/augmentations.py),
    each from its own key; sides are at most the picture's.
    """
    (low, high), (narrow, wide) = augment.crop_scale, augment.crop_ratio
    if low == 1.0 and narrow == wide == 1.0:
        return images.WHOLE
    area = low + (high - low) * uniform(key, f"{view}/crop_scale")
    ratio = narrow * (wide / narrow) ** uniform(key, f"{view}/crop_ratio")
    height, width = min(1.0, (area / ratio) ** 0.5), min(1.0, (area * ratio) ** 0.5)
    top = (1 - height) * uniform(key, f"{view}/crop_top")
    left = (1 - width) * uniform(key, f"{view}/crop_left")
    return top, left, height, width


def color_matrix(augment: Augment, key: bytes, image: str, mean: np.ndarray) -> np.ndarray:
    """float64 [3, 4]: one image's jitter as an affine map of RGB; `mean` [3] is the image's."""

    def factor(name: str) -> float:
        return 1 + getattr(augment, name) * (2 * uniform(key, f"{image}/{name}") - 1)

    turn = 2 * np.pi * augment.hue * (2 * uniform(key, f"{image}/hue") - 1)
    cosine, sine = np.cos(turn), np.sin(turn)
    rotation = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    saturation, contrast, brightness = (
        factor("saturation"),
        factor("contrast"),
        factor("brightness"),
    )
    linear = _FROM_YIQ @ (np.array([[1], [saturation], [saturation]]) * rotation) @ _TO_YIQ
    gray = _LUMA @ mean  # contrast pivots on the image's mean luma
    matrix = np.empty((3, 4))
    matrix[:, :3] = brightness * contrast * linear
    matrix[:, 3] = brightness * (1 - contrast) * gray
    return matrix


def jitter(augment: Augment, key: bytes, view: str, frames: np.ndarray) -> np.ndarray:
    """uint8 [n, height, width, 3] frames of one view, all under the same draw."""
    mean = np.mean([cv2.mean(frame)[:3] for frame in frames], axis=0)
    matrix = color_matrix(augment, key, view, mean)
    return np.stack([cv2.transform(frame, matrix) for frame in frames])


def noise(augment: Augment, key: bytes, group: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 `shape`: noise for one proprio group, independent at each step and dim."""
    digest = hashlib.blake2b(f"{group}/proprio_noise".encode(), key=key, digest_size=16).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    return (augment.proprio_noise * rng.standard_normal(shape)).astype(np.float32)
