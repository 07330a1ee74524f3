"""TFRecord shards by byte offset, without TensorFlow: each length and record has its CRC checked.

record = length u64 | masked crc(length) u32 | data | masked crc(data) u32      (little endian)
"""

from __future__ import annotations

import os
import pathlib
import struct
import threading
import weakref
from collections.abc import Iterator

import google_crc32c

from vla_jax import plugin

HEADER, FOOTER = 12, 4


def masked_crc(data: bytes) -> int:
    """TFRecord's checksum: CRC32C, rotated and shifted by a constant."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def scan(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    """(byte offset of the data, data) of each record; UserError at the first corrupt one."""
    size = path.stat().st_size
    with path.open("rb") as file:
        record, at = 0, 0
        while at < size:
            header = file.read(HEADER)
            if len(header) < HEADER:
                raise _corrupt(path, record, at, f"{len(header)} bytes of a header", f"{HEADER}")
            length, crc = struct.unpack("<QI", header)
            if masked_crc(header[:8]) != crc:
                if at == 0 and header[:2] == b"\x1f\x8b":
                    raise plugin.UserError(
                        f"{path}: is GZIP-compressed, expected a plain TFRecord file; decompress "
                        "it (random access needs byte offsets)"
                    )
                raise _corrupt(
                    path, record, at, f"a length ({length}) with another CRC32C", hex(crc)
                )
            data, footer = file.read(length), file.read(FOOTER)
            if len(data) < length or len(footer) < FOOTER:
                raise _corrupt(
                    path, record, at, f"{size - at} bytes to the end of the file",
                    f"{HEADER + length + FOOTER} (a truncated copy?)",
                )  # fmt: skip
            (crc,) = struct.unpack("<I", footer)
            if masked_crc(data) != crc:
                raise _corrupt(path, record, at, f"{length} bytes with another CRC32C", hex(crc))
            yield at + HEADER, data
            record, at = record + 1, at + HEADER + length + FOOTER


def write(path: pathlib.Path, records) -> None:
    """Writes `records` (bytes) as one shard (for tests and small tools; TFDS writes data sets)."""
    with path.open("wb") as file:
        for data in records:
            length = struct.pack("<Q", len(data))
            file.write(length + struct.pack("<I", masked_crc(length)))
            file.write(data + struct.pack("<I", masked_crc(data)))


class Reader:
    """Bytes of a shard by (offset, length), from any thread; the open file is not pickled."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._lock = threading.Lock()
        self._descriptor = None

    def read(self, record: int, record_offset: int, offset: int, length: int) -> bytes:
        """`length` bytes at `offset` inside the record whose data begin at `record_offset`."""
        with self._lock:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY)
                weakref.finalize(self, os.close, self._descriptor)
        data = os.pread(self._descriptor, length, record_offset + offset)
        if len(data) < length:
            raise plugin.UserError(
                f"{self.path}: record {record}: got {len(data)} of {length} bytes at byte "
                f"{record_offset + offset}; the file became shorter while it was in use"
            )
        return data

    def __getstate__(self):
        return self.path

    def __setstate__(self, path):
        self.__init__(path)


def _corrupt(path, record: int, at: int, got: str, expected: str) -> plugin.UserError:
    return plugin.UserError(
        f"{path}: corrupt TFRecord: record {record} at byte {at}: got {got}, expected {expected}. "
        "Copy or download this shard again, or remove it together with its entry in shardLengths "
        "of dataset_info.json."
    )
