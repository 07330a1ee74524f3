"""One episode of RLDS as stored, a `tf.Example`, to columns by the features that TFDS declares.

TFDS joins the tree of features by `/`; the values of `steps/*` stand one step after the other. A
sequence inside a step is ragged and stands under two keys or more (example_serializer.py there):

    steps/x/ragged_flat_values    steps/x/ragged_row_lengths_0 [T]    …_1 where it is deeper

It comes out padded with zeros, its lengths beside it under their own name; so does a tensor of
two unknown sizes (steps/x/value, steps/x/shape).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from vla_jax import plugin
from vla_jax.data.sources import _example

FLAT, LENGTHS = "/ragged_flat_values", "/ragged_row_lengths_"
STRINGS = ("string", "object", "bytes")


@dataclasses.dataclass(frozen=True)
class Feature:
    """One leaf of features.json: `kind` is tensor, text or image; -1 in `shape` is unknown.

    `rank` counts the sequences above it, `steps` included.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    encoding: str = "none"
    rank: int = 0

    @property
    def of_steps(self) -> bool:
        """Whether its first axis is the step."""
        return self.name.startswith("steps/")

    @functools.cached_property
    def keys(self) -> tuple[str, ...]:
        """Where its values stand in the tf.Example; the first are the values themselves."""
        if self.rank > 1:
            lengths = [f"{self.name}{LENGTHS}{i}" for i in range(self.rank - 1)]
            return (self.name + FLAT, *lengths)
        if self.shape.count(-1) > 1 and self.kind == "tensor":
            return (self.name + "/value", self.name + "/shape")
        return (self.name,)

    @property
    def wire(self) -> str:
        """The list of the tf.Example that holds its values: bytes, float or int64."""
        if self.kind != "tensor" or self.encoding != "none" or self.dtype in STRINGS:
            return "bytes"
        return "float" if "float" in self.dtype else "int64"


def leaves(node: Mapping, prefix: str = "", rank: int = 0) -> Iterator[Feature]:
    """Every leaf of features.json."""
    if "featuresDict" in node:
        for name, child in node["featuresDict"]["features"].items():
            yield from leaves(child, f"{prefix}/{name}" if prefix else name, rank)
    elif "sequence" in node:
        yield from leaves(node["sequence"]["feature"], prefix, rank + 1)
    elif "image" in node:
        dtype = node["image"].get("dtype") or "uint8"
        yield Feature(prefix, "image", _shape(node["image"]), dtype, rank=rank)
    elif "text" in node:
        yield Feature(prefix, "text", (), "string", rank=rank)
    elif "boundingBox" in node:
        yield Feature(prefix, "tensor", (4,), "float32", rank=rank)
    else:
        leaf = node.get("tensor", {})
        dtype, encoding = leaf.get("dtype", "int64"), leaf.get("encoding", "none").lower()
        yield Feature(prefix, "tensor", _shape(leaf), dtype, encoding, rank)


def _shape(leaf: Mapping) -> tuple[int, ...]:
    return tuple(int(d) for d in leaf.get("shape", {}).get("dimensions", ()))


def by_key(features: Mapping[str, Feature]) -> dict[str, Feature]:
    """Key of the tf.Example -> the feature it belongs to."""
    return {key: feature for feature in features.values() for key in feature.keys}


def columns(features: Mapping[str, Feature], names, found: Mapping, where: str) -> dict:
    """The columns `names` of an episode: arrays, lists of str, images as Spans; step first.

    Args:
      features: of the data set.
      names: which of them; those that the episode lacks are left out.
      found: key -> float32 or int64 [n], list of bytes, or Spans of an image.
      where: file and record, for messages.

    Raises UserError for values that are not of the declared type and shape, naming the field.
    """
    made = {}
    for name in names:
        feature = features[name]
        values = [found.get(key) for key in feature.keys]
        if all(value is None for value in values):
            continue
        at = f"{where}: {name}"
        if any(value is None for value in values):
            missing = [k for k, v in zip(feature.keys, values) if v is None]
            raise plugin.UserError(f"{at}: lacks {missing}, expected {list(feature.keys)}")
        check_kind(feature, values[0], at)
        if feature.rank > 1:
            flat = _values(dataclasses.replace(feature, rank=1), values[0], None, at)
            for i, lengths in enumerate(values[1:]):
                made[f"{name}{LENGTHS}{i}"] = lengths
            made[name] = _padded(flat, values[1:], at)
        else:
            made[name] = _values(feature, values[0], *values[1:], where=at)
            for key, shapes in zip(feature.keys[1:], values[1:]):
                made[key] = shapes.reshape((-1, len(feature.shape)) if feature.rank else (-1,))
    return made


def length(found: Mapping[str, object], where: str) -> int:
    """T, which all step columns share; UserError where they do not, or for an episode of none."""
    lengths = {n: len(v) for n, v in found.items() if n.startswith("steps/")}
    lengths = {n: v for n, v in lengths.items() if n.rpartition(LENGTHS)[2] in ("0", n)}
    if not lengths or min(lengths.values()) < 1:
        raise plugin.UserError(f"{where}: an episode without steps ({lengths}); remove it")
    if len(set(lengths.values())) > 1:
        raise plugin.UserError(f"{where}: columns of different lengths {lengths}, expected one T")
    return next(iter(lengths.values()))


def check_kind(feature: Feature, value, where: str) -> None:
    """Raises UserError unless `value` came from the list that the feature's dtype asks for."""
    if isinstance(value, list | _example.Spans):
        got = "bytes"
    else:
        got = "float" if value.dtype.kind == "f" else "int64"
    if got != feature.wire and len(value):
        raise plugin.UserError(
            f"{where}: got {len(value)} values of {got}, expected {feature.wire} ({feature.kind} "
            f"of {feature.dtype} as features.json says); write this data set again with TFDS"
        )


def _values(feature: Feature, value, shapes=None, where: str = ""):
    if feature.kind == "image":
        return value
    many = feature.rank > 0
    if feature.kind == "text" or (feature.dtype in STRINGS and not feature.shape):
        return _texts(feature, value, many, where)
    if feature.dtype in STRINGS:
        texts = _texts(feature, value, True, where)
        return np.asarray(texts).reshape((-1 if many else 1, *feature.shape)[not many :]).tolist()
    if isinstance(value, list):
        return _encoded(feature, value, shapes, many, where)
    shape = ((-1,) if many else ()) + feature.shape
    if shape.count(-1) > 1:  # one unknown size: the same in all steps, or it would be ragged
        raise plugin.UserError(f"{where}: shape {shape} of unknown sizes, which no row can name")
    wanted = np.dtype(feature.dtype)
    if value.dtype.kind == "i" and wanted == np.uint64:
        value = value.view(np.uint64)  # TFDS stores the bits
    try:
        return value.astype(wanted, copy=False).reshape(shape)
    except ValueError as error:
        raise plugin.UserError(
            f"{where}: got {value.size} numbers, expected shape [T, {feature.shape}] of "
            f"{feature.dtype} as features.json says ({error})"
        ) from error


def _texts(feature: Feature, value: list[bytes], many: bool, where: str):
    """str, or a list of them; bytes that are no text stay bytes where it is no text feature."""
    try:
        texts = [part.decode("utf-8") for part in value]
    except UnicodeDecodeError as error:
        if feature.kind == "text":
            raise plugin.UserError(f"{where}: got bytes that are no UTF-8 ({error})") from error
        texts = list(value)
    if many:
        return texts
    if len(texts) != 1:
        raise plugin.UserError(f"{where}: got {len(texts)} texts, expected one")
    return texts[0]


def _encoded(feature: Feature, parts: list[bytes], shapes, many: bool, where: str):
    """Tensors that TFDS stored as bytes, plain or under zlib."""
    unpack = zlib.decompress if feature.encoding == "zlib" else bytes
    dtype, known = np.dtype(feature.dtype), feature.shape
    try:
        arrays = [np.frombuffer(unpack(part), dtype) for part in parts]
        if shapes is None:
            arrays = [array.reshape(known) for array in arrays]
        else:
            table = np.asarray(shapes).reshape(len(parts), len(known))
            arrays = [array.reshape(shape) for array, shape in zip(arrays, table)]
        return _stack(arrays) if many else arrays[0]
    except (ValueError, IndexError, zlib.error) as error:
        raise plugin.UserError(
            f"{where}: bytes that are no {feature.dtype} of shape {known} ({error})"
        ) from error


def _stack(arrays: list[np.ndarray]) -> np.ndarray:
    """[T, …], each padded with zeros to the largest."""
    sizes = np.max([array.shape for array in arrays], axis=0, initial=0)
    stacked = np.zeros((len(arrays), *sizes), arrays[0].dtype if arrays else np.float32)
    for row, array in zip(stacked, arrays):
        row[tuple(slice(side) for side in array.shape)] = array
    return stacked


def _padded(flat, lengths: list[np.ndarray], where: str):
    """`flat` cut by the innermost lengths, then the next; each level padded to its longest."""
    if isinstance(flat, _example.Spans):
        return _example.Spans(
            _padded(flat.offsets, lengths, where), _padded(flat.lengths, lengths, where)
        )
    if isinstance(flat, list):
        flat = np.asarray(flat, object)
        return _pad_all(flat, lengths, "", where).tolist()
    return _pad_all(flat, lengths, 0, where)


def _pad_all(flat: np.ndarray, lengths: list[np.ndarray], empty, where: str) -> np.ndarray:
    for level in reversed(lengths):
        if level.sum() != len(flat) or (len(level) and level.min() < 0):
            raise plugin.UserError(f"{where}: {len(flat)} values, its row lengths add up to others")
        most = int(level.max(initial=0))
        padded = np.full((len(level), most, *flat.shape[1:]), empty, flat.dtype)
        padded[np.arange(most) < level[:, None]] = flat
        flat = padded
    return flat


def size(feature: Feature) -> float:
    """Bytes of one step's values; infinite where features.json does not say."""
    if feature.dtype in STRINGS:
        return 0
    if -1 in feature.shape:
        return math.inf
    return math.prod(feature.shape) * np.dtype(feature.dtype).itemsize
