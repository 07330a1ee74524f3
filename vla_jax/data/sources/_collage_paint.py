"""How a collage is drawn once its plan stands: sprites, cards, backgrounds, light (no plug-in).

Everything is drawn in one pass: cards straight onto the background, the pictures onto a transparent
overlay of premultiplied colour, the overlay over the background, then the light over both. cv2
does the work and lets go of the interpreter lock meanwhile.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from vla_jax.data.sources import _emoji

cv2.setNumThreads(1)  # pictures this small lose a third of the time to cv2's own threads

LEVELS = (18, 27, 40, _emoji.SIZE)  # sides of a sprite's copies; the next larger one is drawn
CARD = 72 / 64  # side of a card by side of its picture, as in the scene
NOISE_GRIDS = (3, 6, 12, 24, 48, 96)


class Sprite:
    """A drawing ready to be placed: colour times alpha, at the sides of LEVELS."""

    def __init__(self, picture: _emoji.Picture, archive: str):
        self.codepoint, self.archive, self.png = picture.codepoint, archive, picture.png
        self._picture = picture

    @functools.cached_property
    def levels(self) -> dict[int, np.ndarray]:
        """By side, uint8 [side, side, 4], premultiplied; made at the first use."""
        rgba = self._picture.rgba.astype(np.float32)
        rgba[..., :3] *= rgba[..., 3:] / 255
        return {
            side: np.rint(cv2.resize(rgba, (side, side), interpolation=cv2.INTER_AREA)).astype(
                np.uint8
            )
            for side in LEVELS
        }


@dataclass(frozen=True)
class Placed:
    """One picture of a collage; lengths in pixels, x to the right, y down, the corner is (0, 0)."""

    name: str | None  # None: clutter without a label
    row: int  # of the table of names; -1: clutter
    sprite: Sprite
    x: float
    y: float
    side: float
    angle: float  # rad
    squash: float  # height is shrunk by this factor, after turning
    card: bool

    def corners(self, factor: float = 1.0) -> np.ndarray:
        """The corners [4, 2] of the picture's square, its side times `factor`."""
        half = 0.5 * self.side * factor
        c, s = half * math.cos(self.angle), half * math.sin(self.angle)
        square = np.array([(-c + s, -s - c), (c + s, s - c), (c - s, s + c), (-c - s, -s + c)])
        return square * (1.0, self.squash) + (self.x, self.y)


def paint(
    placed: Sequence[Placed],
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    tint: float = 0.0,
    lighting: float = 0.0,
) -> np.ndarray:
    """The uint8 [height, width, 3] picture of a plan; the rest of its look is drawn from `rng`.

    `tint` is the largest relative change of a colour channel, `lighting` of a corner's brightness.
    """
    height, width = size
    canvas = _background(rng, height, width)
    pale = rng.integers(200, 256, (len(placed), 3))
    overlay = np.zeros((height, width, 4), np.uint8)
    for picture, colour in zip(placed, pale.tolist()):
        if picture.card:
            corners = np.rint((picture.corners(CARD) - 0.5) * 16).astype(np.int32)
            cv2.fillConvexPoly(canvas, corners, colour, cv2.LINE_8, shift=4)
        _add_sprite(overlay, picture)
    behind = cv2.cvtColor(cv2.bitwise_not(overlay[..., 3]), cv2.COLOR_GRAY2RGB)
    canvas = cv2.multiply(canvas, behind, scale=1 / 255)
    canvas = cv2.add(canvas, cv2.cvtColor(overlay, cv2.COLOR_RGBA2RGB))
    gain = (1 + tint * rng.uniform(-1, 1, (1, 1, 3))) * (
        1 + lighting * rng.uniform(-1, 1, (2, 2, 1))
    )
    gain = cv2.resize(gain.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.multiply(canvas, gain, dtype=cv2.CV_8U)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: one colour, a gradient of two, or noise of some scale."""
    kind, grid = int(rng.integers(3)), NOISE_GRIDS[int(rng.integers(len(NOISE_GRIDS)))]
    first, second = rng.integers(0, 256, (2, 3))
    if kind == 0:
        colours = first[None, None]
    elif kind == 1:
        turn = 2 * math.pi * rng.random()
        c, s = 0.5 * math.cos(turn), 0.5 * math.sin(turn)
        share = 0.5 + np.array([[-c - s, c - s], [-c + s, c + s]]) / math.sqrt(2)
        colours = first + share[..., None] * (second - first)
    else:
        strength = 0.1 + 0.9 * rng.random()
        noise = np.frombuffer(rng.bytes(grid * grid * 3), np.uint8).reshape(grid, grid, 3)
        colours = first + strength * (noise.astype(np.float32) - first)
    colours = np.ascontiguousarray(colours, np.float32)
    return cv2.resize(colours, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)


def _add_sprite(overlay: np.ndarray, picture: Placed) -> None:
    """Draws the picture onto the premultiplied overlay [height, width, 4], in place."""
    height, width = overlay.shape[:2]
    level = next((side for side in LEVELS if side >= picture.side), LEVELS[-1])
    c, s = math.cos(picture.angle), math.sin(picture.angle)
    half = 0.5 * picture.side * (abs(c) + abs(s)) + 1
    x0, x1 = max(0, int(picture.x - half)), min(width, int(picture.x + half) + 2)
    y0, y1 = max(0, int(picture.y - half)), min(height, int(picture.y + half) + 2)
    zoom, tall = picture.side / level, picture.side / level * picture.squash
    centre = 0.5 * level - 0.5  # of the sprite, as a pixel index
    forward = np.array(
        [
            [zoom * c, -zoom * s, picture.x - 0.5 - x0 - zoom * (c - s) * centre],
            [tall * s, tall * c, picture.y - 0.5 - y0 - tall * (s + c) * centre],
        ]
    )
    tile = cv2.warpAffine(
        picture.sprite.levels[level], forward, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR
    )
    part = overlay[y0:y1, x0:x1]
    cv2.add(part, tile, dst=part)
