"""array_record shards by record number, through the array_record package (no TensorFlow).

The package checks a hash of every chunk that it reads. It opens local files only.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from vla_jax import plugin
from vla_jax.data.sources import _files


def scan(path: _files.Path) -> Iterator[tuple[int, bytes | plugin.UserError]]:
    """(0, data) of each record in order; in place of a corrupt record's data an error.

    Raises UserError where the file is no whole array_record.
    """
    reader = _open(path)
    for number in range(reader.num_records()):
        try:
            yield 0, _read(reader, path, number)
        except plugin.UserError as error:
            yield 0, error
            reader = _open(path)  # a reader that met an error gives no more
    try:
        reader.close()  # says so here, too, where the end of the file is missing
    except RuntimeError as error:
        raise _broken(path, error) from error


class Reader:
    """Bytes inside records, from any thread; the record read last is kept by each thread."""

    def __init__(self, path: _files.Path, stamp: _files.Stamp | None = None):
        self.file = _files.File(path, stamp)
        self._local = threading.local()

    def read(
        self, record: int, record_offset: int, spans: Sequence[tuple[int, int]]
    ) -> list[bytes]:
        """The (offset, length) `spans` of a record."""
        del record_offset
        if getattr(self._local, "record", None) != record:
            self._local.data, self._local.record = self.record(record), record
        return [self._local.data[start : start + size] for start, size in spans]

    def record(self, number: int) -> bytes:
        """The whole record; UserError where it is corrupt."""
        if getattr(self._local, "reader", None) is None:
            self._local.reader = _open(self.file.path)
        data = _read(self._local.reader, self.file.path, number)
        _files.counts.add(len(data))
        return data

    def __getstate__(self):
        return self.file

    def __setstate__(self, file):
        self.__init__(file.path, file.stamp)


def _open(path: _files.Path):
    from array_record.python import array_record_module

    path = _files.normal(path)
    if _files.is_url(path):
        raise plugin.UserError(
            f"{path}: array_record is read from local files; mount or copy this data set, or have "
            "it as tfrecord"
        )
    try:
        return array_record_module.ArrayRecordReader(path)
    except (RuntimeError, ValueError, SystemError) as error:
        raise _broken(path, error) from error


def _broken(path: _files.Path, error: Exception) -> plugin.UserError:
    return plugin.UserError(
        f"{path}: not a whole array_record file ({error}); copy or download this shard again"
    )


def _read(reader, path: _files.Path, record: int) -> bytes:
    try:
        return reader.read([record])[0]
    except (RuntimeError, ValueError, SystemError, IndexError) as error:
        raise plugin.UserError(
            f"{path}: corrupt array_record: record {record}: {error}; copy or download it again"
        ) from error
