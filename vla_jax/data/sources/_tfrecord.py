"""TFRecord shards by byte offset, without TensorFlow: each length and record has its CRC checked.

record = length u64 | masked crc(length) u32 | data | masked crc(data) u32      (little endian)

A file under GZIP has no byte offsets to seek to. It is scanned as a stream; whoever wants places in
it unpacks it first (`unpack`; the index keeps that copy).
"""

from __future__ import annotations

import contextlib
import gzip
import struct
import zlib
from collections.abc import Iterator, Sequence

import google_crc32c

from vla_jax import plugin
from vla_jax.data.sources import _files

HEADER, FOOTER = 12, 4


def masked_crc(data: bytes) -> int:
    """TFRecord's checksum: CRC32C, rotated and shifted by a constant."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def is_gzip(file: _files.File) -> bool:
    """Whether a shard is compressed as a whole."""
    if file.stamp.size < HEADER:
        return False
    header = file.read(0, HEADER)
    plain = masked_crc(header[:8]) == struct.unpack("<I", header[8:])[0]
    return header[:2] == b"\x1f\x8b" and not plain  # a length may begin with those bytes, too


def unpack(file: _files.File, local: str) -> None:
    """Writes the plain records of a compressed shard to a local file.

    Of a broken one, what comes before the break: a scan of it finds a record cut short, or fewer.
    """
    broken = (gzip.BadGzipFile, EOFError, zlib.error)
    with file.open() as packed, gzip.open(packed) as plain, open(local, "wb") as out:
        with contextlib.suppress(*broken):
            while chunk := plain.read1(_files.CHUNK):
                out.write(chunk)


def scan(path: _files.Path) -> Iterator[tuple[int, bytes | plugin.UserError]]:
    """(byte offset of the data, data) of each record; in place of a corrupt record's data an error.

    It goes on behind a record whose data are corrupt, and ends where a length is.
    """
    file = _files.File(path)
    with file.open() as stream:
        packed = is_gzip(file)
        try:
            yield from _records(file, gzip.open(stream) if packed else stream, not packed)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            yield (
                0,
                plugin.UserError(
                    f"{file.path}: broken GZIP ({error}); copy or download this shard again"
                ),
            )


def _records(file: _files.File, stream, sized: bool):
    number, at = 0, 0
    while header := stream.read(HEADER):
        if len(header) < HEADER:
            got = f"{len(header)} bytes of a header"
            yield at, _corrupt(file.path, number, at, got, f"{HEADER} (a truncated copy?)")
            return
        length, crc = struct.unpack("<QI", header)
        if masked_crc(header[:8]) != crc:
            got = f"a length ({length}) with another CRC32C"
            yield at, _corrupt(file.path, number, at, got, hex(crc))
            return
        rest = file.stamp.size - at
        whole = not sized or HEADER + length + FOOTER <= rest
        data = stream.read(length) if whole else b""
        footer = stream.read(FOOTER) if whole else b""
        if len(data) < length or len(footer) < FOOTER:
            expected = f"{HEADER + length + FOOTER} (a truncated copy?)"
            yield at, _corrupt(file.path, number, at, f"{rest} bytes to the end", expected)
            return
        (crc,) = struct.unpack("<I", footer)
        good = masked_crc(data) == crc
        yield (
            at + HEADER,
            data
            if good
            else _corrupt(file.path, number, at, f"{length} bytes with another CRC32C", hex(crc)),
        )
        number, at = number + 1, at + HEADER + length + FOOTER


def places(file: _files.File) -> list[tuple[int, int]]:
    """(offset, length) of each record's data, from the headers alone; UserError at a bad one."""
    found, at = [], 0
    while at < file.stamp.size:
        header = file.read(at, HEADER)
        length, crc = struct.unpack("<QI", header)
        if masked_crc(header[:8]) != crc:
            got = f"a length ({length}) with another CRC32C"
            raise _corrupt(file.path, len(found), at, got, hex(crc))
        found.append((at + HEADER, length))
        at += HEADER + length + FOOTER
    return found


def whole(path: _files.Path) -> list[tuple[int, int]]:
    """The same of a shard that is read from end to end, under GZIP, too; UserError at a bad one."""
    found = []
    for offset, data in scan(path):
        if isinstance(data, plugin.UserError):
            raise data
        found.append((offset, len(data)))
    return found


def record(file: _files.File, number: int, offset: int, length: int) -> bytes:
    """One record's data, its CRC checked; UserError for another."""
    data = file.read(offset, length + FOOTER)
    (crc,) = struct.unpack("<I", data[length:])
    if masked_crc(data[:length]) != crc:
        got = f"{length} bytes with another CRC32C"
        raise _corrupt(file.path, number, offset - HEADER, got, hex(crc))
    return data[:length]


def write(path: _files.Path, records) -> None:
    """Writes `records` (bytes) as one shard (for tests and small tools; TFDS writes data sets)."""
    parts = []
    for data in records:
        length = struct.pack("<Q", len(data))
        parts += [length, struct.pack("<I", masked_crc(length))]
        parts += [data, struct.pack("<I", masked_crc(data))]
    _files.write(path, b"".join(parts))


class Reader:
    """Bytes inside the records of a shard, from any thread; pickled without open files."""

    def __init__(self, path: _files.Path, stamp: _files.Stamp | None = None):
        self.file = _files.File(path, stamp)

    def read(
        self, record: int, record_offset: int, spans: Sequence[tuple[int, int]]
    ) -> list[bytes]:
        """The (offset, length) `spans` of the record whose data begin at `record_offset`."""
        del record  # its place says enough
        return self.file.read_many([(record_offset + start, size) for start, size in spans])


def _corrupt(path, record: int, at: int, got: str, expected: str) -> plugin.UserError:
    return plugin.UserError(
        f"{path}: corrupt TFRecord: record {record} at byte {at}: got {got}, expected {expected}. "
        "Copy or download this shard again, or leave its broken episodes out with "
        "bad_samples='skip'."
    )
