"""Small files at local paths and URLs, one way for all: names, listings, whole reads and writes.

    "runs/demo"  "/data/droid"  "file:///data/droid"       a local file system
    "gs://…"  "s3://…"  "https://…"  "memory://…"          whatever fsspec has a package for

A path is a string, or what `path` gives: pathlib's locally, etils.epath's for a URL (pathlib itself
would take a slash out of it). Arrays of checkpoints are Orbax's business, byte ranges of data sets
that of data/sources/_files.py. Nothing here holds a connection that would not survive a fork:
fsspec keeps its file systems by process.
"""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import posixpath
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

from vla_jax import plugin

# epath loads TensorFlow for a URL where that is installed, and decides so once, at its first path.
os.environ.setdefault("EPATH_USE_TF", "false")

Path = str | os.PathLike
Data = bytes | str | Callable[[str], None]  # or what writes into the local file of a given name
OLD = 3600.0  # s after which what a killed writer left behind is swept away
PERIOD = 30.0  # s between two puts of a growing file: object stores append nothing


def is_url(path: Path) -> bool:
    """Whether fsspec reads it."""
    return "://" in os.fspath(path)


def normal(path: Path) -> str:
    """The path as a string: `~` expanded, `file://` and closing slashes taken away."""
    text = os.fspath(path)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if is_url(text):
        scheme, rest = text.split("://", 1)
        return f"{scheme}://{rest.rstrip('/')}"
    return os.path.normpath(os.path.expanduser(text))


def absolute(path: Path) -> str:
    """The path as a string that does not depend on the working folder."""
    path = normal(path)
    return path if is_url(path) else os.path.abspath(path)


def path(place: Path) -> pathlib.PurePosixPath:
    """An absolute path to compute with: `/`, name, parent. A pathlib.Path, or an epath of a URL.

    Its files are read and written by this file's functions. UserError for a URL that epath, which
    Orbax uses, does not know.
    """
    text = absolute(place)
    if not is_url(text):
        return pathlib.Path(text)
    if not text.startswith(("gs://", "s3://")):
        raise plugin.UserError(f"{text}: expected a local path, gs://BUCKET/… or s3://BUCKET/…")
    import fsspec
    from etils import epath

    # epath would remember listings for ever.
    for protocol in ("gs", "gcs", "s3"):
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    return epath.Path(text)


def local(where: str, place: Path) -> pathlib.Path:
    """The path of what must lie on this machine; UserError, which begins with `where`, for a URL.

    pathlib would write to a folder of that name.
    """
    if is_url(normal(place)):
        raise plugin.UserError(
            f"{where}: got {place}, expected a local path; copy it there, or from there, yourself"
        )
    return pathlib.Path(normal(place))


def check_parent(where: str, path: Path) -> None:
    """UserError, which begins with `where`, unless the folder of a new file is there; URLs pass."""
    folder = parent(absolute(path))
    if not is_url(folder) and not is_dir(folder):
        raise plugin.UserError(f"{where}: {path}: no folder {folder}; make it first")


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
        system, inside = system_of(path)
        return system.isfile(inside)
    return os.path.isfile(normal(path))


def is_dir(path: Path) -> bool:
    """Whether there is a folder of that name (object stores: something below it)."""
    if is_url(path):
        system, inside = system_of(path)
        return system.isdir(inside)
    return os.path.isdir(normal(path))


def names(path: Path) -> list[str]:
    """What lies in a folder, sorted; nothing where there is no such folder."""
    if not is_url(path):
        return sorted(os.listdir(normal(path))) if is_dir(path) else []
    system, inside = system_of(path)
    try:
        found = system.ls(inside, detail=False)
    except FileNotFoundError:
        return []
    return sorted({posixpath.basename(f.rstrip("/")) for f in found} - {""})


def sizes(folder: Path) -> dict[str, int]:
    """{path from there: bytes} of all files below a folder, sorted; at a URL by one listing."""
    if is_url(folder):
        system, inside = system_of(folder)
        found = system.find(inside, detail=True)
        bare = inside.rstrip("/") + "/"
        return {p.removeprefix(bare): int(info["size"]) for p, info in sorted(found.items())}
    root = pathlib.Path(normal(folder))
    files = (p for p in root.rglob("*") if p.is_file())
    return dict(sorted((p.relative_to(root).as_posix(), p.stat().st_size) for p in files))


def read(path: Path) -> bytes:
    """A whole file; UserError where there is none."""
    path = normal(path)
    try:
        if is_url(path):
            system, inside = system_of(path)
            return system.cat_file(inside)
        return pathlib.Path(path).read_bytes()
    except FileNotFoundError as error:
        raise missing(path) from error


def reader(path: Path) -> BinaryIO:
    """A file opened to be read in order, for `with`; FileNotFoundError where there is none."""
    if is_url(path):
        system, inside = system_of(path)
        return system.open(inside, "rb")
    return open(normal(path), "rb")


@contextlib.contextmanager
def fetched(path: Path) -> Iterator[str]:
    """The name of a local file with the content of `path`: its own, or a copy that goes at the end.

    For libraries that open names. UserError where a URL has no such file.
    """
    if not is_url(normal(path)):
        yield normal(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, name(path))
        try:
            with reader(path) as file, open(copy, "wb") as out:
                shutil.copyfileobj(file, out, 2**24)
        except FileNotFoundError as error:
            raise missing(path) from error
        yield copy


def missing(path: Path) -> plugin.UserError:
    """The error of a file that is not there; it names the nearest beside it."""
    return plugin.UserError(
        plugin.unknown(f"{path}: no such file", name(path), names(parent(path)))
    )


def write(path: Path, data: Data, make: bool = True) -> None:
    """Writes a file so that others see all of it or nothing, and makes its folders.

    Args:
      path: local, or a URL of a file system that can write.
      data: the content; or a function that writes it into the local file whose name it is given.
      make: without it FileNotFoundError where a local folder is missing (a URL has none).
    """
    write_all({path: data}, make)


def write_all(files: Mapping[Path, Data], make: bool = True) -> None:
    """Writes several files like `write`; local ones are put in place when all have been written."""
    waiting: list[tuple[str, str]] = []
    try:
        for path, data in files.items():
            path = normal(path)
            if is_url(path):
                _upload(path, data)
            else:
                waiting.append((_beside(path, data, make), path))
        for temporary, path in waiting:
            os.replace(temporary, path)
            flush(os.path.dirname(path) or os.curdir)
    finally:
        for temporary, _ in waiting:
            pathlib.Path(temporary).unlink(missing_ok=True)


def create(path: Path, data: bytes) -> None:
    """Writes a small file that is not there yet; FileExistsError where it is.

    Of several that try at once one succeeds: by O_EXCL, or by the store's precondition (GCS:
    generation 0, S3: If-None-Match).
    """
    if is_url(path):
        system, inside = system_of(path)
        system.pipe_file(inside, data, mode="create")
        return
    with open(normal(path), "xb") as file:
        file.write(data)


def remove(path: Path) -> None:
    """Removes a file, where there is one."""
    if not is_url(path):
        pathlib.Path(normal(path)).unlink(missing_ok=True)
        return
    system, inside = system_of(path)
    try:
        system.rm_file(inside)
    except FileNotFoundError:
        pass


class Appending:
    """A file that grows, as a log does: what is there stays, `write` adds to its end.

    At a URL it is put as a whole, at most every PERIOD and when it is closed, so that a process
    that is killed loses what came since.
    """

    def __init__(self, path: Path):
        self._path, self._file = normal(path), None
        if is_url(self._path):
            self._data = bytearray(read(self._path) if is_file(self._path) else b"")
            self._put, self._clean = time.monotonic(), True
        else:
            os.makedirs(os.path.dirname(self._path) or os.curdir, exist_ok=True)
            self._file = open(self._path, "ab")

    def write(self, data: bytes) -> None:
        """Adds bytes; local files have them after `flush`."""
        if self._file is not None:
            self._file.write(data)
        else:
            self._data += data
            self._clean = False

    def flush(self, now: bool = False) -> None:
        """Lets others see what was added (a URL: if it is time, or `now`)."""
        if self._file is not None:
            self._file.flush()
        elif not self._clean and (now or time.monotonic() - self._put >= PERIOD):
            write(self._path, bytes(self._data))
            self._put, self._clean = time.monotonic(), True

    def close(self) -> None:
        """Flushes and closes."""
        self.flush(now=True)
        if self._file is not None:
            self._file.close()


def writable(folder: Path) -> bool:
    """Whether files can be written into a folder, which need not exist yet."""
    folder = normal(folder)
    if is_url(folder):
        try:
            probe = join(folder, f".probe-{os.getpid()}-{time.time_ns()}")
            _upload(probe, b"")
            remove(probe)
        except Exception:  # each file system has its own way to refuse
            return False
        return True
    while not os.path.exists(folder):
        folder = os.path.dirname(folder) or os.curdir
    marked = os.stat(folder).st_mode & 0o222 == 0  # read-only by its owner's will, even to root
    return os.access(folder, os.W_OK | os.X_OK) and not marked


def free(folder: Path) -> float:
    """Bytes free on the disk of a folder, which need not exist yet; a bucket has no end."""
    if is_url(folder):
        return math.inf
    path = pathlib.Path(absolute(folder))
    return shutil.disk_usage(next(p for p in (path, *path.parents) if is_dir(p))).free


def system_of(path: Path):
    """(fsspec's file system of this process, the path inside); UserError without its package."""
    import fsspec

    path = normal(path)
    try:
        # Listings are never remembered: files come and go while we look.
        return fsspec.core.url_to_fs(path, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise plugin.UserError(
            f"{path}: {error}; expected a local path or a URL that an installed fsspec package "
            "reads (gcsfs for gs://, s3fs for s3://)"
        ) from error


def _upload(path: str, data: Data) -> None:
    if callable(data):
        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, "file")
            data(local)
            data = pathlib.Path(local).read_bytes()
    system, inside = system_of(path)
    system.makedirs(posixpath.dirname(inside), exist_ok=True)
    # Object stores show an object when all of it has arrived.
    system.pipe_file(inside, data.encode() if isinstance(data, str) else data)


def _beside(path: str, data: Data, make: bool) -> str:
    """A hidden file beside `path` with the content, on disk."""
    folder, target = os.path.dirname(path) or os.curdir, os.path.basename(path)
    if make:
        os.makedirs(folder, exist_ok=True)
    _sweep(folder, target)
    number, temporary = tempfile.mkstemp(dir=folder, prefix=_leftover(target))
    os.close(number)
    try:
        if callable(data):
            data(temporary)
        else:
            whole = data.encode() if isinstance(data, str) else data
            pathlib.Path(temporary).write_bytes(whole)
        umask = os.umask(0)  # mkstemp's files are their owner's alone; ours are shared
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        flush(temporary)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
    return temporary


def flush(path: Path) -> None:
    """Brings what was written to a local file or folder to the disk."""
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
