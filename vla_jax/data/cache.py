"""Images resized once to a stream's size, and read from there ever after.

    <path>/<data set>-<episodes>-<view>-256x256-tensorflow-jpeg95-<content>/
        manifest.json        what it was made of
        frames-00000.bin     8192 pictures: "VLAFRAME", count, count+1 offsets (int64), their bytes

Made where a source is opened first, by as many threads as there are cores, one file after the
other: each is written under another name and renamed when whole, so that a killed run leaves
nothing half written and the next goes on with the missing files. Several processes that make one
cache at a time do double work, no harm. Reading is one pread per picture.

The folder's name holds a hash of the pictures (their sizes in bytes, and the bytes of some): data
that changed under a cache are an error, not a second cache. `limit_gb` bounds all caches at `path`.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import simplejpeg

from vla_jax import plugin, storage
from vla_jax.data import images, mapped, passing
from vla_jax.data.episodes import Episodes, FrameReader
from vla_jax.types import SourceContext

MAGIC = b"VLAFRAME"
FORMATS = ("jpeg", "raw")
FRAMES = 8192  # pictures per file
SAMPLED = 16  # episodes whose first pictures are hashed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Where resized images lie and in what form.

    Attributes:
      path: a folder of caches; several runs and data sets may share it.
      format: "jpeg" (4:2:0) or "raw" (no loss, no decoding, ten times the size).
      quality: of JPEG, 1 to 100.
      limit_gb: how much all caches at `path` may take.
    """

    path: str
    format: str = "jpeg"
    quality: int = 95
    limit_gb: float = 50.0

    @classmethod
    def make(cls, where: str, given: Mapping) -> Settings:
        """From a config's dict; UserError for unknown names and numbers out of range."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                raise plugin.UserError(plugin.unknown(f"{where}: cache", name, known))
        if not given.get("path"):
            raise plugin.UserError(f"{where}: cache={dict(given)}: give path, a folder to write in")
        made = cls(**given)
        place = storage.local(f"{where}: cache.path", made.path)  # its pictures are read in place
        made = dataclasses.replace(made, path=str(place))
        if made.format not in FORMATS:
            raise plugin.UserError(plugin.unknown(f"{where}: cache format", made.format, FORMATS))
        if not 1 <= made.quality <= 100 or made.limit_gb <= 0:
            raise plugin.UserError(
                f"{where}: cache={dict(given)}: expected quality 1 to 100 and limit_gb > 0"
            )
        return made


class Resized:
    """A FrameReader of resized images; views that are not cached are read as before."""

    def __init__(self, where: str, episodes: Episodes, read: FrameReader, views: Mapping):
        self.where, self.episodes = where, episodes
        self.read, self.views = read, dict(views)

    def __call__(self, view: str, episode: int, rows: Sequence[int]) -> list[bytes | np.ndarray]:
        """See episodes.FrameReader."""
        if view not in self.views:
            return self.read(view, episode, rows)
        for row in rows:
            if self.views[view].is_broken(row):
                place = self.episodes.place(view, row)
                raise plugin.UserError(
                    f"{self.where}: {place}: no readable picture when the cache was made; repair "
                    "or remove the episode; if the fault has passed, delete the cache in "
                    f"{os.path.dirname(self.views[view].files[0])}"
                )
        return self.views[view].pictures(rows)


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """One view's cache, open for reading.

    Attributes:
      files: of all pictures, FRAMES in each.
      size: (height, width).
      raw: whether pictures are stored as arrays.
      number: int64 [N], of the picture of each row of the table; -1 = none.
      offset: int64 [pictures], byte in its file.
      length: int64 [pictures]; 0 = it could not be read when the cache was made.
    """

    files: tuple[str, ...]
    size: tuple[int, int]
    raw: bool
    number: np.ndarray
    offset: np.ndarray
    length: np.ndarray

    def is_broken(self, row: int) -> bool:
        """Whether there is a picture at a row of the table that could not be read."""
        number = int(self.number[row])
        return number >= 0 and not self.length[number]

    def pictures(self, rows: Sequence[int]) -> list[bytes | np.ndarray]:
        """The pictures of the table's rows; b"" where there is none."""
        found: list[bytes | np.ndarray] = []
        opened, descriptor = None, -1
        try:
            for number in self.number[np.asarray(rows)].tolist():
                if number < 0:
                    found.append(b"")
                    continue
                if number // FRAMES != opened:
                    if opened is not None:
                        os.close(descriptor)
                    opened = None
                    descriptor = os.open(self.files[number // FRAMES], os.O_RDONLY)
                    opened = number // FRAMES
                found.append(self._picture(descriptor, number))
        except FileNotFoundError as error:
            raise plugin.UserError(
                f"{error.filename}: no such file any more; a run that resizes images needs its "
                "cache to stay. Start it again to make the missing files."
            ) from error
        finally:
            if opened is not None:
                os.close(descriptor)
        return found

    def _picture(self, descriptor: int, number: int) -> bytes | np.ndarray:
        offset, length = int(self.offset[number]), int(self.length[number])
        if self.raw:
            picture = np.empty((*self.size, 3), np.uint8)
            got = os.preadv(descriptor, [picture], offset)
        else:
            picture = os.pread(descriptor, length, offset)
            got = len(picture)
        if got != length:
            raise _damaged(self.files[number // FRAMES], f"{got} of {length} bytes at {offset}")
        return picture


def resized(
    where: str,
    given: Mapping,
    context: SourceContext,
    episodes: Episodes,
    read: FrameReader,
    skips: bool = False,
) -> Resized:
    """The reader of the images at the stream's sizes; makes what is missing of its cache.

    Raises UserError for settings that do not fit, a cache that was made of other data, one that is
    damaged or would grow beyond its limit, and for a broken image (where it lies); if it `skips`
    them, when a sample asks for that image, and here for those whose fault may pass.
    """
    settings, views = Settings.make(where, given), {}
    for view, size in context.image_sizes.items():
        if view in episodes.frames and (episodes.frames[view].length > 0).any():
            maker = _Maker(
                where, settings, context.resize, episodes, read, view, tuple(size), skips
            )
            views[view] = maker.view()
    return Resized(where, episodes, read, views)


@dataclasses.dataclass
class _Maker:
    """Makes and opens one view's cache."""

    where: str
    settings: Settings
    method: str
    episodes: Episodes
    read: FrameReader
    name: str
    size: tuple[int, int]
    skips: bool

    def view(self) -> View:
        seen = self.episodes.frames[self.name].length > 0
        rows = np.flatnonzero(seen)
        parts = [rows[i : i + FRAMES] for i in range(0, len(rows), FRAMES)]
        folder = self._folder()
        files = [folder / f"frames-{i:05d}.bin" for i in range(len(parts))]
        missing = [i for i, file in enumerate(files) if not file.is_file()]
        if missing:
            self._make(files, parts, missing)
        indices = [_index(file, len(part)) for file, part in zip(files, parts)]
        number = np.full(len(seen), -1, np.int64)
        number[rows] = np.arange(len(rows))
        length = np.concatenate([np.diff(index) for index in indices])
        empty = rows[length == 0]
        if missing and len(empty):
            self._say(
                f"{len(empty)} of {len(rows)} images of {self.name} cannot be read and were left "
                f"empty, the first: {self.episodes.place(self.name, int(empty[0]))}"
            )
        return View(
            tuple(map(str, files)),
            self.size,
            self.settings.format == "raw",
            number,
            np.concatenate([index[:-1] for index in indices]),
            length,
        )

    def _folder(self) -> pathlib.Path:
        """The cache's folder, made with its manifest; UserError where it is of other data."""
        form = "raw" if self.settings.format == "raw" else f"jpeg{self.settings.quality}"
        which = mapped.digest(self.episodes.ids)[:8]
        look = "".join(f"{word}-" for word in self.episodes.looks.get(self.name, ()))
        stem = re.sub(
            r"[^\w.-]",
            "_",
            f"{self.episodes.name}-{which}-{self.name}-{look}{self.size[0]}x{self.size[1]}-"
            f"{self.method}-{form}",
        )
        content = self._content()
        root = pathlib.Path(self.settings.path)
        folder = root / f"{stem}-{content}"
        others = [p for p in sorted(root.glob(f"{stem}-*")) if p != folder]
        if others:
            raise plugin.UserError(
                f"{self.where}: cache: {others[0]} was made of the same episodes with other "
                f"pictures ({others[0].name[-16:]}, now {content}): the data changed under it. "
                "Delete it, or name another path."
            )
        folder.mkdir(parents=True, exist_ok=True)
        manifest = {
            "format_version": 1,
            "data_set": self.episodes.name,
            "episodes": len(self.episodes),
            "view": self.name,
            "size": self.size,
            "resize": self.method,
            "format": form,
            "content": content,
        }
        _write_whole(folder / "manifest.json", [json.dumps(manifest, indent=1).encode()])
        return folder

    def _content(self) -> str:
        frames, digest = self.episodes.frames[self.name], hashlib.blake2b(digest_size=8)
        digest.update(np.ascontiguousarray(self.episodes.start))
        digest.update(np.ascontiguousarray(self.episodes.step))
        digest.update(np.ascontiguousarray(frames.length))
        count = len(self.episodes)
        for episode in np.unique(np.linspace(0, count - 1, min(count, SAMPLED)).astype(int)):
            first, last = self.episodes.start[episode : episode + 2]
            rows = first + np.flatnonzero(frames.length[first:last] > 0)[:1]
            try:
                for data in self.read(self.name, int(episode), rows.tolist()):
                    digest.update(np.ascontiguousarray(np.frombuffer(data, np.uint8)))
            except plugin.UserError as error:
                self._check_skipped(error, int(rows[0]))
                digest.update(b"broken")  # messages hold paths and addresses
        return digest.hexdigest()

    def _make(self, files: list[pathlib.Path], parts: list[np.ndarray], missing: list[int]) -> None:
        root = pathlib.Path(self.settings.path)
        _sweep(files[0].parent)
        todo = sum(len(parts[i]) for i in missing)
        self._say(f"resizing {todo} images of {self.name} to {self.size} into {files[0].parent}")
        # Processes that make one cache together begin at different files.
        turn = os.getpid() % len(missing)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for i in missing[turn:] + missing[:turn]:
                if not files[i].is_file():
                    left = self.settings.limit_gb * 1e9 - _used(root)
                    _write_whole(files[i], self._body(pool, parts[i], left))

    def _body(self, pool, rows: np.ndarray, left: float) -> Iterator[bytes]:
        """The bytes of one file: a place for the header, the pictures, then the header."""
        offsets = np.zeros(len(rows) + 1, np.int64)
        offsets[0] = len(MAGIC) + 8 + offsets.nbytes
        yield bytes(int(offsets[0]))
        written = 0
        for part in np.array_split(rows, -(-len(rows) // 64)):
            for picture in pool.map(self._resized, part.tolist()):
                written += 1
                offsets[written] = offsets[written - 1] + len(picture)
                if offsets[written] > left:
                    raise plugin.UserError(
                        f"{self.where}: cache: {self.settings.path} would take more than "
                        f"limit_gb={self.settings.limit_gb}; raise it, choose format='jpeg' or a "
                        "lower quality, or delete old caches there"
                    )
                yield picture
        yield MAGIC + np.int64(len(rows)).tobytes() + offsets.tobytes()

    def _resized(self, row: int) -> bytes:
        """A row's picture as it is stored; nothing for a broken one that may be skipped."""
        episode = int(np.searchsorted(self.episodes.start, row, side="right")) - 1
        try:
            (data,) = self.read(self.name, episode, [row])
            image = images.decode(data, self.method) if isinstance(data, bytes) else data
        except plugin.UserError as error:
            self._check_skipped(error, row)
            return b""
        made = images.resize(image, self.size, self.method)
        if self.settings.format == "raw":
            return np.ascontiguousarray(made).tobytes()
        if made is image and isinstance(data, bytes) and data[:2] == b"\xff\xd8":
            return data  # at its size already: nothing is lost by encoding it again
        made = np.ascontiguousarray(made)
        return simplejpeg.encode_jpeg(
            made, quality=self.settings.quality, colorsubsampling="420", fastdct=False
        )

    def _check_skipped(self, error: plugin.UserError, row: int) -> None:
        """Raises `error`, with its place, unless it is skipped; one that may pass never is.

        What is left empty stays so in every later run.
        """
        passes = passing.passes(error)
        if self.skips and not passes:
            return
        more = "; this may pass: start again, what was made stays" if passes else ""
        place = self.episodes.place(self.name, row)
        raise plugin.UserError(f"{self.where}: {place}: {error}{more}") from error

    def _say(self, text: str) -> None:
        print(f"{self.where}: {text}", file=sys.stderr, flush=True)


def _write_whole(path: pathlib.Path, parts) -> None:
    """Writes `parts` one after the other, one that begins with MAGIC over the first; renames."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                if part[: len(MAGIC)] == MAGIC:
                    file.seek(0)
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _index(path: pathlib.Path, count: int) -> np.ndarray:
    """int64 [count + 1], the offsets of a file's pictures; UserError for one that is not whole."""
    with path.open("rb") as file:
        head = file.read(len(MAGIC) + 8)
        got = int.from_bytes(head[len(MAGIC) :], "little") if head[: len(MAGIC)] == MAGIC else -1
        if got != count:
            raise _damaged(path, f"{got} pictures, expected {count}")
        offsets = np.frombuffer(file.read(8 * (count + 1)), np.int64)
    if len(offsets) != count + 1 or path.stat().st_size != offsets[-1]:
        raise _damaged(path, f"{path.stat().st_size} bytes")
    return offsets


def _damaged(path, got: str) -> plugin.UserError:
    return plugin.UserError(
        f"{path}: damaged: got {got}; delete this file, the next run makes it again"
    )


def _used(root: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in root.glob("*/*") if path.is_file())


def _sweep(folder: pathlib.Path) -> None:
    """Removes what processes of this machine that are gone left half-written."""
    for path in folder.glob(f".*.{socket.gethostname()}.*.tmp"):
        try:
            os.kill(int(path.name.split(".")[-2]), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (ValueError, PermissionError):
            continue
