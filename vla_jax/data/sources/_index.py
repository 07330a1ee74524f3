"""The sidecar index of one RLDS shard: an Arrow file with a checksum before it.

It holds what the records say but for their pictures, as stored and before any standardizer, one row
per record, so that a changed row of standardizers needs no new scan:

    @offset @length   where the record's data lie; -1: corrupt       @steps   T      @faults   JSON
    KEY               the values of one key of the tf.Example, steps one after the other
    KEY@offset/length of pictures in their place: byte ranges inside the record
    KEY@once          True where one step's values stand for all T (an instruction, an embedding)

    file = MAGIC 8 | crc32c of the rest u32 | header's length u32 | header JSON | padding | Arrow

Keys of more than WIDE bytes a step (depth as numbers, point clouds) are left out and are read from
the record when a standardizer names them.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable

import google_crc32c
import numpy as np
import pyarrow as pa

from vla_jax import plugin
from vla_jax.data import mapped
from vla_jax.data.sources import _example, _files, _rlds_folder, _rlds_record, _tfrecord
from vla_jax.data.sources._rlds_folder import Folder

FORMAT = 1  # of these files; raise it when what they hold changes
MAGIC, PREFIX, ALIGN = b"VLAindex", 16, 64
WIDE = 4096


@dataclasses.dataclass(frozen=True)
class Header:
    """What an index was made of; another one than the shard's makes it stale."""

    format: int
    shard: str
    size: int
    version: str
    count: int
    features: str
    plain: bool = False  # the shard is compressed; its records lie in the copy beside this file

    @classmethod
    def of(cls, folder: Folder, path: str, stamp: _files.Stamp, count: int) -> Header:
        """The header that a fresh index of this shard has."""
        kinds = sorted((f.name, f.kind, f.shape, f.dtype, f.encoding, f.rank)
                       for f in folder.features.values())  # fmt: skip
        features = f"{google_crc32c.value(repr(kinds).encode()):08x}"
        name = _files.name(path)
        return cls(FORMAT, name, stamp.size, stamp.version, count, features)


def plain_copy(target: str) -> str:
    """Where the unpacked records of a compressed shard lie, by the path of its index."""
    return target.removesuffix(".arrow") + ".plain"


def build(
    folder: Folder,
    path: str,
    stamp: _files.Stamp,
    count: int,
    target: str,
    step: Callable[[int], None] = lambda size: None,
) -> None:
    """Reads a shard once and writes its index to `target`; corrupt records are noted in it.

    `step` is called with the bytes read so far. Raises UserError where the file changes meanwhile.
    """
    header, scanned = Header.of(folder, path, stamp, count), path
    file = _files.File(path, stamp)
    if folder.file_format == "tfrecord" and _tfrecord.is_gzip(file):
        header = dataclasses.replace(header, plain=True)
        scanned = plain_copy(target)
        _files.write(scanned, lambda local: _tfrecord.unpack(file, local))
    table = _Table(folder)
    for number, (offset, data) in enumerate(folder.scan(scanned)):
        table.add(f"{path}: record {number} at byte {offset}", offset, data)
        step(offset)
    if _files.stat(path) != stamp:
        raise plugin.UserError(f"{path}: was written while it was being indexed; start again")
    _files.write(target, _pack(header, table.finish()))


class _Table:
    """Collects the records of a shard."""

    def __init__(self, folder: Folder):
        self.folder, self.names, self.count = folder, list(folder.features), 0
        self.kept = {}  # key -> feature
        for feature in folder.features.values():
            if feature.kind == "image" or _rlds_record.size(feature) <= WIDE:
                self.kept.update(dict.fromkeys(feature.keys, feature))
        self.places, self.steps, self.faults = [], [], []
        self.values = {key: [] for key in self.kept}
        self.once = {key: [] for key in self.kept}

    def add(self, where: str, offset: int, data: bytes | plugin.UserError) -> None:
        found, faults = {}, []
        try:
            if isinstance(data, plugin.UserError):
                raise data
            found = _rlds_folder.parse(self.folder, self.names, data, where)
        except plugin.UserError as error:
            faults, data = [(None, str(error))], None
        steps = self._length(found)
        for key, feature in self.kept.items():
            value, once = found.get(key), False
            if value is not None and key == feature.keys[0]:
                try:
                    _rlds_record.check_kind(feature, value, f"{where}: {feature.name}")
                except plugin.UserError as error:
                    faults.append((feature.name, str(error)))
                    value = None
                else:
                    value, once = _shortened(feature, value, steps)
            self.values[key].append(value)
            self.once[key].append(once)
        self.places.append((-1, -1) if data is None else (offset, len(data)))
        self.steps.append(steps)
        self.faults.append(json.dumps(faults) if faults else None)

    def _length(self, found) -> int:
        counts = [
            len(found[name]) // _per_step(feature)
            for name, feature in self.kept.items()
            if name == feature.name and name in found and feature.of_steps
        ]
        return max(counts, default=0)

    def finish(self) -> pa.Table:
        table = {
            "@offset": pa.array([p[0] for p in self.places], pa.int64()),
            "@length": pa.array([p[1] for p in self.places], pa.int64()),
            "@steps": pa.array(self.steps, pa.int64()),
            "@faults": pa.array(self.faults, pa.large_string()),
        }
        for key, feature in self.kept.items():
            values = self.values[key]
            if feature.kind == "image" and key == feature.keys[0]:
                for part in ("offset", "length"):
                    rows = [None if v is None else getattr(v, part + "s") for v in values]
                    table[f"{key}@{part}"] = _lists(rows, "int64")
            else:
                texts = feature.wire == "bytes" and key == feature.keys[0]
                table[key] = _bytes(values) if texts else _lists(values, feature.dtype)
                if any(self.once[key]):
                    table[key + "@once"] = pa.array(self.once[key], pa.bool_())
        return pa.table(table)


def _per_step(feature: _rlds_record.Feature) -> int:
    if feature.wire == "bytes" or -1 in feature.shape:
        return 1
    return max(int(np.prod(feature.shape)), 1)


def _shortened(feature: _rlds_record.Feature, value, steps: int):
    """(one step's values, True) where all steps have the same, else (value, False)."""
    if feature.kind == "image" or feature.rank != 1 or not feature.of_steps or steps < 2:
        return value, False
    if isinstance(value, list):
        same = len(value) == steps and value.count(value[0]) == steps
        return (value[:1], True) if same else (value, False)
    size = _per_step(feature)
    if len(value) != steps * size or -1 in feature.shape:
        return value, False
    rows = value.reshape(steps, size).view(np.uint8)  # as bits: NaN equals itself, -0 is not 0
    return (value[:size], True) if (rows == rows[0]).all() else (value, False)


def _lists(rows: list, dtype: str) -> pa.Array:
    """A row of numbers each, in the declared type where they fit it."""
    present = [row for row in rows if row is not None and len(row)]
    flat = np.concatenate(present) if present else np.zeros(0, np.int64)
    if flat.dtype.kind == "i" and dtype not in ("int64", "uint64", *_rlds_record.STRINGS):
        small = np.dtype("uint8" if dtype == "bool" else dtype)
        if small.kind in "iu" and len(flat):
            limits = np.iinfo(small)
            if limits.min <= flat.min() and flat.max() <= limits.max:
                flat = flat.astype(small)
    return _nested(rows, pa.array(flat))


def _bytes(rows: list) -> pa.Array:
    flat = [part for row in rows if row is not None for part in row]
    return _nested(rows, pa.array(flat, pa.large_binary()))


def _nested(rows: list, flat: pa.Array) -> pa.Array:
    ends = np.cumsum([0] + [0 if row is None else len(row) for row in rows], dtype=np.int64)
    missing = pa.array([row is None for row in rows], pa.bool_())
    return pa.LargeListArray.from_arrays(pa.array(ends), flat, mask=missing)


def _pack(header: Header, table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    told = json.dumps(dataclasses.asdict(header)).encode()
    told += b" " * (-(PREFIX + len(told)) % ALIGN)
    rest = struct.pack("<I", len(told)) + told + sink.getvalue().to_pybytes()
    return MAGIC + struct.pack("<I", google_crc32c.value(rest)) + rest


def header_of(target: str) -> Header | None:
    """The header of an index, unchecked: enough to see that it is stale; None where none is."""
    if not _files.is_file(target):
        return None
    try:
        file = _files.File(target)
        prefix = file.read(0, PREFIX)
        (size,) = struct.unpack("<I", prefix[12:])
        return Header(**json.loads(file.read(PREFIX, min(size, file.stamp.size - PREFIX))))
    except (ValueError, TypeError, struct.error):  # a UserError is a ValueError: a short file
        return None


class Index:
    """The index of a shard in memory, or mapped from a local file; `load` makes it."""

    def __init__(self, header: Header, table: pa.Table):
        self.header, self._lists = header, {}
        self.count = table.num_rows
        self._columns = {
            name: table.column(name).chunk(0) if table.num_rows else None
            for name in table.column_names
        }
        if self.count:
            self.offsets = self._columns["@offset"].to_numpy()
            self.lengths = self._columns["@length"].to_numpy()
            self._steps = self._columns["@steps"].to_numpy()

    def faults(self, number: int, wanted: set[str]) -> list[str]:
        """What is wrong with a record, as far as the features `wanted` are concerned."""
        text = self._columns["@faults"][number].as_py()
        return [m for name, m in json.loads(text or "[]") if name is None or name in wanted]

    def all_faults(self) -> list[str]:
        """What is wrong with any record, and a record that is missing."""
        texts = self._columns["@faults"].to_pylist() if self.count else []
        told = [message for text in texts if text for _, message in json.loads(text)]
        if self.count != self.header.count:
            told.append(
                f"{self.header.shard}: got {self.count} records, expected {self.header.count} "
                "(shardLengths of dataset_info.json); copy or download this shard again"
            )
        return told

    def found(self, number: int, features) -> dict:
        """Key -> values of one record as _rlds_folder.parse gives them, of those `features`."""
        keys = [key for feature in features for key in feature.keys]
        made = {}
        for key in keys:
            if f"{key}@offset" in self._columns:
                places = [self._row(f"{key}@{part}", number) for part in ("offset", "length")]
                if places[0] is not None:
                    made[key] = _example.Spans(*places)
            elif key in self._columns:
                value = self._row(key, number)
                if value is not None:
                    made[key] = self._whole(key, number, value)
        return made

    def holds(self, feature: _rlds_record.Feature) -> bool:
        """Whether a feature's values stand here; wide ones stand in the record alone."""
        return all(k in self._columns or f"{k}@offset" in self._columns for k in feature.keys)

    def _row(self, column: str, number: int):
        if column not in self._lists:
            array = self._columns[column]
            values = array.values
            binary = pa.types.is_large_binary(values.type)
            absent = array.is_null().to_numpy(zero_copy_only=False)
            self._lists[column] = (
                array.offsets.to_numpy(), values if binary else values.to_numpy(), binary, absent,
            )  # fmt: skip
        ends, values, binary, absent = self._lists[column]
        if absent[number]:
            return None
        first, last = int(ends[number]), int(ends[number + 1])
        if binary:
            return values.slice(first, last - first).to_pylist()
        return values[first:last]

    def _whole(self, key: str, number: int, value):
        once = self._columns.get(key + "@once")
        if once is None or not once[number].as_py():
            return value
        steps = int(self._steps[number])
        return value * steps if isinstance(value, list) else np.tile(value, steps)


def load(target: str) -> Index:
    """An index whose checksum was compared; UserError where it is broken."""
    path = _files.normal(target)
    try:
        if _files.is_url(path):
            buffer = pa.py_buffer(_files.read(path))
        else:
            with pa.memory_map(path) as source:
                buffer = source.read_buffer()
        if buffer.size < PREFIX or buffer[:8].to_pybytes() != MAGIC:
            raise ValueError("its first bytes are others")
        crc, size = struct.unpack("<II", buffer[8:PREFIX].to_pybytes())
        if mapped.crc32c(memoryview(buffer)[12:]) != crc:
            raise ValueError("another CRC32C")
        header = Header(**json.loads(buffer[PREFIX : PREFIX + size].to_pybytes()))
        with pa.ipc.open_file(buffer[PREFIX + size :]) as reader:
            return Index(header, reader.read_all())
    except (ValueError, TypeError, OSError, struct.error) as error:
        raise plugin.UserError(f"{path}: a broken index ({error})") from error
