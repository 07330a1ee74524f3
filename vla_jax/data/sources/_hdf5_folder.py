"""What lies in HDF5 files of episodes, read by h5py: robomimic's layout, LIBERO's, and ALOHA's.

    robomimic, LIBERO   data/demo_0/{actions, obs/…, rewards, dones, …}      many episodes in a file
                        mask/<name>: the episodes of a split
    ALOHA               action, observations/{qpos, qvel, images/<camera>}   a file is an episode

A data set of an episode is a column `steps/<its path>` if it has a value per step, else, like the
attributes, `episode_metadata/<its path>`. Where something says what was asked, it is also
`steps/language_instruction`. Pictures are arrays [T, height, width, 3], or JPEG or PNG, each padded
with zeros to the longest, or of varying length.

Sources: robomimic's docs/datasets/overview.md, LIBERO's scripts/create_dataset.py, ALOHA's
aloha_scripts/record_episodes.py (MarkFzp/mobile-aloha), act-plus-plus' utils.py.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping, Sequence

import h5py
import numpy as np

from vla_jax import plugin
from vla_jax.data.sources import _files

SUFFIXES = (".hdf5", ".h5")
STEPS, METADATA = "steps/", "episode_metadata/"
LANGUAGE = "steps/language_instruction"
SAID = ("language_instruction", "language_raw", "instruction", "task", "task_description")
MAGIC = (b"\xff\xd8", b"\x89PNG")
CLOCK = ("actions", "action")  # what has a value at every step


@dataclasses.dataclass(frozen=True)
class Feature:
    """One column: `kind` is tensor, text or image; an `encoded` image is stored as JPEG or PNG."""

    kind: str
    shape: tuple[int, ...]
    dtype: str
    encoded: bool = False


@dataclasses.dataclass(frozen=True)
class Place:
    """An episode: its file, and its group there ("" = the file itself)."""

    file: str
    group: str

    def __str__(self) -> str:
        return f"{self.file}: {self.group}" if self.group else self.file

    @property
    def id(self) -> str:
        """`file/demo_0`, or `file`; unique in a folder."""
        stem = os.path.splitext(_files.name(self.file))[0]
        return f"{stem}/{_files.name(self.group)}" if self.group else stem


@dataclasses.dataclass(frozen=True)
class Folder:
    """The episodes of a file or folder.

    Attributes:
      path, name, version: as _index_build.place wants them.
      places: the episodes.
      splits: name -> their numbers.
      features: full name -> Feature, as the first episode has them.
      stamps: file -> its stamp.
    """

    path: str
    name: str
    version: str
    places: tuple[Place, ...]
    splits: Mapping[str, tuple[int, ...]]
    features: Mapping[str, Feature]
    stamps: Mapping[str, _files.Stamp]

    def split(self, name: str) -> tuple[int, ...]:
        """The episodes of a split; UserError for an unknown one."""
        if name not in self.splits:
            raise plugin.UserError(plugin.unknown(f"{self.path}: split", name, self.splits))
        return self.splits[name]

    def columns(self, number: int, names: Sequence[str]) -> dict:
        """Full name -> array [T, …] or list of T texts, and an episode's values; no pictures.

        Raises UserError naming file, episode and data set for what is missing or not like the
        first episode's.
        """
        place = self.places[number]
        with Opened(self, place) as episode:
            length = episode.length()
            return {name: episode.value(name, length) for name in names}

    def pictures(self, number: int, name: str, steps: Sequence[int]) -> list[bytes | np.ndarray]:
        """The pictures of some steps as they are stored: bytes, or uint8 [height, width, 3]."""
        place = self.places[number]
        with Opened(self, place) as episode:
            return episode.frames(name, steps)

    def length(self, number: int) -> int:
        """T of an episode."""
        with Opened(self, self.places[number]) as episode:
            return episode.length()


class Opened:
    """An episode of an open file; what h5py finds broken in it is a UserError with its name."""

    def __init__(self, folder: Folder, place: Place):
        self._folder, self._place = folder, place

    def __enter__(self) -> Opened:
        file = _opened(self._place.file, self._folder.stamps[self._place.file], os.getpid())
        self._file = file
        self._group = file[self._place.group] if self._place.group else file
        return self

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, OSError | RuntimeError | UnicodeDecodeError):
            raise plugin.UserError(
                f"{self._place}: cannot be read ({error}); copy the file again, or leave this "
                "episode out"
            ) from error

    def length(self) -> int:
        """T; UserError where the episode has no actions."""
        clock = next((name for name in CLOCK if name in self._group), None)
        length = len(self._group[clock]) if clock and self._group[clock].shape else 0
        if length < 1:
            raise plugin.UserError(
                f"{self._place}: no actions, expected a data set {' or '.join(CLOCK)} of one row "
                "per step; remove this episode"
            )
        return length

    def value(self, name: str, length: int):
        """A column's value in this episode."""
        if name == LANGUAGE and not self._says_each_step(length):
            return [said(self._file, self._group)] * length
        feature = self._folder.features[name]
        if name.startswith(METADATA):
            return self._metadata(name.removeprefix(METADATA))
        data = self._data(name)
        if len(data) != length:
            raise plugin.UserError(
                f"{self._place}: {name.removeprefix(STEPS)} has {len(data)} rows, the actions "
                f"have {length}; repair or remove this episode"
            )
        if feature.kind == "text":
            return [str(text) for text in data.asstr()[()]]
        values = data[()]
        same = values.dtype.kind == np.dtype(feature.dtype).kind
        if not same or values.shape[1:] != feature.shape:
            raise plugin.UserError(
                f"{self._place}: {name.removeprefix(STEPS)} is {values.dtype} "
                f"{list(values.shape[1:])} at a step, in the first episode {feature.dtype} "
                f"{list(feature.shape)}; repair or remove this episode"
            )
        return values

    def _says_each_step(self, length: int) -> bool:
        held = self._group.get(LANGUAGE.removeprefix(STEPS))
        texts = isinstance(held, h5py.Dataset) and h5py.check_string_dtype(held.dtype)
        return bool(texts) and held.shape == (length,)

    def frames(self, name: str, steps: Sequence[int]) -> list[bytes | np.ndarray]:
        """Pictures of the given steps."""
        data, feature = self._data(name), self._folder.features[name]
        found = []
        for step in steps:
            if not 0 <= step < len(data):
                raise plugin.UserError(
                    f"{self._place}: {name.removeprefix(STEPS)} has {len(data)} pictures, none at "
                    f"step {step}; repair or remove this episode"
                )
            found.append(_bytes(data[step]) if feature.encoded else data[step])
        return found

    def _data(self, name: str) -> h5py.Dataset:
        inside = name.removeprefix(STEPS)
        if inside not in self._group or not isinstance(self._group[inside], h5py.Dataset):
            held = [n for n, _ in _datasets(self._group)]
            raise plugin.UserError(plugin.unknown(f"{self._place}: data set", inside, held))
        return self._group[inside]

    def _metadata(self, inside: str):
        told = _attributes(self._file, self._group)
        if inside in told:
            return told[inside]
        return _plain(self._data(inside)[()])


def is_at(path: _files.Path) -> bool:
    """Whether `path` is an HDF5 file, or a folder with some; reads names only."""
    path = _files.normal(path)
    if path.endswith(SUFFIXES):
        return _files.is_file(path)
    return any(name.endswith(SUFFIXES) for name in _files.names(path))


def open_folder(path: _files.Path) -> Folder:
    """The episodes at `path`; UserError where there are none, or a file is of another layout."""
    path = _files.normal(path)
    if not is_at(path):
        raise plugin.UserError(
            f"{path}: no .hdf5 or .h5 file, expected one, or a folder with some; "
            "`vla data inspect` says what a folder is"
        )
    alone = path.endswith(SUFFIXES)
    names = [] if alone else sorted(_files.names(path), key=_natural)
    files = [path] if alone else [_files.join(path, n) for n in names if n.endswith(SUFFIXES)]
    stamps = {file: _files.stat(file) for file in files}
    name = os.path.splitext(_files.name(path))[0] if alone else _files.name(path)
    places, masks = [], {}
    for file in files:
        opened = _opened(file, stamps[file], os.getpid())
        found = _places(file, opened)
        for split, members in _masks(opened).items():
            kept = [i for i, p in enumerate(found) if _files.name(p.group) in members]
            masks.setdefault(split, []).extend(len(places) + i for i in kept)
        places += found
    everything = {"all" if "train" in masks else "train": tuple(range(len(places)))}
    splits = {split: tuple(members) for split, members in masks.items()} | everything
    if not places:
        raise plugin.UserError(f"{path}: no episode in {len(files)} files")
    folder = Folder(path, name, "hdf5", tuple(places), splits, {}, stamps)
    with Opened(folder, places[0]) as episode:
        features = _features(episode._file, episode._group, episode.length())
    return dataclasses.replace(folder, features=features)


def said(file: h5py.File, group: h5py.Group) -> str:
    """What was asked in an episode: of LIBERO's problem_info, an attribute or a text; or ""."""
    told = _attributes(file, group)
    if "problem_info" in told:
        try:
            told |= json.loads(told["problem_info"])
        except (TypeError, ValueError):
            pass  # somebody else's attribute of that name
    for name in SAID:
        if isinstance(told.get(name), str):
            return told[name].strip().strip('"')
        for place in (group, file):
            held = place[name] if name in place else None
            if isinstance(held, h5py.Dataset) and h5py.check_string_dtype(held.dtype):
                text = held.asstr()[()]
                return str(text if isinstance(text, str) else text.reshape(-1)[0]).strip()
    return ""


def _places(file: str, opened: h5py.File) -> list[Place]:
    data = opened["data"] if "data" in opened else None
    if isinstance(data, h5py.Group):
        names = [n for n in data if isinstance(data[n], h5py.Group)]
        return [Place(file, f"data/{name}") for name in sorted(names, key=_natural)]
    if "action" in opened and "observations" in opened:
        return [Place(file, "")]
    raise plugin.UserError(
        f"{file}: holds {sorted(opened)[:8]}, expected data/demo_0 … (robomimic, LIBERO), or "
        "action and observations (ALOHA)"
    )


def _masks(opened: h5py.File) -> dict[str, set[str]]:
    """Split -> names of its episodes (robomimic's filter keys)."""
    masks = opened["mask"] if "mask" in opened else {}
    found = {}
    for name in masks:
        if isinstance(masks[name], h5py.Dataset):
            found[name] = {_plain(member) for member in masks[name][()].tolist()}
    return found


def _features(file: h5py.File, group: h5py.Group, length: int) -> dict[str, Feature]:
    found = {}
    for name, data in _datasets(group):
        feature = _feature(data)
        stepwise = bool(data.shape) and len(data) == length
        if feature is None:
            continue  # a compound or opaque type, which nothing here can name
        if stepwise:
            found[STEPS + name] = feature
        elif feature.kind != "image":
            of_text = feature.kind == "text" and bool(data.shape)
            shape = tuple(data.shape)
            found[METADATA + name] = Feature(
                "tensor" if of_text else feature.kind, shape, feature.dtype
            )
    for name, value in _attributes(file, group).items():
        array = np.asarray(value)
        kind = "text" if isinstance(value, str) else "tensor"
        dtype = "string" if array.dtype.kind == "U" else array.dtype.name
        found.setdefault(METADATA + name, Feature(kind, array.shape, dtype))
    if LANGUAGE not in found and said(file, group):
        found[LANGUAGE] = Feature("text", (), "string")
    return found


def _feature(data: h5py.Dataset) -> Feature | None:
    shape, kind = data.shape[1:], data.dtype.kind
    if data.dtype == np.uint8 and len(shape) == 3 and shape[2] == 3:
        return Feature("image", shape, "uint8")
    bytes_ = (data.dtype == np.uint8 and len(shape) == 1) or (kind in "OSV" and shape == ())
    if bytes_ and data.shape and len(data) and _bytes(data[0])[:4].startswith(MAGIC):
        return Feature("image", (-1, -1, 3), "uint8", encoded=True)
    if h5py.check_string_dtype(data.dtype):
        return Feature("text", shape, "string")
    return Feature("tensor", shape, data.dtype.name) if kind in "fiub" else None


def _bytes(value) -> bytes:
    """An encoded picture without the zeros that fill it up."""
    if isinstance(value, str):
        return value.encode()
    data = value.tobytes() if isinstance(value, np.ndarray | np.generic) else bytes(value)
    return data.rstrip(b"\0")


def _datasets(group: h5py.Group) -> list[tuple[str, h5py.Dataset]]:
    found = []

    def visit(name: str, item) -> None:
        if isinstance(item, h5py.Dataset):
            found.append((name, item))

    group.visititems(visit)
    return found


def _attributes(file: h5py.File, group: h5py.Group) -> dict:
    """Those of the episode, of the groups above it, and of the file."""
    told, above = {}, [file]
    for part in filter(None, group.name.split("/")):
        above.append(above[-1][part])
    for place in above:
        for name, value in place.attrs.items():
            if not isinstance(value, h5py.Empty):
                told[name] = _plain(value)
    return told


def _plain(value):
    """Texts as str, numbers as they are."""
    if isinstance(value, bytes | np.bytes_):
        return bytes(value).decode("utf-8")
    array = np.asarray(value)
    if array.dtype.kind in "SO":
        return np.asarray([_plain(v) for v in array.reshape(-1)], str).reshape(array.shape)
    return value if isinstance(value, str) else array


def _natural(name: str) -> list:
    """demo_2 before demo_10."""
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", name)]


@functools.lru_cache(maxsize=64)
def _opened(path: str, stamp: _files.Stamp, process: int) -> h5py.File:
    """Kept open, in each process its own."""
    del process
    if _files.stat(path) != stamp:
        raise plugin.UserError(f"{path}: is another file than when it was looked at; start again")
    try:
        return h5py.File(_files.File(path, stamp).open() if _files.is_url(path) else path, "r")
    except OSError as error:
        raise plugin.UserError(
            f"{path}: not a whole HDF5 file ({error}); copy or download it again"
        ) from error
