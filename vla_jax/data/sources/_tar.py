"""Random access to the samples of WebDataset-style tar shards: an index once, then one read each.

A sample is the members of one shard that share a key: the path up to the first dot of the name.

    000/cat.jpg  000/cat.json        key "000/cat", endings jpg and json, each (offset, size)

The webdataset package reads shards from front to back; here any sample can be asked for, so that
the order stays a pure function of n. An index is a few arrays, not an object per sample: shards of
millions of pictures fit in memory and travel to workers. No plug-in (leading underscore).
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.data import order, runs
from vla_jax.data.sources import _files, _sidecar

KIND = "tar 1"
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


class Shards:
    """The samples of some tar files, in the files' order; safe to pickle and to read in threads.

    Attributes:
      endings: E lower-case endings that any sample has.
      offset, size: int64 [S, E], where a sample's member lies in its shard; size -1: it has none.
      share: float64 [S] in [0, 1), a hash of the key alone, whatever else is in the shards.
    """

    def __init__(self, paths: Sequence[str], index_dir: str | None = None):
        self.paths = tuple(paths)
        found = [_sidecar.indexed(path, KIND, scan, index_dir) for path in self.paths]
        self.files = [file for file, _ in found]
        endings = [bytes(arrays["endings"]).decode().split("\n") for _, arrays in found]
        self.endings = tuple(sorted({ending for part in endings for ending in part}))
        counts = [len(arrays["share"]) for _, arrays in found]
        self.shard = np.repeat(np.arange(len(found), dtype=np.int32), counts)
        self.offset = _aligned(self.endings, endings, [a["offset"] for _, a in found])
        self.size = _aligned(self.endings, endings, [a["size"] for _, a in found])
        self.share = _joined([arrays["share"] for _, arrays in found], np.float64)
        self._keys = _joined([arrays["keys"] for _, arrays in found], np.uint8)
        lengths = _joined([arrays["key_length"] for _, arrays in found], np.int64)
        self._key_end = np.cumsum(lengths)
        self._runs: runs.RunReader | None = None

    def __len__(self) -> int:
        return len(self.shard)

    def key(self, i: int) -> str:
        """The key of sample i."""
        begin = int(self._key_end[i - 1]) if i else 0
        return self._keys[begin : int(self._key_end[i])].tobytes().decode()

    def members(self, i: int) -> tuple[str, ...]:
        """The endings that sample i has."""
        return tuple(e for e, size in zip(self.endings, self.size[i]) if size >= 0)

    def have(self, endings: Sequence[str]) -> np.ndarray:
        """Which samples have one of `endings`: bool [S]."""
        columns = [self.endings.index(ending) for ending in endings if ending in self.endings]
        return (self.size[:, columns] >= 0).any(axis=1)

    def read(self, i: int, ending: str) -> bytes:
        """The bytes of one member; UserError when the file has changed since it was indexed."""
        column = self.endings.index(ending)
        offset, size = int(self.offset[i, column]), int(self.size[i, column])
        if self._runs is not None and (run := int(self._runs.run_of[i])) >= 0:
            begin = offset - int(self._runs.ranges[run, 1])
            return self._runs.run(run)[begin : begin + size]
        return self.files[self.shard[i]].read(offset, size)

    def in_runs(
        self, samples: np.ndarray, endings: Sequence[str], num_runs: int, run_bytes: int
    ) -> order.Contiguous:
        """The order of `samples` (ascending) by runs of a shard; from now on whole runs are read.

        A run is what begins in the same `run_bytes` bytes of a shard, of the members with one of
        `endings`.
        """
        columns = [self.endings.index(ending) for ending in endings if ending in self.endings]
        offset, size = self.offset[samples][:, columns], self.size[samples][:, columns]
        begin = np.where(size >= 0, offset, np.iinfo(np.int64).max).min(axis=1)
        end = np.where(size >= 0, offset + size, 0).max(axis=1)
        shard = self.shard[samples].astype(np.int64)
        window = begin // run_bytes
        new = (np.diff(shard) != 0) | (np.diff(window) != 0)
        first = np.concatenate([[0], np.flatnonzero(new) + 1])
        low, high = np.minimum.reduceat(begin, first), np.maximum.reduceat(end, first)
        run_of = np.full(len(self), -1, np.int32)
        lengths = np.diff(np.append(first, len(samples)))
        run_of[samples] = np.repeat(np.arange(len(first)), lengths)
        ranges = np.stack([shard[first], low, high], axis=1)
        self._runs = runs.RunReader(_Fetch(self.files), run_of, ranges, 2 * num_runs)
        return order.Contiguous(np.append(first, len(samples)), num_runs)

    def where(self, i: int) -> str:
        """What to call a sample in an error: file and key."""
        return f"{self.paths[self.shard[i]]}: {self.key(i)}"

    def fingerprint(self, selected: np.ndarray) -> str:
        """A hash of the keys, places and sizes of the samples `selected`."""
        digest = hashlib.sha256(repr(self.endings).encode())
        for array in (self._keys, self._key_end, self.shard, self.offset, self.size, selected):
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()


class _Fetch:
    """What a RunReader fetches by: (shard, offset, length) -> bytes."""

    def __init__(self, files: Sequence[_files.File]):
        self.files = files

    def fetch(self, shard: int, offset: int, length: int) -> bytes:
        return self.files[shard].read(offset, length)


def find(where: str, path: str | Sequence[str]) -> list[str]:
    """The tar files that `path` means: a file, a folder of *.tar, a pattern, or several.

    Patterns are a glob's ("*", "?", "[0-9]"; of a URL in its last part) and braces, which name
    files that must be there: ``web/{00000..00127}.tar``, ``{train,extra}-*.tar``. Sorted within
    each; UserError when one of them finds nothing.
    """
    found: list[str] = []
    for given in [path] if isinstance(path, str | os.PathLike) else path:
        for part in braces(os.fspath(given)):
            files = _matching(part)
            if not files:
                raise plugin.UserError(
                    f"{where}: no tar at {part!r}; give a .tar file, a folder of them, or a pattern"
                )
            found += files
    twice = sorted({file for file in found if found.count(file) > 1}) if len(found) < 10**4 else []
    if twice:
        raise plugin.UserError(f"{where}: {twice[0]} is named twice in {path!r}; name it once")
    return found


def braces(pattern: str) -> Iterator[str]:
    """`pattern` with its braces written out, as a shell does: {a,b} and {007..012}."""
    match = BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    span = RANGE.fullmatch(match[1])
    parts = match[1].split(",")
    if span:
        first, last = int(span[1]), int(span[2])
        parts = [str(i).zfill(len(span[1])) for i in range(first, last + 1)]
    for part in parts:
        yield from braces(pattern[: match.start()] + part + pattern[match.end() :])


def _matching(part: str) -> list[str]:
    if _files.is_file(part):
        return [_files.normal(part)]
    if _files.is_dir(part):
        part = _files.join(part, "*.tar")
    if not glob.has_magic(part):
        return []
    if not _files.is_url(part):
        return sorted(glob.glob(_files.normal(part)))
    folder, pattern = _files.parent(part), _files.name(part)
    return [_files.join(folder, n) for n in _files.names(folder) if fnmatch.fnmatch(n, pattern)]


def scan(file: _files.File) -> Mapping[str, np.ndarray]:
    """The samples of one tar, in the order of their first members."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    length = file.stamp.size
    try:
        with file.open() as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for info in tar:
                folder, _, name = info.name.rpartition("/")
                if not info.isfile() or name.startswith("."):
                    continue
                stem, _, ending = name.partition(".")
                if info.offset_data + info.size > length:
                    raise tarfile.ReadError(f"member {info.name} ends behind the end of the file")
                members = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
                if ending.lower() in members:
                    raise plugin.UserError(
                        f"{file.path}: two members {info.name}; keys must differ"
                    )
                members[ending.lower()] = (info.offset_data, info.size)
    except (tarfile.TarError, EOFError) as error:
        raise plugin.UserError(
            f"{file.path}: got {length} bytes that are no whole, uncompressed tar ({error}); "
            "unpack a compressed one (gunzip), copy a broken one again"
        ) from error
    endings = sorted({ending for members in samples.values() for ending in members})
    places = np.full((len(samples), len(endings), 2), -1, np.int64)
    for i, members in enumerate(samples.values()):
        for ending, place in members.items():
            places[i, endings.index(ending)] = place
    keys = [key.encode() for key in samples]
    return {
        "endings": np.frombuffer("\n".join(endings).encode(), np.uint8),
        "offset": places[..., 0],
        "size": places[..., 1],
        "keys": np.frombuffer(b"".join(keys), np.uint8),
        "key_length": np.asarray([len(key) for key in keys], np.int64),
        "share": np.asarray([share(key) for key in keys], np.float64),
    }


def share(key: bytes) -> float:
    """A number in [0, 1) that depends on `key` alone."""
    return (int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 11) / 2**53


def _aligned(endings: Sequence[str], of: list[list[str]], parts: list[np.ndarray]) -> np.ndarray:
    """The shards' columns put in the order of `endings`; -1 where a shard lacks one."""
    rows = []
    for names, part in zip(of, parts):
        row = np.full((len(part), len(endings)), -1, np.int64)
        if len(part):
            row[:, [endings.index(name) for name in names]] = part
        rows.append(row)
    return _joined(rows, np.int64)


def _joined(parts: list[np.ndarray], dtype) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
