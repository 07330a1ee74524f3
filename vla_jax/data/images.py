"""Encoded images to uint8 arrays, and the one resize that training and serving share. No jax.

A box (top, left, height, width, fractions of the image) crops in the same resampling as the resize:
no picture is resampled twice, and nothing is resized that a crop then throws away.
"""

from __future__ import annotations

import functools
import io

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from vla_jax import plugin

cv2.setNumThreads(1)  # rows are read in parallel already

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


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


def png(image: np.ndarray) -> bytes:
    """The PNG of an uint8 or uint16 [height, width, 1 or 3] picture, exact."""
    order = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.shape[-1] == 3 else image
    return cv2.imencode(".png", np.ascontiguousarray(order))[1].tobytes()


METHODS = ("area", "tensorflow")
RADIUS = 3  # of Lanczos' kernel
PHASES = 2**14  # places between two pixels at which a growing crop's kernel is kept


def resize(
    image: np.ndarray,
    size: tuple[int, int],
    method: str = "area",
    box: Box = WHOLE,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """uint8 [*size, 3], the image itself if whole and at `size`; antialiased.

    "area" shrinks by areas and grows by cubics; its box is rounded to pixels. "tensorflow" is
    Lanczos' kernel of radius 3 as tf.image.resize has it (and Octo), to one level; an image that is
    at `size` already is cropped to pixels and stretched linearly. `out` is filled, if given.
    UserError for another method.
    """
    if method not in METHODS:
        raise plugin.UserError(plugin.unknown("resize", method, METHODS))
    height, width = size
    same = image.shape[:2] == (height, width)
    if box == WHOLE and same:
        return image if out is None else _filled(out, image)
    if method == "tensorflow" and not same:
        out = np.empty((height, width, 3), np.uint8) if out is None else out
        lanczos(image, out, box)
        return out
    if box != WHOLE:
        image = image[pixels(image.shape, box)]
    kernel = cv2.INTER_LINEAR
    if method == "area":
        shrinks = height * width < image.shape[0] * image.shape[1]
        kernel = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), dst=out, interpolation=kernel)


def _filled(out: np.ndarray, image: np.ndarray) -> np.ndarray:
    np.copyto(out, image)
    return out


def pixels(shape: tuple[int, ...], box: Box) -> tuple[slice, slice]:
    """The rows and columns of an image of `shape` that a box covers, at least one of each."""
    slices = []
    for size, start, extent in ((shape[0], box[0], box[2]), (shape[1], box[1], box[3])):
        first = min(round(start * size), size - 1)
        slices.append(slice(first, max(first + 1, min(round((start + extent) * size), size))))
    return tuple(slices)


def lanczos(image: np.ndarray, out: np.ndarray, box: Box = WHOLE) -> None:
    """Fills `out`, uint8 [height, width, 3], with a box of `image`, uint8 or float32.

    Two products with banded matrices; the transpose between them is of the smaller picture.
    """
    height, width = out.shape[:2]
    before = image.shape[:2]
    rows = _matrix(before[0], height, box[0], box[2])
    columns = _matrix(before[1], width, box[1], box[3])
    if before[0] * width <= height * before[1]:
        wide = _multiply(columns, cv2.transpose(image))  # [width, H, 3]
        _levels(_multiply(rows, cv2.transpose(wide)), out)
    else:
        tall = _multiply(rows, image)  # [height, W, 3]
        turned = np.empty((width, height, 3), np.uint8)
        _levels(_multiply(columns, cv2.transpose(tall)), turned)
        cv2.transpose(turned, dst=out)


def _levels(values: np.ndarray, out: np.ndarray) -> None:
    """Fills `out`, uint8, with float32 `values`, which it changes: rounded, cut to 0 and 255."""
    flat = values.reshape(len(values), -1)
    cv2.max(flat, 0.0, dst=flat)  # what comes next takes magnitudes, four times as fast as cv2.add
    cv2.convertScaleAbs(flat, dst=out.reshape(flat.shape))


def _multiply(blocks: tuple, image: np.ndarray) -> np.ndarray:
    """float32 [after, k, 3]: the banded matrix `blocks` times `image` [before, k, 3]."""
    values = np.ascontiguousarray(image, np.float32).reshape(len(image), -1)
    made = np.empty((blocks[-1][1], values.shape[1]), np.float32)
    for first, last, low, high, weights in blocks:
        np.matmul(weights, values[low:high], out=made[first:last])
    return made.reshape(len(made), -1, 3)


@functools.lru_cache(maxsize=64)  # window and goal of a camera share a row's crop
def _matrix(before: int, after: int, start: float, extent: float) -> tuple:
    """The matrix [after, before] of how much each new pixel takes of each old one; rows sum to 1.

    In blocks along its band: (first row, last row, first column, last column, float32 weights).
    """
    step = before * extent / after
    centre = (np.arange(after) + 0.5) * step + (before * start - 0.5)
    stretch = max(step, 1.0)
    taps = int(np.ceil(2 * RADIUS * stretch)) + 1
    lowest = np.ceil(centre - RADIUS * stretch).astype(np.int64)
    places = lowest[:, None] + np.arange(taps)  # [after, taps]
    if stretch == 1.0 and extent != 1.0:
        weights = _phases()[np.rint((lowest - centre + RADIUS) * PHASES).astype(np.int64)]
    else:
        weights = _kernel((places - centre[:, None]) / stretch)
    weights = np.where((places < 0) | (places >= before), 0.0, weights)
    weights /= weights.sum(axis=1, keepdims=True)
    # Room at the sides for the taps outside the image, which have no weight.
    left = min(int(lowest[0]), 0)
    dense = np.zeros((after, max(int(lowest[-1]) + taps, before) - left), np.float32)
    dense[np.arange(after)[:, None], places - left] = weights
    blocks = []
    block = 16 if step > 1 else 32  # rows that are multiplied together: the band is narrow
    for first in range(0, after, block):
        last = min(first + block, after)
        low = min(max(int(lowest[first]), 0), before - 1)
        high = max(min(int(lowest[last - 1]) + taps, before), low + 1)
        blocks.append((first, last, low, high, dense[first:last, low - left : high - left]))
    return tuple(blocks)


def _kernel(distance: np.ndarray) -> np.ndarray:
    """Lanczos' kernel of RADIUS pixels."""
    return np.where(np.abs(distance) < RADIUS, np.sinc(distance) * np.sinc(distance / RADIUS), 0.0)


@functools.cache
def _phases() -> np.ndarray:
    """Kernel weights [PHASES + 1, taps] of the first pixel's place, 0 … 1 after its window begins.

    Off by less than 0.1 levels: a crop needs its weights for every sample.
    """
    begin = np.arange(PHASES + 1)[:, None] / PHASES - RADIUS
    return _kernel(begin + np.arange(2 * RADIUS + 1))
