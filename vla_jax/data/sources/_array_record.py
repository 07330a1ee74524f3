"""array_record shards by record number, through the array_record package (no TensorFlow)."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Iterator

from vla_jax import plugin


def scan(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    """(0, data) of each record in order; UserError where the file is no whole array_record."""
    reader = _open(path)
    for record in range(reader.num_records()):
        yield 0, _read(reader, path, record)
    try:
        reader.close()  # says so here, too, where the end of the file is missing
    except RuntimeError as error:
        raise _broken(path, error) from error


class Reader:
    """Bytes inside a record, from any thread; the record read last is kept by each thread."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._local = threading.local()

    def read(self, record: int, record_offset: int, offset: int, length: int) -> bytes:
        """`length` bytes at `offset` inside a record."""
        if getattr(self._local, "reader", None) is None:
            self._local.reader, self._local.record = _open(self.path), None
        if self._local.record != record:
            self._local.data = _read(self._local.reader, self.path, record)
            self._local.record = record
        return self._local.data[offset : offset + length]

    def __getstate__(self):
        return self.path

    def __setstate__(self, path):
        self.__init__(path)


def _open(path: pathlib.Path):
    from array_record.python import array_record_module

    try:
        return array_record_module.ArrayRecordReader(str(path))
    except (RuntimeError, ValueError, SystemError) as error:
        raise _broken(path, error) from error


def _broken(path: pathlib.Path, error: Exception) -> plugin.UserError:
    return plugin.UserError(
        f"{path}: not a whole array_record file ({error}); copy or download this shard again"
    )


def _read(reader, path: pathlib.Path, record: int) -> bytes:
    try:
        return reader.read([record])[0]
    except (RuntimeError, ValueError, SystemError, IndexError) as error:
        raise plugin.UserError(
            f"{path}: corrupt array_record: record {record}: {error}; copy or download it again"
        ) from error
