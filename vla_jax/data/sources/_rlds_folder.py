"""What a TFDS folder says about itself, and its records as columns (no TensorFlow).

    <path>/dataset_info.json    splits, shard lengths, file format
    <path>/features.json        the tree of features; `steps` is a Dataset feature, one row per step
    <path>/<name>-<split>.<format>-00000-of-0000N

TFDS stores an episode as one `tf.Example` whose keys join the tree by `/`; the values of `steps/*`
stand one step after the other.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from vla_jax import plugin
from vla_jax.data.sources import _array_record, _example, _tfrecord

READERS = {"tfrecord": _tfrecord, "array_record": _array_record}


@dataclasses.dataclass(frozen=True)
class Feature:
    """One leaf of features.json: `kind` is tensor, text or image; -1 in `shape` is unknown."""

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    encoding: str = "none"


@dataclasses.dataclass(frozen=True)
class Folder:
    """A TFDS data set on disk: its name, format, splits (shards and their lengths) and features."""

    path: pathlib.Path
    name: str
    version: str
    file_format: str
    splits: Mapping[str, tuple[tuple[pathlib.Path, int], ...]]
    features: Mapping[str, Feature]

    def shards(self, split: str) -> tuple[tuple[pathlib.Path, int], ...]:
        """(file, number of episodes) of each shard; UserError for an unknown split."""
        if "[" in split or "%" in split:
            raise plugin.UserError(
                f"{self.path}: split {split!r}: slices are not supported; name a whole split "
                f"({', '.join(self.splits)}) and set holdout= for the held-out share"
            )
        if split not in self.splits:
            raise plugin.UserError(plugin.unknown(f"{self.path}: split", split, self.splits))
        return self.splits[split]

    def reader(self, shard: pathlib.Path):
        """Reads bytes of a shard by record and offset."""
        return READERS[self.file_format].Reader(shard)


@dataclasses.dataclass(frozen=True)
class Record:
    """One episode as stored: where it lies, and its columns.

    `columns` maps `steps/…` and `episode_metadata/…` to numpy arrays (first axis = step under
    `steps/`), lists of str (text), or Spans (images, in order of steps).
    """

    shard: int
    number: int
    offset: int
    length: int
    columns: dict
    where: str


def open_folder(path: str | pathlib.Path) -> Folder:
    """The data set at `path` (its version folder, or the folder above a single version).

    Raises UserError where there is none (with the nearest folders), or where a shard is missing.
    """
    path = find(path)
    info = _json(path / "dataset_info.json")
    features = {f.name: f for f in _leaves(_json(path / "features.json"), "")}
    if not any(name.startswith("steps/") for name in features):
        raise plugin.UserError(
            f"{path}: features.json has no `steps` (got {sorted(features)[:8]}), expected RLDS"
        )
    file_format = info.get("fileFormat", "tfrecord")
    if file_format not in READERS:
        raise plugin.UserError(
            plugin.unknown(f"{path}: fileFormat of dataset_info.json", file_format, READERS)
        )
    splits = {s["name"]: _shards(path, info, s, file_format) for s in info.get("splits", ())}
    version = str(info.get("version", path.name))
    return Folder(path, info["name"], version, file_format, splits, features)


def find(path: str | pathlib.Path) -> pathlib.Path:
    """The folder with dataset_info.json at `path` or one version below; UserError where none is."""
    path = pathlib.Path(path).expanduser()
    if not path.is_dir():
        near = path.parent
        while not near.is_dir():
            near = near.parent
        beside = sorted(p.name for p in near.iterdir() if p.is_dir())
        raise plugin.UserError(
            plugin.unknown(f"{path}: no such data set folder; in {near}", path.name, beside)
        )
    if (path / "dataset_info.json").is_file():
        return path
    versions = sorted(p.parent for p in path.glob("*/dataset_info.json"))
    if not versions:
        inside = sorted(p.name for p in path.iterdir())[:10]
        raise plugin.UserError(
            f"{path}: holds {inside}, expected dataset_info.json and features.json (a TFDS/RLDS "
            "data set, or the folder above its version); `vla data inspect` says what a folder is"
        )
    if len(versions) > 1:
        raise plugin.UserError(
            f"{path}: holds versions {[v.name for v in versions]}; name one, e.g. {versions[-1]}"
        )
    return versions[0]


def records(folder: Folder, split: str, wanted) -> Iterator[Record]:
    """Every episode of a split with the columns whose names `wanted` accepts, in order of storage.

    Raises UserError at a corrupt, undecodable or missing record, naming file, record and byte.
    """
    for shard, (path, expected) in enumerate(folder.shards(split)):
        count = 0
        for number, (offset, data) in enumerate(READERS[folder.file_format].scan(path)):
            where = f"{path}: record {number} at byte {offset}"
            try:
                found = _example.parse(data, wanted)
            except (ValueError, IndexError, UnicodeDecodeError) as error:
                raise plugin.UserError(
                    f"{where}: {len(data)} bytes that are no tf.Example ({error}); was this "
                    "data set written by TFDS?"
                ) from error
            columns, length = _decode(folder, data, found, where)
            yield Record(shard, number, offset, length, columns, where)
            count += 1
        if count != expected:
            raise plugin.UserError(
                f"{path}: got {count} records, expected {expected} (shardLengths of "
                "dataset_info.json); the shard is incomplete, copy or download it again"
            )


def _decode(folder: Folder, data: bytes, found: dict, where: str) -> tuple[dict, int]:
    columns, lengths = {}, {}
    for name, value in found.items():
        feature = folder.features.get(name)
        if feature is None:
            raise plugin.UserError(
                plugin.unknown(
                    f"{where}: feature (ragged ones are not supported)", name, folder.features
                )
            )
        steps = name.startswith("steps/")
        columns[name] = _column(feature, value, data, steps, f"{where}: {name}")
        if steps:
            lengths[name] = len(columns[name])
    if not lengths or min(lengths.values()) < 1:
        raise plugin.UserError(f"{where}: an episode without steps ({lengths}); remove it")
    if len(set(lengths.values())) > 1:
        raise plugin.UserError(f"{where}: columns of different lengths {lengths}, expected one T")
    return columns, next(iter(lengths.values()))


def _column(feature: Feature, value, data: bytes, steps: bool, where: str):
    if feature.kind == "image":
        return value
    if feature.kind == "text":
        texts = [text.decode("utf-8") for text in value.read(data)]
        return texts if steps else texts[0]
    shape = ((-1,) if steps else ()) + feature.shape
    if isinstance(value, _example.Spans):
        if feature.dtype == "string":
            texts = [text.decode("utf-8", "replace") for text in value.read(data)]
            return texts if steps else texts[0]
        unpack = zlib.decompress if feature.encoding == "zlib" else bytes
        runs = b"".join(unpack(part) for part in value.read(data))
        value = np.frombuffer(runs, feature.dtype)
    try:
        return value.astype(feature.dtype, copy=False).reshape(shape)
    except (ValueError, TypeError) as error:
        raise plugin.UserError(
            f"{where}: got {value.size} numbers, expected shape [T, {feature.shape}] of "
            f"{feature.dtype} as features.json says ({error})"
        ) from error


def _leaves(node: Mapping, prefix: str) -> Iterator[Feature]:
    if "featuresDict" in node:
        for name, child in node["featuresDict"]["features"].items():
            yield from _leaves(child, f"{prefix}/{name}" if prefix else name)
    elif "sequence" in node:
        yield from _leaves(node["sequence"]["feature"], prefix)
    elif "image" in node:
        yield Feature(prefix, "image", _shape(node["image"]), "uint8")
    elif "text" in node:
        yield Feature(prefix, "text", (), "string")
    else:
        leaf = node.get("tensor", {})
        yield Feature(
            prefix, "tensor", _shape(leaf), leaf.get("dtype", "int64"), leaf.get("encoding", "none")
        )


def _shape(leaf: Mapping) -> tuple[int, ...]:
    return tuple(int(d) for d in leaf.get("shape", {}).get("dimensions", ()))


def _shards(path, info: Mapping, split: Mapping, file_format: str):
    lengths = [int(n) for n in split.get("shardLengths", ())]
    template = split.get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
    shards = []
    for number, length in enumerate(lengths):
        parts = dict(
            DATASET=info["name"],
            SPLIT=split["name"],
            FILEFORMAT=file_format,
            SHARD_X_OF_Y=f"{number:05d}-of-{len(lengths):05d}",
        )
        file = path / re.sub(r"\{(\w+)\}", lambda m: parts[m[1]], template)  # noqa: B023
        if not file.is_file():
            raise plugin.UserError(
                f"{file}: no such shard; dataset_info.json lists {len(lengths)}. "
                "Copy or download the data set again."
            )
        shards.append((file, length))
    return tuple(shards)


def _json(path: pathlib.Path) -> dict:
    if not path.is_file():
        raise plugin.UserError(f"{path}: no such file; a TFDS folder needs it")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise plugin.UserError(f"{path}: not JSON ({error}); copy the data set again") from error
