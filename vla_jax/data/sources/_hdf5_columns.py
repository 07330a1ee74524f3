"""What an HDF5 episode's data sets and attributes are called, and what kind of column each is."""

from __future__ import annotations

import dataclasses
import json

import h5py
import numpy as np

STEPS, METADATA = "steps/", "episode_metadata/"
LANGUAGE = "steps/language_instruction"
SAID = ("language_instruction", "language_raw", "instruction", "task", "task_description")
MAGIC = (b"\xff\xd8", b"\x89PNG")


@dataclasses.dataclass(frozen=True)
class Feature:
    """One column: `kind` is tensor, text or image; an `encoded` image is stored as JPEG or PNG."""

    kind: str
    shape: tuple[int, ...]
    dtype: str
    encoded: bool = False


def features(file: h5py.File, group: h5py.Group, length: int) -> dict[str, Feature]:
    """Full name -> Feature of an episode of `length` steps."""
    found = {}
    for name, data in datasets(group):
        feature = _feature(data)
        stepwise = bool(data.shape) and len(data) == length
        if feature is None:
            continue  # a compound or opaque type, which nothing here can name
        if stepwise:
            found[STEPS + name] = feature
        elif feature.kind != "image":
            of_text = feature.kind == "text" and bool(data.shape)
            shape = tuple(data.shape)
            found[METADATA + name] = Feature(
                "tensor" if of_text else feature.kind, shape, feature.dtype
            )
    for name, value in attributes(file, group).items():
        array = np.asarray(value)
        kind = "text" if isinstance(value, str) else "tensor"
        dtype = "string" if array.dtype.kind == "U" else array.dtype.name
        found.setdefault(METADATA + name, Feature(kind, array.shape, dtype))
    if LANGUAGE not in found and said(file, group):
        found[LANGUAGE] = Feature("text", (), "string")
    return found


def _feature(data: h5py.Dataset) -> Feature | None:
    shape, kind = data.shape[1:], data.dtype.kind
    if data.dtype == np.uint8 and len(shape) == 3 and shape[2] == 3:
        return Feature("image", shape, "uint8")
    bytes_ = (data.dtype == np.uint8 and len(shape) == 1) or (kind in "OSV" and shape == ())
    if bytes_ and data.shape and len(data) and code(data[0])[:4].startswith(MAGIC):
        return Feature("image", (-1, -1, 3), "uint8", encoded=True)
    if h5py.check_string_dtype(data.dtype):
        return Feature("text", shape, "string")
    return Feature("tensor", shape, data.dtype.name) if kind in "fiub" else None


def code(value) -> bytes:
    """An encoded picture without the zeros that fill it up."""
    if isinstance(value, str):
        return value.encode()
    data = value.tobytes() if isinstance(value, np.ndarray | np.generic) else bytes(value)
    return data.rstrip(b"\0")


def datasets(group: h5py.Group) -> list[tuple[str, h5py.Dataset]]:
    """(name, data set) of all that lie in a group."""
    found = []

    def visit(name: str, item) -> None:
        if isinstance(item, h5py.Dataset):
            found.append((name, item))

    group.visititems(visit)
    return found


def attributes(file: h5py.File, group: h5py.Group) -> dict:
    """Those of the episode, of the groups above it, and of the file."""
    told, above = {}, [file]
    for part in filter(None, group.name.split("/")):
        above.append(above[-1][part])
    for place in above:
        for name, value in place.attrs.items():
            if not isinstance(value, h5py.Empty):
                told[name] = plain(value)
    return told


def plain(value):
    """Texts as str, numbers as they are."""
    if isinstance(value, bytes | np.bytes_):
        return bytes(value).decode("utf-8")
    array = np.asarray(value)
    if array.dtype.kind in "SO":
        return np.asarray([plain(v) for v in array.reshape(-1)], str).reshape(array.shape)
    return value if isinstance(value, str) else array


def said(file: h5py.File, group: h5py.Group) -> str:
    """What was asked in an episode: of LIBERO's problem_info, an attribute or a text; or ""."""
    told = attributes(file, group)
    if "problem_info" in told:
        try:
            told |= json.loads(told["problem_info"])
        except (TypeError, ValueError):
            pass  # somebody else's attribute of that name
    for name in SAID:
        if isinstance(told.get(name), str):
            return told[name].strip().strip('"')
        for place in (group, file):
            held = place[name] if name in place else None
            if isinstance(held, h5py.Dataset) and h5py.check_string_dtype(held.dtype):
                text = held.asstr()[()]
                return str(text if isinstance(text, str) else text.reshape(-1)[0]).strip()
    return ""
