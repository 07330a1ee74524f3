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

import collections
import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence

import h5py
import numpy as np

from vla_jax import plugin
from vla_jax.data import passing
from vla_jax.data.sources import _files, _hdf5_columns
from vla_jax.data.sources._hdf5_columns import LANGUAGE, METADATA, STEPS, Feature

SUFFIXES = (".hdf5", ".h5")
UNREADABLE = (OSError, RuntimeError, KeyError, UnicodeDecodeError)  # what h5py raises
SAMPLED = 15  # episodes that are asked what most of them have
CLOCK = ("actions", "action")  # what has a value at every step


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
      features: full name -> Feature, as the `typical` one has them.
      stamps: file -> its stamp.
      typical: the episode that the others are to be like: the first; where broken ones are left
        out, the first of those that most are like.
    """

    path: str
    name: str
    version: str
    places: tuple[Place, ...]
    splits: Mapping[str, tuple[int, ...]]
    features: Mapping[str, Feature]
    stamps: Mapping[str, _files.Stamp]
    typical: Place | None = None

    def split(self, name: str) -> tuple[int, ...]:
        """The episodes of a split; UserError for an unknown one."""
        if name not in self.splits:
            raise plugin.UserError(plugin.unknown(f"{self.path}: split", name, self.splits))
        return self.splits[name]

    def columns(self, number: int, names: Sequence[str]) -> dict:
        """Full name -> array [T, …] or list of T texts, and an episode's values; no pictures.

        Raises UserError naming file, episode and data set for what is missing or not like the
        `typical` one's.
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

    def check_pictures(self, number: int, names: Iterable[str]) -> None:
        """UserError unless the episode has those pictures, one a step, like the `typical` one's."""
        with Opened(self, self.places[number]) as episode:
            for name in names:
                episode.rows(name, episode.length())

    def length(self, number: int) -> int:
        """T of an episode."""
        with Opened(self, self.places[number]) as episode:
            return episode.length()


class Opened:
    """An episode of an open file; what h5py finds broken in it is a UserError with its name."""

    def __init__(self, folder: Folder, place: Place):
        self._folder, self._place, self._reading = folder, place, ""

    def __enter__(self) -> Opened:
        file = _opened(self._place.file, self._folder.stamps[self._place.file], os.getpid())
        self._file = file
        try:
            self._group = file[self._place.group] if self._place.group else file
        except UNREADABLE as error:
            self.__exit__(type(error), error, None)
        return self

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, UNREADABLE):
            raise plugin.UserError(
                f"{self._place}: {self._reading}cannot be read ({error}); copy the file again, or "
                "leave this episode out"
            ) from _numbered(error)

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
        self._reading = f"{name.removeprefix(STEPS)}: "
        if name == LANGUAGE and not self._says_each_step(length):
            return [_hdf5_columns.said(self._file, self._group)] * length
        if name.startswith(METADATA):
            return self._metadata(name.removeprefix(METADATA))
        data = self.rows(name, length)
        if self._folder.features[name].kind == "text":
            return [str(text) for text in data.asstr()[()]]
        return data[()]

    def rows(self, name: str, length: int) -> h5py.Dataset:
        """A column of `length` rows like those of the `typical` one; UserError for another."""
        feature, data = self._folder.features[name], self._data(name)
        if not data.shape or len(data) != length:
            raise plugin.UserError(
                f"{self._place}: {name.removeprefix(STEPS)} has {len(data) if data.shape else 0} "
                f"rows, the actions have {length}; repair or remove this episode"
            )
        free = feature.encoded or feature.kind == "text"  # sizes of bytes differ
        same = free or data.dtype.kind == np.dtype(feature.dtype).kind
        if not same or not (free or data.shape[1:] == feature.shape):
            raise plugin.UserError(
                f"{self._place}: {name.removeprefix(STEPS)} is {data.dtype} "
                f"{list(data.shape[1:])} at a step, expected {feature.dtype} "
                f"{list(feature.shape)} as in {self._folder.typical}; repair or remove this episode"
            )
        return data

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
            found.append(_hdf5_columns.code(data[step]) if feature.encoded else data[step])
        return found

    def _data(self, name: str) -> h5py.Dataset:
        inside = name.removeprefix(STEPS)
        self._reading = f"{inside}: "
        if inside not in self._group or not isinstance(self._group[inside], h5py.Dataset):
            held = [n for n, _ in _hdf5_columns.datasets(self._group)]
            raise plugin.UserError(plugin.unknown(f"{self._place}: data set", inside, held))
        return self._group[inside]

    def _metadata(self, inside: str):
        told = _hdf5_columns.attributes(self._file, self._group)
        if inside in told:
            return told[inside]
        return _hdf5_columns.plain(self._data(inside)[()])


def is_at(path: _files.Path) -> bool:
    """Whether `path` is an HDF5 file, or a folder with some; reads names only."""
    path = _files.normal(path)
    if path.endswith(SUFFIXES):
        return _files.is_file(path)
    return any(name.endswith(SUFFIXES) for name in _files.names(path))


def open_folder(path: _files.Path, broken: list[str] | None = None) -> Folder:
    """The episodes at `path`; UserError where there are none, or a file is of another layout.

    With a list for them, files that are `broken` are noted in it and passed over.
    """
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
        try:
            found, named = _looked_at(file, stamps[file])
        except plugin.UserError as error:
            if broken is None:
                raise
            broken.append(passing.fault(error))
            continue
        for split, members in named.items():
            kept = [i for i, p in enumerate(found) if _files.name(p.group) in members]
            masks.setdefault(split, []).extend(len(places) + i for i in kept)
        places += found
    everything = {"all" if "train" in masks else "train": tuple(range(len(places)))}
    splits = {split: tuple(members) for split, members in masks.items()} | everything
    if not places:
        more = f", the first: {broken[0]}" if broken else ""
        raise plugin.UserError(f"{path}: no episode in {len(files)} files{more}")
    folder = Folder(path, name, "hdf5", tuple(places), splits, {}, stamps)
    typical, features = _features(folder, broken is not None)
    return dataclasses.replace(folder, typical=typical, features=features)


def _features(folder: Folder, lenient: bool) -> tuple[Place, dict[str, Feature]]:
    """The first episode's; `lenient`: those that most have, the first may be the faulty one."""
    count = len(folder.places)
    # So many, evenly spaced, as are opened soon.
    spaced = sorted({i * count // SAMPLED for i in range(SAMPLED)} if lenient else {0})
    found, places, said = [], [], None
    for number in dict.fromkeys((*spaced, *(range(count) if lenient else ()))):
        if found and number not in spaced:
            break
        try:
            with Opened(folder, folder.places[number]) as episode:
                length = episode.length()
                found.append(_hdf5_columns.features(episode._file, episode._group, length))
                places.append(folder.places[number])
        except plugin.UserError as error:
            if not lenient:
                raise
            said = said or error
    if not found:
        raise said
    kinds = [tuple((n, f) for n, f in each.items() if n.startswith(STEPS)) for each in found]
    usual = kinds.index(collections.Counter(kinds).most_common(1)[0][0])
    return places[usual], found[usual]


def _looked_at(file: str, stamp: _files.Stamp) -> tuple[list[Place], dict[str, set[str]]]:
    """(the episodes of a file, its splits); UserError for a file that is broken."""
    opened = _opened(file, stamp, os.getpid())
    try:
        return _places(file, opened), _masks(opened)
    except UNREADABLE as error:
        raise _broken(file, error) from _numbered(error)


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
            found[name] = {_hdf5_columns.plain(member) for member in masks[name][()].tolist()}
    return found


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
        raise _broken(path, error) from error


def _broken(path: str, error: Exception) -> plugin.UserError:
    return plugin.UserError(f"{path}: not a whole HDF5 file ({error}); copy or download it again")


def _numbered(error: Exception) -> Exception:
    """`error`, or, where h5py has the system's number in its words alone, an OSError of it."""
    found = re.search(r"\berrno = (\d+)", str(error))
    if isinstance(error, OSError) or not found:
        return error
    return OSError(int(found[1]), str(error))
