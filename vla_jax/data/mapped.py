"""Arrays and texts in one file that every process maps, in the safetensors format.

Worker processes share its pages, and an array of it is pickled as its place in the file:

    parent ──pickle──▶ (path, offset, dtype, shape) ──▶ worker maps the same pages

What a derived array (a slice, a sum) holds is its own and is pickled by value, as any other.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence

import google_crc32c
import numpy as np

from vla_jax import plugin

CHUNK = 2**20
SHARED = 2**20  # bytes from which an array is shared by a file
DTYPES = {
    np.dtype(name): code
    for name, code in (
        ("bool", "BOOL"),
        ("uint8", "U8"),
        ("int8", "I8"),
        ("int16", "I16"),
        ("int32", "I32"),
        ("int64", "I64"),
        ("float32", "F32"),
        ("float64", "F64"),
    )
}


class Mapped(np.ndarray):
    """A read-only array in a file; `place` is (path, offset, dtype, shape, digest), or None."""

    place: tuple | None = None

    def __array_finalize__(self, source) -> None:
        self.place = None  # what is derived from it lies elsewhere

    def __reduce__(self):
        if self.place is None:
            return np.asarray(self).__reduce__()
        return _map, self.place

    def __reduce_ex__(self, protocol: int):
        if self.place is None:
            return np.asarray(self).__reduce_ex__(protocol)
        return _map, self.place


@dataclasses.dataclass(frozen=True, eq=False)
class Changed:
    """Rows of an array, changed when they are asked for: the array stays one that is shared."""

    values: np.ndarray
    change: Callable[[np.ndarray], np.ndarray]

    def __getitem__(self, rows) -> np.ndarray:
        return self.change(self.values[rows])


class Texts(Sequence):
    """Strings of a file, decoded when they are asked for; `ends` [n], `letters` uint8 (UTF-8)."""

    def __init__(self, ends: np.ndarray, letters: np.ndarray):
        self.ends, self.letters = ends, letters

    @classmethod
    def pack(cls, texts: Iterable[str]) -> Texts:
        """The same strings, in arrays."""
        parts = [text.encode("utf-8") for text in texts]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return cls(ends, np.frombuffer(b"".join(parts), np.uint8))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return tuple(Texts.__getitem__(self, i) for i in range(*index.indices(len(self))))
        index = range(len(self))[index]
        first = int(self.ends[index - 1]) if index else 0
        return bytes(self.letters[first : int(self.ends[index])]).decode("utf-8")

    def __eq__(self, other) -> bool:
        return tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


class Values(Texts):
    """Small values of any kind that JSON has; arrays come back as lists."""

    @classmethod
    def pack(cls, values: Iterable) -> Values:
        """The same values, as JSON in arrays."""
        return super().pack(json.dumps(value, default=_listed) for value in values)

    def __getitem__(self, index):
        found = super().__getitem__(index)
        return tuple(map(json.loads, found)) if isinstance(index, slice) else json.loads(found)


def _listed(value):
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else repr(value)


def digest(value: np.ndarray | Sequence[str]) -> str:
    """A hash of an array's content or of strings; a mapped array's was kept with it."""
    if not isinstance(value, np.ndarray):
        texts = value if isinstance(value, Texts) else Texts.pack(value)
        return digest(texts.ends) + digest(texts.letters)
    if getattr(value, "place", None) is not None:
        return value.place[-1]
    made = hashlib.blake2b(f"{value.dtype.str}{value.shape}".encode(), digest_size=16)
    made.update(np.ascontiguousarray(value).data)
    return made.hexdigest()


def save(arrays: Mapping[str, np.ndarray], about: Mapping) -> Callable[[str], None]:
    """A function that writes `arrays` and the JSON dict `about` into the file it is given."""
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    checks = {n: (_crc(a), digest(a), a.dtype.str, list(a.shape)) for n, a in arrays.items()}
    metadata = {"about": json.dumps(about), "checks": json.dumps(checks)}
    metadata["check"] = str(google_crc32c.value(json.dumps(metadata, sort_keys=True).encode()))
    return lambda path: save_file(arrays, path, metadata)


def shared(array: np.ndarray) -> np.ndarray:
    """The same numbers in a file of this process's, where they are too many to be pickled often.

    The file goes when the process ends.
    """
    if array.nbytes < SHARED or getattr(array, "place", None) is not None:
        return array
    path = os.path.join(scratch("arrays"), "array.safetensors")
    save({"array": array}, {})(path)
    return load(path)[0]["array"]


def scratch(use: str) -> str:
    """A new folder of this process, which goes when it ends."""
    return tempfile.mkdtemp(prefix=f"{use}-", dir=_scratch())


@functools.cache
def _scratch() -> str:
    folder = tempfile.mkdtemp(prefix="vla_jax-")
    atexit.register(_remove, os.getpid(), folder)
    return folder


def _remove(owner: int, folder: str) -> None:
    if os.getpid() == owner:  # a fork leaves its parent's files alone
        shutil.rmtree(folder, ignore_errors=True)


def load(path: str) -> tuple[dict[str, Mapped], dict]:
    """(arrays, the dict they were saved with), every checksum checked.

    Raises UserError where the file is broken or was not written by `save`.
    """
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > os.fstat(file.fileno()).st_size:
                raise ValueError("cut short")
            header = json.loads(file.read(size))
        metadata = dict(header.pop("__metadata__"))
        check = metadata.pop("check")
        if int(check) != google_crc32c.value(json.dumps(metadata, sort_keys=True).encode()):
            raise ValueError("its description has another CRC32C")
        checks = json.loads(metadata["checks"])
        codes = {code: dtype for dtype, code in DTYPES.items()}
        arrays = {}
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            dtype, shape = codes[entry["dtype"]], tuple(entry["shape"])
            crc, kept, *kind = checks.pop(name)
            size_of = np.prod(shape, dtype=int) * dtype.itemsize
            if kind != [dtype.str, list(shape)] or size_of != last - first:
                raise ValueError(f"{name}: {last - first} bytes for {shape} of {dtype}")
            arrays[name] = _map(path, 8 + size + first, dtype.str, shape, kept)
            if _crc(arrays[name]) != crc:
                raise ValueError(f"{name} has another CRC32C")
        if checks:
            raise ValueError(f"lacks {sorted(checks)}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise plugin.UserError(f"{path}: broken ({error}); delete it and start again") from error
    return arrays, json.loads(metadata["about"])


def crc32c(content) -> int:
    """The CRC32C of a contiguous buffer of any type."""
    octets, crc = memoryview(content).cast("B"), 0
    for first in range(0, len(octets), CHUNK):  # the package takes `bytes` alone
        crc = google_crc32c.extend(crc, bytes(octets[first : first + CHUNK]))
    return crc


def _crc(array: np.ndarray) -> int:
    return crc32c(array.data) if array.size else 0


def _map(path: str, offset: int, dtype: str, shape: tuple, kept: str) -> Mapped:
    if 0 in shape:
        return np.zeros(shape, dtype).view(Mapped)
    array = np.memmap(path, dtype, "r", offset, shape).view(np.ndarray).view(Mapped)
    array.place = (path, offset, dtype, shape, kept)
    return array
