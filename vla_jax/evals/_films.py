"""Rollouts as animated pictures: the scene, the pointing map over it, the instruction above it.

No plug-in (leading underscore).
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TITLE = 34  # pixels of the line above the picture
FRAME_MS = 70  # per picture: a third of real time
END_MS = 1400  # of the last picture
GOOD, BAD, MAP = (46, 139, 87), (192, 57, 43), (255, 176, 32)
OPACITY = 0.62  # of the map's peak


def animate(frames: np.ndarray, probs: np.ndarray, points: np.ndarray, record: dict) -> bytes:
    """An animated WebP of one rollout.

    frames uint8 [n, h, w, 3], probs [n, rows, columns] (one cell: no map), points [n, 2] fractions
    (NaN: none), record: the episode's line in episodes.jsonl.
    """
    pictures = [_picture(*each, record) for each in zip(frames, probs, points)]
    out = io.BytesIO()
    times = [FRAME_MS] * (len(pictures) - 1) + [END_MS]
    pictures[0].save(
        out,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=times,
        loop=0,
        quality=62,
        method=3,
    )
    return out.getvalue()


def _picture(frame: np.ndarray, probs: np.ndarray, point: np.ndarray, record: dict) -> Image.Image:
    height, width = frame.shape[:2]
    scene = Image.fromarray(frame)
    if probs.size > 1:
        probs = np.asarray(probs, np.float32)
        strength = probs / max(float(probs.max()), 1e-6)
        if probs.max() < 2.0 * probs.mean():
            strength = strength * 0.4  # nearly uniform: it points nowhere, and should look so
        mask = Image.fromarray(np.uint8(255 * OPACITY * strength)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        scene.paste(Image.new("RGB", scene.size, MAP), mask=mask)
    picture = Image.new("RGB", (width, height + TITLE), (24, 26, 30))
    picture.paste(scene, (0, TITLE))
    draw = ImageDraw.Draw(picture)
    if np.all(np.isfinite(point)):
        _cross(draw, point[0] * width, TITLE + point[1] * height)
    told = f"“touch the {record['target']}”"
    draw.text((10, TITLE / 2), told, fill=(245, 245, 240), anchor="lm", font=_font(17))
    tone = GOOD if record["success"] else BAD
    draw.rectangle((0, TITLE, width - 1, TITLE + height - 1), outline=tone, width=3)
    return picture


def _cross(draw: ImageDraw.ImageDraw, x: float, y: float) -> None:
    for tone, width, reach in (((255, 255, 255), 5, 10), ((200, 30, 60), 2, 9)):
        draw.line((x - reach, y, x + reach, y), fill=tone, width=width)
        draw.line((x, y - reach, x, y + reach), fill=tone, width=width)


def _font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
