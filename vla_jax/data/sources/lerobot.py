"""Robot episodes in LeRobot's formats v2.0, v2.1 and v3.0, read in place without torch.

Features keep their names, below `steps/`: `steps/observation.state`, `steps/action`,
`steps/observation.images.top`, and the text `steps/task`. Numbers are read once, into a table that
is kept and mapped; frames of videos are decoded and images read when a sample needs them. Columns
that meta/info.json does not describe, and annotations of dtype "language", are left alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.data import episodes as episodes_lib
from vla_jax.data import looks, recordings, robot
from vla_jax.data.sources import (
    _lerobot_columns,
    _lerobot_folder,
    _lerobot_raw,
    _lerobot_table,
    _video,
)
from vla_jax.types import VIEWS, SourceContext

DEBUG: dict = {}
is_at = _lerobot_folder.is_at


def make(
    context: SourceContext,
    *,
    path: str,
    standardizer: str | Mapping = "native",
    split: str = "train",
    tolerance: float = _video.TOLERANCE,
    index_dir: str | None = None,
    **reading: robot.Reading,
) -> robot.RobotRows:
    """The samples of one split of a LeRobot data set.

    Args:
      context: the stream's; `context.train` picks the training or the held-out episodes.
      path: the folder that holds meta/info.json.
      standardizer: how its features map to our nouns, ``dict(type="rows", row=dict(…))``; "native"
        for what our own writer wrote, which says it itself.
      split: a split of meta/info.json.
      tolerance: how far (s) a video's frame may lie from its step's timestamp.
      index_dir: where the table of numbers is kept, if not beside the data, in
        $VLA_JAX_INDEX_DIR, or, where neither can be written, in the user's cache.
      reading: holdout, steps, language, augment, …: see robot.Reading.

    Raises:
      UserError: no such folder, split or video; metadata or a file that is broken; columns that
        do not fit the standardizer, embodiment or action space; a number that is not finite.
    """
    made = robot.Reading.make(reading)
    if made.access != "random":
        raise plugin.UserError(
            f"{path}: access={made.access!r}: a LeRobot data set's frames are found by time, not "
            "by byte; expected 'random' (with cache=… where the data are far away)"
        )
    table, read = recorded(
        path,
        standardizer=standardizer,
        split=split,
        tolerance=tolerance,
        bad_samples=made.bad_samples,
        index_dir=index_dir,
    )
    return robot.RobotRows(context, table, read, made)


def recorded(
    path: str,
    *,
    standardizer: str | Mapping = "native",
    split: str = "train",
    tolerance: float = _video.TOLERANCE,
    bad_samples: str = "error",
    index_dir: str | None = None,
) -> tuple[episodes_lib.Episodes, episodes_lib.FrameReader]:
    """(the table of all episodes of a split, the reader of its images).

    Raises UserError as `make` does.
    """
    folder = _lerobot_folder.open_folder(path)
    spec = {"type": standardizer} if isinstance(standardizer, str) else dict(standardizer)
    if spec == {"type": "native"}:
        spec = dict(folder.standardizer or _refuse(folder))
    table, sources = _lerobot_table.open_table(folder, split, spec, bad_samples, index_dir)
    reader = _Reader(folder, table, sources, tolerance)
    table = dataclasses.replace(table, origin=reader.origin)
    return table, looks.upright(table, reader)


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

    def origin(self, view: str, episode: int) -> str:
        """See Episodes.origin."""
        name, number = self.sources[view], int(self.table.record[episode])
        video = self.folder.features[name].kind == "video"
        file = self.folder.video_file(name, number) if video else self.folder.data_file(number)
        return f"{file}: {name}"


def raw(path: str, split: str | None = None, bad_episodes: str = "error") -> _lerobot_raw.Raw:
    """The episodes of a split (None: train, or the first) as the source names their fields.

    A file is opened when an episode of it is read: `bad_episodes` changes nothing here.
    Raises UserError where the metadata are broken, and for an unknown split.
    """
    del bad_episodes
    folder = _lerobot_folder.open_folder(path)
    if split is None:
        split = recordings.default_split(folder.splits)
    return _lerobot_raw.Raw(folder, folder.split(split))
