"""What a TFDS folder says about itself, and its records (no TensorFlow).

<path>/dataset_info.json    splits, shard lengths, file format
<path>/features.json        the tree of features; `steps` is a Dataset feature, one row per step
<path>/<name>-<split>.<format>-00000-of-0000N
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping

from vla_jax import plugin
from vla_jax.data.sources import (
    _array_record,
    _example,
    _files,
    _rlds_record,
    _rlds_splits,
    _tfrecord,
)
from vla_jax.data.sources._rlds_record import Feature

READERS = {"tfrecord": _tfrecord, "array_record": _array_record}
INFO, FEATURES = "dataset_info.json", "features.json"


@dataclasses.dataclass(frozen=True)
class Piece:
    """The records [first, last) of a shard that holds `count`."""

    path: str
    first: int
    last: int
    count: int


@dataclasses.dataclass(frozen=True)
class Folder:
    """A TFDS data set on disk: its name, format, splits (shards and their lengths) and features."""

    path: str
    name: str
    version: str
    file_format: str
    splits: Mapping[str, tuple[tuple[str, int], ...]]
    features: Mapping[str, Feature]

    def pieces(self, split: str) -> list[Piece]:
        """What a split or slice reads, shard by shard; UserError as _rlds_splits.resolve says."""
        lengths = {name: [n for _, n in shards] for name, shards in self.splits.items()}
        found = []
        for name, shard, first, last in _rlds_splits.resolve(self.path, split, lengths):
            path, count = self.splits[name][shard]
            found.append(Piece(path, first, last, count))
        return found

    def scan(self, path: str) -> Iterator[tuple[int, bytes | plugin.UserError]]:
        """Each record of a shard as the format's `scan` gives it."""
        return READERS[self.file_format].scan(path)

    def reader(self, path: str, stamp: _files.Stamp | None = None):
        """Reads bytes of a shard by record and offset."""
        return READERS[self.file_format].Reader(path, stamp)


@dataclasses.dataclass(frozen=True)
class Record:
    """One episode as stored: where it lies, and its columns (see _rlds_record.columns)."""

    path: str
    number: int
    offset: int
    length: int
    columns: dict
    where: str


def open_folder(path: _files.Path, of_episodes: bool = True) -> Folder:
    """The data set at `path` (its version folder, or the folder above a single version).

    Raises UserError where there is none (with the nearest folders), and, unless it need not be
    `of_episodes`, where its records are none.
    """
    path = find(path)
    info = _json(_files.join(path, INFO))
    features = {f.name: f for f in _rlds_record.leaves(_json(_files.join(path, FEATURES)))}
    if of_episodes and not any(name.startswith("steps/") for name in features):
        raise plugin.UserError(
            f"{path}: features.json has no `steps` (got {sorted(features)[:8]}), expected RLDS"
        )
    file_format = info.get("fileFormat", "tfrecord")
    if file_format not in READERS:
        raise plugin.UserError(
            plugin.unknown(f"{path}: fileFormat of dataset_info.json", file_format, READERS)
        )
    splits = {s["name"]: _shards(path, info, s, file_format) for s in info.get("splits", ())}
    version = str(info.get("version", _files.name(path)))
    return Folder(path, info["name"], version, file_format, splits, features)


def versions(path: _files.Path) -> list[str]:
    """The folders with dataset_info.json: `path` itself, or those just below it."""
    path = _files.normal(path)
    if _files.is_file(_files.join(path, INFO)):
        return [path]
    below = [_files.join(path, name) for name in _files.names(path) if "." in name]
    return [folder for folder in below if _files.is_file(_files.join(folder, INFO))]


def find(path: _files.Path) -> str:
    """The folder with dataset_info.json at `path` or one version below; UserError where none is."""
    path = _files.normal(path)
    if not _files.is_dir(path):
        near = _files.parent(path)
        while not _files.is_dir(near) and near != _files.parent(near):
            near = _files.parent(near)
        beside = [n for n in _files.names(near) if _files.is_dir(_files.join(near, n))]
        where = f"{path}: no such data set folder; in {near}"
        raise plugin.UserError(plugin.unknown(where, _files.name(path), beside))
    found = versions(path)
    if not found:
        raise plugin.UserError(
            f"{path}: holds {_files.names(path)[:10]}, expected dataset_info.json and "
            "features.json (a TFDS/RLDS data set, or the folder above its version); "
            "`vla data inspect` says what a folder is"
        )
    if len(found) > 1:
        have = [_files.name(folder) for folder in found]
        raise plugin.UserError(f"{path}: holds versions {have}; name one, e.g. {found[-1]}")
    return found[0]


def records(folder: Folder, split: str, wanted) -> Iterator[Record]:
    """Every episode of a split with the columns whose names `wanted` accepts, in order of storage.

    Raises UserError at a corrupt, undecodable or missing record, naming file, record and byte.
    """
    names = [name for name in folder.features if wanted(name)]
    for piece in folder.pieces(split):
        count = 0
        for number, (offset, data) in enumerate(folder.scan(piece.path)):
            if isinstance(data, plugin.UserError):
                raise data
            count += 1
            if piece.first <= number < piece.last:
                where = f"{piece.path}: record {number} at byte {offset}"
                columns = decode(folder, names, data, where)
                length = _rlds_record.length(columns, where)
                yield Record(piece.path, number, offset, length, columns, where)
        check_count(piece.path, count, piece.count)


def check_count(path: str, got: int, expected: int) -> None:
    """Raises UserError unless a shard holds as many records as dataset_info.json says."""
    if got != expected:
        raise plugin.UserError(
            f"{path}: got {got} records, expected {expected} (shardLengths of "
            "dataset_info.json); the shard is incomplete, copy or download it again"
        )


def decode(folder: Folder, names, data: bytes, where: str) -> dict:
    """The columns `names` of a record's bytes; UserError where they are no tf.Example of this."""
    return _rlds_record.columns(folder.features, names, parse(folder, names, data, where), where)


def parse(folder: Folder, names, data: bytes, where: str) -> dict:
    """Key -> values of the features `names` as the tf.Example has them; images as Spans."""
    keys = {key: folder.features[name] for name in names for key in folder.features[name].keys}
    try:
        found = _example.parse(data, keys.__contains__)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise plugin.UserError(
            f"{where}: {len(data)} bytes that are no tf.Example ({error}); was this "
            "data set written by TFDS?"
        ) from error
    return {
        key: value.read(data)
        if isinstance(value, _example.Spans) and keys[key].kind != "image"
        else value
        for key, value in found.items()
    }


def _shards(path: str, info: Mapping, split: Mapping, file_format: str):
    lengths = [int(n) for n in split.get("shardLengths", ())]
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    shards = []
    for number, length in enumerate(lengths):
        parts = dict(
            DATASET=info["name"],
            SPLIT=split["name"],
            FILEFORMAT=file_format,
            SHARD_X_OF_Y=f"{number:05d}-of-{len(lengths):05d}",
        )
        name = re.sub(r"\{(\w+)\}", lambda m: parts[m[1]], template)  # noqa: B023
        shards.append((_files.join(path, name), length))
    return tuple(shards)


def _json(path: str) -> dict:
    if not _files.is_file(path):
        raise plugin.UserError(f"{path}: no such file; a TFDS folder needs it")
    try:
        return json.loads(_files.read(path))
    except ValueError as error:
        raise plugin.UserError(f"{path}: not JSON ({error}); copy the data set again") from error
