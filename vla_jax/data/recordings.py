"""Recorded robot episodes in whatever format they lie: the door of tools, statistics, evaluations.

A format is a file of data/sources/ with

    is_at(path) -> bool                                        looks at names only
    raw(path, split, bad_episodes) -> Raw                      as the source recorded them
    recorded(path, *, standardizer, split, bad_samples) -> (Episodes, FrameReader)    in our nouns

and is found by asking each of them; what `recorded` reads is upright, see looks.py. A new format is
a new file there, and nothing here.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Protocol

import numpy as np

from vla_jax import plugin
from vla_jax.data import episodes as episodes_lib

FOLDER = "data.sources"
ID = "episode_metadata/episode_id"  # as OXE's data sets and our own have it


class Raw(Protocol):
    """The episodes of one split as the source recorded and named them.

    Attributes:
      kind: the format, for people ("RLDS", "LeRobot v3.0").
      name: the data set's.
      splits: name -> number of episodes.
      fields: name -> dict(kind="tensor | text | image | video", shape, dtype, …). Nesting is joined
        by `/`, LeRobot's dots are kept.
      skipped: what could not be opened and was left out, if that was allowed; may be absent.
    """

    kind: str
    name: str
    splits: Mapping[str, int]
    fields: Mapping[str, Mapping]

    def __len__(self) -> int:
        """Number of episodes."""

    def ids(self) -> Sequence[str]:
        """What the source calls each episode; unique."""

    def episode(
        self,
        index: int,
        fields: Sequence[str] | None = None,
        steps: Sequence[int] | None = None,
    ) -> dict[str, np.ndarray]:
        """The fields of one episode (None: all), decoded; step fields have the step first.

        Pictures are uint8 [T, height, width, 3], texts str arrays. `steps` are the steps wanted of
        pictures alone (None: all). Raises UserError naming file, episode and field.
        """


def source_type(path: str | os.PathLike) -> str:
    """The file of data/sources/ that reads the episodes at `path`; UserError where none does."""
    found = [name for name, module in _formats().items() if module.is_at(str(path))]
    if len(found) == 1:
        return found[0]
    if found:
        raise plugin.UserError(
            f"{path}: looks like {' and '.join(found)} at once; name the folder of one of them"
        )
    raise plugin.UserError(_nothing(str(path)))


def default_split(names: Iterable[str]) -> str:
    """The split that is taken where none is named: `train`, or the first there is."""
    names = list(names)
    return "train" if "train" in names else next(iter(names), "train")


def raw(path: str | os.PathLike, split: str | None = None, bad_episodes: str = "error") -> Raw:
    """The recorded episodes of a split (None: `train`, or the first that the data set has).

    `bad_episodes`: "error", or "skip" to leave out files that cannot be opened (Raw.skipped).
    Raises UserError where nothing that we read lies at `path`, and for an unknown split.
    """
    return _formats()[source_type(path)].raw(str(path), split, bad_episodes)


def recorded(
    path: str | os.PathLike,
    *,
    standardizer: str | Mapping = "native",
    split: str = "train",
    bad_samples: str = "error",
) -> tuple[episodes_lib.Episodes, episodes_lib.FrameReader]:
    """(the table of all episodes of a split in our nouns, the reader of its pictures).

    `bad_samples`: "error", or "skip" to leave broken episodes out (Episodes.skipped). Raises
    UserError as the source's own `recorded` does, and where `path` holds no episodes.
    """
    source = _formats()[source_type(path)]
    how = dict(standardizer=standardizer, split=split, bad_samples=bad_samples)
    return source.recorded(str(path), **how)


def standardizer(text: str) -> str | dict:
    """The spec that TYPE, TYPE:ROW or FILE.py:ROW (rows of the user's own) stands for."""
    kind, _, row = text.rpartition(":")
    if kind.endswith(".py"):
        return dict(type="rows", file=os.path.abspath(kind), row=row)
    return dict(type=kind, row=row) if kind else text


def number(episodes: Raw, which: str | int) -> int:
    """The place of an episode asked for by its number or else its id; UserError for neither."""
    text, count = str(which), len(episodes)
    if text.isdecimal() and int(text) < count:
        return int(text)
    ids = list(episodes.ids())
    if text in ids:
        return ids.index(text)
    if ID in episodes.fields:
        ids = []
        for index in range(count):
            ids.append(title(episodes, index))
            if ids[-1] == text:
                return index
    span = f"a number, 0 to {count - 1}, or an id" if count else "none, it has no episodes"
    message = plugin.unknown(f"{episodes.name}: episode", text, ids[:20])
    raise plugin.UserError(f"{message} Expected {span} ({count} episodes).")


def title(episodes: Raw, index: int) -> str:
    """What an episode calls itself, or else what the source calls it."""
    if ID in episodes.fields:
        return str(episodes.episode(index, [ID])[ID])
    return str(episodes.ids()[index])


def step_fields(episodes: Raw) -> list[str]:
    """The fields with a value at each step, sorted; RLDS nests them below `steps/`."""
    nested = sorted(name for name in episodes.fields if name.startswith("steps/"))
    return nested or sorted(episodes.fields)


def pictures(episodes: Raw) -> list[str]:
    """The step fields that hold pictures, sorted."""
    return [n for n in step_fields(episodes) if episodes.fields[n]["kind"] in ("image", "video")]


def texts(episodes: Raw) -> list[str]:
    """The step fields that hold text, sorted."""
    return [n for n in step_fields(episodes) if episodes.fields[n]["kind"] == "text"]


def numbers(episodes: Raw, largest: int = 64) -> list[str]:
    """The step fields of scalars and of vectors of at most `largest` numbers, sorted."""
    found = []
    for name in step_fields(episodes):
        field = episodes.fields[name]
        small = len(field["shape"]) < 2 and 0 <= int(np.prod(field["shape"])) <= largest
        if field["kind"] == "tensor" and field["dtype"] != "string" and small:
            found.append(name)
    return found


def length(episodes: Raw, index: int) -> int:
    """T, the number of steps of an episode; no picture is decoded for it."""
    clock = next(n for n in (*numbers(episodes), *step_fields(episodes)))
    return len(episodes.episode(index, [clock], [0])[clock])


def pictured(episodes: Raw, index: int) -> np.ndarray:
    """The steps of an episode that have a picture of some camera, int64.

    All of them, but where our own format says by `image_masks` that a picture was left out.
    """
    masks = [n for n in step_fields(episodes) if "/image_masks/" in n]
    if not masks:
        return np.arange(length(episodes, index))
    found = episodes.episode(index, masks, [0]).values()
    return np.flatnonzero(np.any([np.asarray(mask, bool).reshape(-1) for mask in found], axis=0))


def evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` distinct places of `count`, the first and the last among them."""
    if count < 1:
        return []
    return sorted({round(x) for x in np.linspace(0, count - 1, min(wanted, count)).tolist()})


@functools.cache
def _formats() -> dict[str, ModuleType]:
    modules = {name: plugin.module(FOLDER, name) for name in plugin.names(FOLDER)}
    return {name: module for name, module in modules.items() if hasattr(module, "is_at")}


def _nothing(path: str) -> str:
    readers = ", ".join(_formats())
    if "://" in path:
        return f"{path}: no episodes there that {readers} read"
    place = pathlib.Path(path).expanduser()
    if place.exists():
        inside = sorted(p.name for p in place.iterdir())[:10] if place.is_dir() else "one file"
        return (
            f"{path}: holds {inside}, expected a data set folder that one of {readers} reads: "
            "dataset_info.json and features.json (RLDS), meta/info.json (LeRobot), or .hdf5 files"
        )
    near = place.parent
    while not near.is_dir():
        near = near.parent
    beside = [p.name for p in near.iterdir() if p.is_dir()]
    return plugin.unknown(f"{path}: no such data set folder; in {near}", place.name, beside)
