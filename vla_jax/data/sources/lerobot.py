"""Robot episodes in LeRobot's formats v2.0, v2.1 and v3.0, read in place without torch.

Features keep their names, below `steps/`: `steps/observation.state`, `steps/action`,
`steps/observation.images.top`, and the text `steps/task`. Numbers are read once per process,
frames of videos decoded and images read when a sample needs them. Columns that meta/info.json does
not describe, and annotations of dtype "language", are left alone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.data import episodes as episodes_lib
from vla_jax.data import robot
from vla_jax.data.sources import _lerobot_columns, _lerobot_folder, _lerobot_raw, _video
from vla_jax.types import VIEWS, SourceContext

DEBUG: dict = {}
is_at = _lerobot_folder.is_at


def make(
    context: SourceContext,
    *,
    path: str,
    standardizer: str | Mapping = "native",
    split: str = "train",
    embodiment: str | None = None,
    action_space: str | None = None,
    tolerance: float = _video.TOLERANCE,
    **reading: robot.Reading,
) -> robot.RobotRows:
    """The samples of one split of a LeRobot data set.

    Args:
      context: the stream's; `context.train` picks the training or the held-out episodes.
      path: the folder that holds meta/info.json.
      standardizer: how its features map to our nouns, ``dict(type="rows", row=dict(…))``; "native"
        for what our own writer wrote, which says it itself.
      split: a split of meta/info.json.
      embodiment, action_space: names, in place of those that the standardizer finds.
      tolerance: how far (s) a video's frame may lie from its step's timestamp.
      reading: holdout, steps, language, augment, …: see robot.Reading.

    Raises:
      UserError: no such folder, split or video; metadata or a file that is broken; columns that
        do not fit the standardizer, embodiment or action space; a number that is not finite.
    """
    made = robot.Reading.make(reading)
    table, read = recorded(path, standardizer=standardizer, split=split, tolerance=tolerance)
    named = {"embodiment": embodiment, "action_space": action_space}
    table = dataclasses.replace(table, **{k: v for k, v in named.items() if v is not None})
    return robot.RobotRows(context, table, read, made)


def recorded(
    path: str,
    *,
    standardizer: str | Mapping = "native",
    split: str = "train",
    tolerance: float = _video.TOLERANCE,
) -> tuple[episodes_lib.Episodes, episodes_lib.FrameReader]:
    """(the table of all episodes of a split, the reader of its images).

    Raises UserError as `make` does.
    """
    spec = {"type": standardizer} if isinstance(standardizer, str) else dict(standardizer)
    folder = _lerobot_folder.open_folder(path)
    if spec == {"type": "native"}:
        spec = folder.standardizer or _refuse(folder)
    table, sources = _load(
        str(folder.path), split, json.dumps(spec, sort_keys=True), _stamp(folder)
    )
    return table, _Reader(folder, table, sources, tolerance)


def _refuse(folder: _lerobot_folder.Folder) -> Mapping:
    kinds = {name: feature.kind for name, feature in folder.features.items()}
    views = [name for name, kind in kinds.items() if kind in ("image", "video")]
    raise plugin.UserError(
        f"{folder.path}: a LeRobot data set that names no standardizer; expected a row: "
        "standardizer=dict(type='rows', row=dict(embodiment=…, action_space=…, "
        f"views={dict(zip(VIEWS, views, strict=False))}, action='action', "
        "proprio=dict(GROUP='observation.state'), language='task')); it has "
        f"{', '.join(sorted(kinds))}"
    )


def _stamp(folder: _lerobot_folder.Folder) -> tuple:
    """Changes when a file of numbers does."""
    files = {folder.data_file(e) for e in range(len(folder.lengths))}
    files.update(f for f in (folder.path / "meta").rglob("*") if f.is_file())
    return tuple((str(f), s.st_size, s.st_mtime_ns) for f in sorted(files) for s in [_stat(f)])


def _stat(file: pathlib.Path):
    try:
        return file.stat()
    except OSError as error:
        raise plugin.UserError(
            f"{file}: {error.strerror}; meta/ names this file, copy the data set again"
        ) from error


@functools.lru_cache(maxsize=16)
def _load(
    path: str, split: str, spec: str, stamp: tuple
) -> tuple[episodes_lib.Episodes, dict[str, str]]:
    folder = _lerobot_folder.open_folder(path)
    where = f"{folder.path} {split}"
    standardizer = plugin.build(
        "data.standardizers", json.loads(spec), SourceContext(name=where, stream="")
    )
    features = _named(folder)
    views = {
        view: name.removeprefix("steps/") for view, name in standardizer.views(features).items()
    }
    for view, name in views.items():
        feature = folder.features[name]
        if feature.kind not in ("image", "video"):
            raise plugin.UserError(
                f"{where}: {name} (view {view}) is {feature}, expected a feature of dtype image "
                "or video that is no depth map"
            )
    columns = standardizer.columns(features)
    names = {c.removeprefix("steps/") for c in columns if c.startswith("steps/")}
    videos = {view: name for view, name in views.items() if folder.features[name].kind == "video"}
    times = {_lerobot_columns.TIME} if videos else set()
    chosen, rows = folder.split(split), []
    for number, file, first, values in _lerobot_columns.episodes(folder, chosen, names | times):
        here, length = f"{file}: episode {number}", int(folder.lengths[number])
        given = {f"steps/{name}": values[name] for name in names}
        given |= _metadata(folder, number)
        episode = standardizer.episode(given, length, here)
        if episode.id == here:
            episode = dataclasses.replace(episode, id=f"episode_{number:06d}")
        if not episode.cameras:
            episode = dataclasses.replace(episode, cameras=_cameras(given))
        frames = {}
        for view, name in views.items():
            if view in videos:
                seconds = folder.times(name, number, values[_lerobot_columns.TIME])
                offsets = np.rint(seconds[episode.steps] * 1e9).astype(np.int64)
                size = _stat(folder.video_file(name, number)).st_size
            else:
                offsets = first + np.asarray(episode.steps, np.int64)
                size = _stat(file).st_size
            mask = np.broadcast_to(episode.image_masks.get(view, True), len(offsets))
            frames[view] = (offsets, np.where(mask, size, 0).astype(np.int64))
        rows.append((episode, frames, 0, number, first))
    return episodes_lib.collect(where, folder.name, rows, tuple(views)), views


def _named(folder: _lerobot_folder.Folder) -> dict[str, _lerobot_folder.Feature]:
    """What a standardizer may name, by its full name."""
    found = {f"steps/{n}": f for n, f in folder.features.items() if f.kind != "language"}
    for name, value in _metadata(folder, 0).items() if len(folder.lengths) else ():
        array = np.asarray(value)
        kind = "text" if isinstance(value, str) else "tensor"
        found[name] = _lerobot_folder.Feature(kind, array.shape, array.dtype.name)
    return found


def _metadata(folder: _lerobot_folder.Folder, number: int) -> dict:
    """`episode_metadata/…` of an episode: its number, and what our own writer added."""
    found = {"episode_metadata/episode_index": np.int64(number)}
    if folder.metadata is not None:
        for name in folder.metadata.column_names:
            value = folder.metadata[name][number].as_py()
            found[f"episode_metadata/{name}"] = (
                value if isinstance(value, str) else np.asarray(value)
            )
    return found


def _cameras(given: Mapping) -> dict[str, np.ndarray]:
    prefix = "episode_metadata/camera/"
    return {
        name.removeprefix(prefix): np.asarray(value, np.float32).reshape(3, 4)
        for name, value in given.items()
        if name.startswith(prefix)
    }


class _Reader:
    """A FrameReader: bytes of embedded images, decoded frames of videos; pickled without files.

    Frames.offset is the time in the video file (ns), or the row of the parquet file that holds the
    image; Frames.length is the file's size, so that another file is another fingerprint.
    """

    def __init__(self, folder, table: episodes_lib.Episodes, sources: dict, tolerance: float):
        self.folder, self.table = folder, table
        self.sources, self.tolerance = sources, tolerance

    def __call__(self, view: str, episode: int, rows: Sequence[int]) -> list[bytes | np.ndarray]:
        name, frames = self.sources[view], self.table.frames[view]
        number = int(self.table.record[episode])
        where = f"{self.table.where}: episode {number}, {name}"
        there = [row for row in rows if frames.length[row]]
        places = [int(frames.offset[row]) for row in there]
        if self.folder.features[name].kind == "video":
            file = self.folder.video_file(name, number)
            found = _video.frames(file, [p / 1e9 for p in places], where, self.tolerance)
        else:
            file = self.folder.data_file(number)
            found = _lerobot_columns.image_bytes(self.folder, file, name, places, where)
        by_row = dict(zip(there, found, strict=True))
        return [by_row.get(row, b"") for row in rows]


def raw(path: str, split: str | None = None) -> _lerobot_raw.Raw:
    """The episodes of a split (None: train, or the first) as the source names their fields.

    Raises UserError where the metadata are broken, and for an unknown split.
    """
    folder = _lerobot_folder.open_folder(path)
    if split is None:
        split = "train" if "train" in folder.splits else next(iter(folder.splits), "train")
    return _lerobot_raw.Raw(folder, folder.split(split))
