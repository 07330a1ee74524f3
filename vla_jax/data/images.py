"""Encoded images to uint8 arrays, and the one resize that training and serving share. No jax."""

from __future__ import annotations

import io

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from vla_jax import plugin

cv2.setNumThreads(1)  # rows are read in parallel already


def decode(data: bytes) -> np.ndarray:
    """uint8 [height, width, 3] of a JPEG, PNG or any other format that Pillow reads.

    Raises UserError for bytes that are no image; the caller says where they are from.
    """
    try:
        if data[:2] == b"\xff\xd8":
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
        if data[:4] == b"\x89PNG":
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            if image is not None:
                return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (ValueError, OSError, cv2.error) as error:
        raise plugin.UserError(
            f"{len(data)} bytes that are no readable image ({error}); copy the file again or "
            "remove this episode"
        ) from error


RESIZES = ("area", "lanczos3")


def resize(image: np.ndarray, size: tuple[int, int], method: str = "area") -> np.ndarray:
    """uint8 [*size, 3], itself at `size`: "area" to shrink and cubic to grow, or "lanczos3".

    Both are antialiased. "lanczos3" is TensorFlow's (and Octo's) within one level: the same kernel,
    rounded after each axis. UserError for another method.
    """
    if method not in RESIZES:
        raise plugin.UserError(plugin.unknown("resize", method, RESIZES))
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    if method == "lanczos3":
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
        return np.asarray(resized)
    shrinks = height * width < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=method)
