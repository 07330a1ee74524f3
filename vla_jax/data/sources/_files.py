"""Every byte of a data set comes through here: local files by `os.pread`, URLs through fsspec.

What a path may be, names and listings, whole reads and writes are those of `vla_jax/storage.py`,
which stand here too; this file adds byte ranges, stamps, and counts what is read. A file survives a
fork and is pickled as its path and stamp: descriptors stay in a table of this process.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import posixpath
import threading
from collections.abc import Mapping, Sequence

from vla_jax import plugin, storage
from vla_jax.storage import (
    Path,
    is_dir,
    is_file,
    is_url,
    join,
    name,
    names,
    normal,
    parent,
    writable,
    write,
)

__all__ = [
    "CHUNK",
    "DESCRIPTORS",
    "INDEX_DIR",
    "Counts",
    "File",
    "Path",
    "Stamp",
    "counts",
    "is_dir",
    "is_file",
    "is_url",
    "join",
    "name",
    "names",
    "normal",
    "parent",
    "read",
    "stamps",
    "stat",
    "writable",
    "write",
]
INDEX_DIR = "VLA_JAX_INDEX_DIR"  # the environment's folder for indexes that lie beside no data
DESCRIPTORS = 128  # kept open per process; a data set may have thousands of shards
CHUNK = 2**22  # bytes per request where a file is read from end to end


class Counts:
    """Bytes and requests that this process has read since `reset`; tests hold bounds to them."""

    def __init__(self):
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Both are 0 again."""
        self.bytes, self.requests = 0, 0

    def add(self, size: int, requests: int = 1) -> None:
        """Counts a read."""
        with self._lock:
            self.bytes += size
            self.requests += requests


counts = Counts()


@dataclasses.dataclass(frozen=True)
class Stamp:
    """What a file's content is known by without reading it.

    `version` is the modification time (local, ns), or what an object store gives: an etag, a
    generation, a date.
    """

    size: int
    version: str


class File:
    """Reads byte ranges of one file from any thread; pickled as its path and stamp.

    The stamp is checked where a local file is opened: another file by that name is a UserError.
    """

    def __init__(self, path: Path, stamp: Stamp | None = None):
        self.path = normal(path)
        self.stamp = stamp or stat(self.path)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`; UserError where the file ends before."""
        if is_url(self.path):
            system, inside = storage.system_of(self.path)
            data = system.cat_file(inside, start=offset, end=offset + length) if length else b""
        else:
            held = _descriptor(self.path, self.stamp)  # held, or another thread may close it
            data = _pread(held.number, offset, length)
        counts.add(len(data))
        return self._whole(data, offset, length)

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each (offset, length); of a URL together, in as few round trips as it has.

        Raises UserError as `read` does.
        """
        if not is_url(self.path) or len(ranges) < 2:
            return [self.read(*span) for span in ranges]
        system, inside = storage.system_of(self.path)
        starts, ends = [o for o, _ in ranges], [o + n for o, n in ranges]
        parts = system.cat_ranges([inside] * len(ranges), starts, ends, on_error="raise")
        counts.add(sum(map(len, parts)), len(parts))
        return [self._whole(part, *span) for part, span in zip(parts, ranges)]

    def open(self) -> io.BufferedReader:
        """The file from its beginning, to be read in order; close it or use it in `with`."""
        return io.BufferedReader(_Stream(self), CHUNK)

    def _whole(self, data: bytes, offset: int, length: int) -> bytes:
        if len(data) < length:
            raise plugin.UserError(
                f"{self.path}: got {len(data)} of {length} bytes at byte {offset}; the file is "
                "shorter than it was when it was indexed: copy or download it again"
            )
        return data


class _Stream(io.RawIOBase):
    def __init__(self, file: File):
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        length = max(0, min(len(buffer), self._file.stamp.size - self._at))
        buffer[:length] = self._file.read(self._at, length) if length else b""
        self._at += length
        return length

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.stamp.size}
        self._at = base[whence] + offset
        return self._at


def stat(path: Path) -> Stamp:
    """Size and version; UserError where there is no such file."""
    path = normal(path)
    try:
        if not is_url(path):
            found = os.stat(path)
            return Stamp(found.st_size, str(found.st_mtime_ns))
        system, inside = storage.system_of(path)
        system.invalidate_cache(posixpath.dirname(inside))
        info = system.info(inside)
    except FileNotFoundError as error:
        raise storage.missing(path) from error
    return _stamp(info)


def stamps(folder: Path) -> dict[str, Stamp]:
    """Path -> stamp of each file in a folder, by one listing; nothing where there is no folder."""
    folder = normal(folder)
    if not is_url(folder):
        return {join(folder, n): stat(join(folder, n)) for n in names(folder)}
    system, inside = storage.system_of(folder)
    system.invalidate_cache(inside)
    try:
        found = system.ls(inside, detail=True)
    except FileNotFoundError:
        return {}
    files = [info for info in found if info["type"] == "file"]
    return {join(folder, posixpath.basename(info["name"])): _stamp(info) for info in files}


def _stamp(info: Mapping) -> Stamp:
    """From what a file system tells of a file; their words for its version differ."""
    for key in "etag ETag generation md5Hash content_md5 mtime LastModified last_modified".split():
        if info.get(key):
            return Stamp(int(info["size"]), str(info[key]))
    made = info.get("created")  # a time, or of fsspec's memory in listings a number
    return Stamp(int(info["size"]), str(made.timestamp() if hasattr(made, "timestamp") else made))


def read(path: Path) -> bytes:
    """A whole file, counted; UserError where there is none."""
    data = storage.read(path)
    counts.add(len(data))
    return data


def _pread(number: int, offset: int, length: int) -> bytes:
    data = os.pread(number, length, offset)
    while len(data) < length:  # the kernel gives at most 2 GiB at once
        more = os.pread(number, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


class _Descriptor:
    """Closed when the last reader lets go of it: leaving the table does not break a read."""

    def __init__(self, path: str, stamp: Stamp):
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        found = os.fstat(self.number)
        if (found.st_size, str(found.st_mtime_ns)) != (stamp.size, stamp.version):
            raise plugin.UserError(
                f"{path}: is another file than when it was indexed ({found.st_size} bytes, "
                f"expected {stamp.size}, or written since); start again, its index is made anew"
            )

    def __del__(self):
        if hasattr(self, "number"):
            os.close(self.number)


@functools.lru_cache(maxsize=DESCRIPTORS)
def _descriptor(path: str, stamp: Stamp) -> _Descriptor:
    return _Descriptor(path, stamp)
