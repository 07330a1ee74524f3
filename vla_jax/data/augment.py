"""Colour jitter and proprio noise, each number with a random key of its own.

A row's generator gives one 64-bit key; every draw hashes (key, use), e.g. ``primary/hue``, so that
no two parameters or cameras share randomness and a new one changes none of the others. Brightness,
contrast, saturation and hue are all affine in RGB: one 3x4 matrix per view, applied once.
"""

from __future__ import annotations

import dataclasses
import hashlib

import cv2
import numpy as np

from vla_jax import plugin

_LUMA = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


@dataclasses.dataclass(frozen=True)
class Augment:
    """How much to vary; 0 = off.

    Attributes:
      brightness, contrast, saturation: factors are drawn from [1 - x, 1 + x].
      hue: angle is drawn from ±x turns of the colour circle.
      proprio_noise: standard deviation of the noise on proprio, in normalized units.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    proprio_noise: float = 0.0

    @classmethod
    def make(cls, where: str, arguments: dict | None) -> Augment:
        """From a config's dict; ``color=x`` is brightness, contrast, saturation x and hue x/10.

        Raises UserError for an unknown name or a negative number.
        """
        arguments = dict(arguments or {})
        known = [field.name for field in dataclasses.fields(cls)]
        color = arguments.pop("color", 0.0)
        for name in arguments:
            if name not in known:
                raise plugin.UserError(plugin.unknown(f"{where}: augment", name, [*known, "color"]))
        defaults = dict(brightness=color, contrast=color, saturation=color, hue=color / 10)
        made = cls(**{**defaults, **arguments})
        for name in known:
            if not 0 <= getattr(made, name) <= (np.inf if name == "proprio_noise" else 1):
                raise plugin.UserError(
                    f"{where}: augment: {name}={getattr(made, name)}, expected 0 to 1"
                )
        return made

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


def color_matrix(augment: Augment, key: bytes, view: str, mean: np.ndarray) -> np.ndarray:
    """float64 [3, 4]: one view's jitter as an affine map of RGB; `mean` [3] is the image's."""

    def factor(name: str) -> float:
        return 1 + getattr(augment, name) * (2 * uniform(key, f"{view}/{name}") - 1)

    turn = 2 * np.pi * augment.hue * (2 * uniform(key, f"{view}/hue") - 1)
    cosine, sine = np.cos(turn), np.sin(turn)
    rotation = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    saturation, contrast, brightness = (
        factor("saturation"),
        factor("contrast"),
        factor("brightness"),
    )
    linear = _FROM_YIQ @ np.diag([1, saturation, saturation]) @ rotation @ _TO_YIQ
    gray = _LUMA @ mean  # contrast pivots on the image's mean luma
    matrix = np.empty((3, 4))
    matrix[:, :3] = brightness * contrast * linear
    matrix[:, 3] = brightness * (1 - contrast) * gray
    return matrix


def jitter(augment: Augment, key: bytes, view: str, frames: np.ndarray) -> np.ndarray:
    """uint8 [n, height, width, 3] frames of one view, all under the same draw."""
    n, height, width, _ = frames.shape
    flat = frames.reshape(n * height, width, 3)
    mean = np.asarray(cv2.mean(flat)[:3])
    return cv2.transform(flat, color_matrix(augment, key, view, mean)).reshape(frames.shape)


def noise(augment: Augment, key: bytes, group: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 `shape`: noise for one proprio group, independent at each step and dim."""
    digest = hashlib.blake2b(f"{group}/proprio_noise".encode(), key=key, digest_size=16).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    return (augment.proprio_noise * rng.standard_normal(shape)).astype(np.float32)
