"""Every byte of a data set comes through here: local files by `os.pread`, URLs through fsspec.

    "runs/demos"  "/data/droid"  "file:///data/droid"      a local file system
    "gs://…"  "s3://…"  "https://…"  "memory://…"          whatever fsspec has a package for

Paths are strings (pathlib would take a slash out of a URL). Nothing here holds a connection or a
descriptor that would not survive a fork or be pickled: descriptors stay in a table of this process,
and fsspec keeps its file systems by process.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import pathlib
import posixpath
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from vla_jax import plugin

Path = str | os.PathLike
INDEX_DIR = "VLA_JAX_INDEX_DIR"  # the environment's folder for indexes that lie beside no data
DESCRIPTORS = 128  # kept open per process; a data set may have thousands of shards
CHUNK = 2**22  # bytes per request where a file is read from end to end
OLD = 3600.0  # s after which what a killed writer left behind is swept away


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
            system, inside = _system(self.path)
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
        system, inside = _system(self.path)
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


def is_url(path: Path) -> bool:
    """Whether fsspec reads it."""
    return "://" in str(path)


def normal(path: Path) -> str:
    """The path as a string: `~` expanded, `file://` and closing slashes taken away."""
    text = os.fspath(path)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if is_url(text):
        scheme, rest = text.split("://", 1)
        return f"{scheme}://{rest.rstrip('/')}"
    return os.path.normpath(os.path.expanduser(text))


def join(path: Path, *names: str) -> str:
    """The path of something below."""
    return posixpath.join(normal(path), *names) if is_url(path) else os.path.join(path, *names)


def name(path: Path) -> str:
    """The last part."""
    return posixpath.basename(normal(path))


def parent(path: Path) -> str:
    """The folder it lies in; of a URL's root, itself."""
    path = normal(path)
    if is_url(path):
        scheme, rest = path.split("://", 1)
        return f"{scheme}://{posixpath.dirname(rest)}"
    return os.path.dirname(path) or os.curdir


def is_file(path: Path) -> bool:
    """Whether there is a file of that name."""
    if is_url(path):
        system, inside = _system(normal(path))
        return system.isfile(inside)
    return os.path.isfile(normal(path))


def is_dir(path: Path) -> bool:
    """Whether there is a folder of that name (object stores: something below it)."""
    if is_url(path):
        system, inside = _system(normal(path))
        return system.isdir(inside)
    return os.path.isdir(normal(path))


def names(path: Path) -> list[str]:
    """What lies in a folder, sorted; nothing where there is no such folder."""
    if not is_url(path):
        return sorted(os.listdir(normal(path))) if is_dir(path) else []
    system, inside = _system(normal(path))
    try:
        found = system.ls(inside, detail=False)
    except FileNotFoundError:
        return []
    return sorted({posixpath.basename(f.rstrip("/")) for f in found} - {""})


def stat(path: Path) -> Stamp:
    """Size and version; UserError where there is no such file."""
    path = normal(path)
    try:
        if not is_url(path):
            found = os.stat(path)
            return Stamp(found.st_size, str(found.st_mtime_ns))
        system, inside = _system(path)
        system.invalidate_cache(posixpath.dirname(inside))
        info = system.info(inside)
    except FileNotFoundError as error:
        beside = names(parent(path))
        raise plugin.UserError(plugin.unknown(f"{path}: no such file", name(path), beside)) from (
            error
        )
    return _stamp(info)


def stamps(folder: Path) -> dict[str, Stamp]:
    """Path -> stamp of each file in a folder, by one listing; nothing where there is no folder."""
    folder = normal(folder)
    if not is_url(folder):
        return {join(folder, n): stat(join(folder, n)) for n in names(folder)}
    system, inside = _system(folder)
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
    """A whole file; UserError where there is none."""
    file = File(path)
    return file.read(0, file.stamp.size)


def write(path: Path, data: bytes | Callable[[str], None]) -> None:
    """Writes a file so that others see all of it or nothing, and makes its folders.

    Args:
      path: local, or a URL of a file system that can write.
      data: the bytes; or a function that writes them into the local file whose name it is given.
    """
    path = normal(path)
    if is_url(path):
        _upload(path, data)
        return
    folder = os.path.dirname(path) or os.curdir
    os.makedirs(folder, exist_ok=True)
    _sweep(folder, os.path.basename(path))
    number, temporary = tempfile.mkstemp(dir=folder, prefix=_leftover(os.path.basename(path)))
    os.close(number)
    try:
        _fill(temporary, data)
        umask = os.umask(0)  # mkstemp's files are their owner's alone; ours are shared
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(folder)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def writable(folder: Path) -> bool:
    """Whether files can be written into a folder, which need not exist yet."""
    folder = normal(folder)
    if is_url(folder):
        try:
            probe = join(folder, f".probe-{os.getpid()}-{time.time_ns()}")
            _upload(probe, b"")
            system, inside = _system(probe)
            system.rm_file(inside)
        except Exception:  # each file system has its own way to refuse
            return False
        return True
    while not os.path.exists(folder):
        folder = os.path.dirname(folder) or os.curdir
    marked = os.stat(folder).st_mode & 0o222 == 0  # read-only by its owner's will, even to root
    return os.access(folder, os.W_OK | os.X_OK) and not marked


def _upload(path: str, data: bytes | Callable[[str], None]) -> None:
    if callable(data):
        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, "file")
            data(local)
            data = pathlib.Path(local).read_bytes()
    system, inside = _system(path)
    system.makedirs(posixpath.dirname(inside), exist_ok=True)
    system.pipe_file(inside, data)  # object stores show an object when all of it has arrived


def _fill(path: str, data: bytes | Callable[[str], None]) -> None:
    if callable(data):
        data(path)
    else:
        pathlib.Path(path).write_bytes(data)


def _flush(path: str) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _leftover(target: str) -> str:
    return f".{target}.partial-"


def _sweep(folder: str, target: str) -> None:
    """Removes what writers of `target` that were killed long ago left behind."""
    for entry in os.scandir(folder):
        if entry.name.startswith(_leftover(target)):
            try:
                if time.time() - entry.stat().st_mtime > OLD:
                    os.unlink(entry.path)
            except FileNotFoundError:  # another process swept it
                pass


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


def _system(path: str):
    """(fsspec's file system of this process, the path inside); UserError without its package."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise plugin.UserError(
            f"{path}: {error}; expected a local path or a URL that an installed fsspec package "
            "reads (gcsfs for gs://, s3fs for s3://)"
        ) from error
