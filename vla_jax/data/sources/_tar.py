"""Random access to the samples of WebDataset-style tar shards: an index once, then one pread each.

A sample is the members of one shard that share a key: the path up to the first dot of the name.

    000/cat.jpg  000/cat.json        key "000/cat", {"jpg": (offset, size), "json": (offset, size)}

The webdataset package reads shards from front to back; here any sample can be asked for, so that
the order stays a pure function of n. No plug-in (leading underscore).
"""

from __future__ import annotations

import glob
import os
import pathlib
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass

from vla_jax import plugin


@dataclass(frozen=True)
class Sample:
    """Where a sample's members lie: `members` maps an ending to (offset, size) in bytes."""

    shard: int
    key: str
    members: dict[str, tuple[int, int]]


class Shards:
    """The samples of some tar files, in the files' order; safe to pickle and to read in threads."""

    def __init__(self, paths: Sequence[pathlib.Path]):
        self.paths = tuple(paths)
        self._files: dict[int, int] = {}
        self.samples: list[Sample] = []
        for shard, path in enumerate(self.paths):
            self.samples += _index(path, shard)

    def read(self, sample: Sample, ending: str) -> bytes:
        """The bytes of one member; UserError when the file has been cut since it was indexed."""
        offset, size = sample.members[ending]
        if sample.shard not in self._files:
            self._files[sample.shard] = os.open(self.paths[sample.shard], os.O_RDONLY)
        data = os.pread(self._files[sample.shard], size, offset)
        if len(data) != size:
            raise plugin.UserError(
                f"{self.where(sample)}.{ending}: got {len(data)} bytes, expected {size}; "
                "the tar has changed since it was indexed"
            )
        return data

    def where(self, sample: Sample) -> str:
        """What to call a sample in an error: file and key."""
        return f"{self.paths[sample.shard]}: {sample.key}"

    def __getstate__(self):
        return {**self.__dict__, "_files": {}}  # descriptors belong to their process

    def __del__(self):
        for file in getattr(self, "_files", {}).values():
            os.close(file)


def find(where: str, path: str | Sequence[str]) -> list[pathlib.Path]:
    """The tar files that `path` means: a file, a folder of *.tar, a glob pattern, or several.

    Sorted within each; UserError when one of them finds nothing.
    """
    found: list[pathlib.Path] = []
    for part in [path] if isinstance(path, (str, os.PathLike)) else path:
        part = os.fspath(part)
        pattern = os.path.join(part, "*.tar") if os.path.isdir(part) else part
        files = [part] if os.path.isfile(part) else sorted(glob.glob(pattern))
        if not files:
            raise plugin.UserError(
                f"{where}: no tar at {pattern!r}; give a .tar file, a folder of them, or a pattern"
            )
        found += [pathlib.Path(file) for file in files]
    return found


def _index(path: pathlib.Path, shard: int) -> list[Sample]:
    """The samples of one tar, in the order of their first members."""
    samples: dict[str, Sample] = {}
    length = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                folder, _, name = info.name.rpartition("/")
                if not info.isfile() or name.startswith("."):
                    continue
                stem, _, ending = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if info.offset_data + info.size > length:
                    raise tarfile.ReadError(f"member {info.name} ends behind the end of the file")
                sample = samples.setdefault(key, Sample(shard, key, {}))
                if ending in sample.members:
                    raise plugin.UserError(f"{path}: two members {info.name}; keys must differ")
                sample.members[ending.lower()] = (info.offset_data, info.size)
    except (tarfile.TarError, EOFError) as error:
        raise plugin.UserError(
            f"{path}: got {length} bytes that are no whole, uncompressed tar ({error}); "
            "unpack a compressed one (gunzip), copy a broken one again"
        ) from error
    return list(samples.values())
