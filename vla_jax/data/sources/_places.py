"""Boxes and points in texts: what their numbers mean, and how they move with a crop.

    unit          numbers are
    fraction      of the picture's width and height, 0 to 1
    percent       0 to 100; thousandths: 0 to 1000 (InternVL, Qwen-VL)
    square        0 to 1 of the picture padded to a square, itself in the middle (LLaVA-1.5:
                  github.com/haotian-liu/LLaVA/issues/606)
    pixels        of the picture as it is stored

A box stands in brackets, [left, top, right, bottom], a point as [x, y] or (x, y); y goes down.
What lies outside of its picture is an error: the numbers mean something else.
No plug-in (leading underscore).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

UNITS = ("fraction", "percent", "thousandths", "square", "pixels")
OUTSIDE = 0.02  # so far may rounded numbers lie outside of the picture
FORMS = ("corners", "size")  # of a box: right and bottom, or width and height
_NUMBER = r"\s*-?\d+(?:\.\d+)?\s*"
PLACE = re.compile(
    rf"\[({_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER})\]|[\[(]({_NUMBER},{_NUMBER})[\])]"
)

_MARKS = " \t\n.,;:()[]<>\"'"
_JOINT = re.compile(r"^(?:and\s+)?(?:(?:an?|the)\s+)?", re.IGNORECASE)


def name(words: str) -> str:
    """Words as names are compared: lower case, without article, joints and full stop."""
    bare = _JOINT.sub("", words.strip(_MARKS)).replace("_", " ")
    return " ".join(bare.lower().split())


def named(text: str) -> list[tuple[tuple[float, ...], str]]:
    """The places in a text, each with the `name` right before it: "a cat [0, 0, 0.5, 0.5]"."""
    pairs, end = [], 0
    for match in PLACE.finditer(text):
        pairs.append((_numbers(match), name(text[end : match.start()])))
        end = match.end()
    return pairs


def found(text: str) -> list[tuple[float, ...]]:
    """The boxes (4 numbers) and points (2) in a text, in order."""
    return [_numbers(match) for match in PLACE.finditer(text)]


def alone(text: str) -> bool:
    """Whether a text is places and nothing else: "[0.1, 0.2]", "[(0.1, 0.2), (0.3, 0.4)]." """
    return not PLACE.sub("", text).strip(" []().,;")


def fractions(numbers: Sequence[float], unit: str, form: str, shape) -> np.ndarray:
    """float64 [2 or 4]: corners or a point in fractions of a picture of `shape` (height, width).

    Raises ValueError for a place that is not in the picture, or a box inside out.
    """
    place = np.asarray(numbers, np.float64).reshape(-1, 2)
    if len(place) == 2 and form == "size":
        place = np.stack([place[0], place[0] + place[1]])
    size = np.asarray([shape[1], shape[0]], np.float64)
    if unit == "pixels":
        place = place / size
    elif unit == "square":
        side = size.max()
        place = (place * side - (side - size) / 2) / size
    else:
        place = place / {"fraction": 1, "percent": 100, "thousandths": 1000}[unit]
    outside = np.any(place < -OUTSIDE) or np.any(place > 1 + OUTSIDE)
    if outside or np.any(place[0] > place[-1]):
        raise ValueError(
            f"the place {list(numbers)} is none in its picture of {shape[1]} x {shape[0]} pixels; "
            f"is unit={unit!r} (box={form!r}) what its numbers mean? Known: {', '.join(UNITS)}; "
            f"{', '.join(FORMS)}"
        )
    return np.clip(place, 0, 1).reshape(-1)


def seen(place: np.ndarray, shape, shown: tuple[int, int, int, int]) -> np.ndarray | None:
    """`place` in fractions of the `shown` part (top, left, rows, columns); None: it is outside.

    A box is cut at the edges; it is outside when its centre is.
    """
    top, left, rows, columns = shown
    points = place.reshape(-1, 2) * (shape[1], shape[0])
    points = (points - (left, top)) / (columns, rows)
    middle = points.mean(axis=0)
    if np.any(middle < 0) or np.any(middle > 1):
        return None
    return np.clip(points, 0, 1).reshape(-1)


def rewritten(text: str, unit: str, form: str, shape, shown) -> str | None:
    """`text` with its places in fractions of the `shown` part; None where one is outside."""
    moved = [seen(fractions(p, unit, form, shape), shape, shown) for p in found(text)]
    if any(place is None for place in moved):
        return None
    places = iter(moved)
    return PLACE.sub(lambda _: f"[{', '.join(f'{v:.2f}' for v in next(places))}]", text)


def _numbers(match: re.Match) -> tuple[float, ...]:
    return tuple(float(part) for part in (match[1] or match[2]).split(","))
