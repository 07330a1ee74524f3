"""Encoded images to uint8 arrays, and the one resize that training and serving share. No jax."""

from __future__ import annotations

import functools
import io

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from vla_jax import plugin

cv2.setNumThreads(1)  # rows are read in parallel already


def decode(data: bytes, method: str = "area") -> np.ndarray:
    """uint8 [height, width, 3] of a JPEG, PNG or any other format that Pillow reads.

    `method` as in `resize`: TensorFlow decodes JPEGs with a faster transform, two levels off in the
    mean. Raises UserError for bytes that are no image; the caller says where they are from.
    """
    try:
        if data[:2] == b"\xff\xd8":
            return simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=method == "tensorflow")
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


METHODS = ("area", "tensorflow")


def resize(image: np.ndarray, size: tuple[int, int], method: str = "area") -> np.ndarray:
    """uint8 [*size, 3], itself at `size`; antialiased.

    "area" shrinks by areas and grows by cubics. "tensorflow" is Lanczos' kernel of radius 3 as
    tf.image.resize has it (and Octo), to one level. UserError for another method.
    """
    if method not in METHODS:
        raise plugin.UserError(plugin.unknown("resize", method, METHODS))
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    if method == "tensorflow":
        rows, columns = _lanczos(image.shape[0], height), _lanczos(image.shape[1], width)
        resized = np.einsum(
            "hH,HWc,wW->hwc", rows, image.astype(np.float32), columns, optimize=True
        )
        return np.clip(np.rint(resized), 0, 255).astype(np.uint8)
    shrinks = height * width < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=method)


@functools.lru_cache(maxsize=64)
def _lanczos(before: int, after: int) -> np.ndarray:
    """float32 [after, before]: how much each new pixel takes of each old one; rows sum to 1."""
    step = before / after
    centre = (np.arange(after) + 0.5) * step - 0.5
    distance = np.abs(centre[:, None] - np.arange(before)[None]) / max(step, 1.0)
    weights = np.where(distance < 3, np.sinc(distance) * np.sinc(distance / 3), 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
