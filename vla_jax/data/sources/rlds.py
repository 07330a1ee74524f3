"""Robot episodes in RLDS/TFDS folders (TFRecord or array_record), read in place without TensorFlow.

Every record is scanned once per process (CRC checked); numbers stay in memory, images stay in the
file and are read by byte range when a sample needs them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.data import episodes as episodes_lib
from vla_jax.data import robot
from vla_jax.data.sources import _files, _rlds_folder, _rlds_raw
from vla_jax.types import SourceContext

DEBUG: dict = {}


def make(
    context: SourceContext,
    *,
    path: str,
    standardizer: str | Mapping = "native",
    split: str = "train",
    embodiment: str | None = None,
    action_space: str | None = None,
    **reading: robot.Reading,
) -> robot.RobotRows:
    """The samples of one split of an RLDS folder.

    Args:
      context: the stream's; `context.train` picks the training or the held-out episodes.
      path: the folder with dataset_info.json, or the one above its single version.
      standardizer: ``"native"`` or ``dict(type="oxe", row="bridge")``.
      split: a split of the data set. (Its own validation split may repeat it: see holdout.)
      embodiment, action_space: names, in place of those that the standardizer finds.
      reading: holdout, steps, language, augment, …: see robot.Reading.

    Raises:
      UserError: no such folder, split or shard; a corrupt record; columns that do not fit the
        standardizer, embodiment or action space; a number that is not finite.
    """
    made = robot.Reading.make(reading)
    table, read = recorded(path, standardizer=standardizer, split=split)
    named = {"embodiment": embodiment, "action_space": action_space}
    table = dataclasses.replace(table, **{k: v for k, v in named.items() if v is not None})
    return robot.RobotRows(context, table, read, made)


def is_at(path: _files.Path) -> bool:
    """Whether there is a TFDS folder of episodes at `path`, or just below it; reads names only."""
    return any(_files.is_file(_files.join(v, "features.json")) for v in _rlds_folder.versions(path))


def raw(path: _files.Path, split: str | None = None) -> _rlds_raw.Raw:
    """The episodes as they were recorded, every field decoded; needs no index.

    `split` None: `train`, or the first there is. Raises UserError for another folder, split or
    slice.
    """
    if split is None:
        splits = _rlds_folder.open_folder(path).splits
        split = "train" if "train" in splits else next(iter(splits), "train")
    return _rlds_raw.Raw(path, split)


def recorded(
    path: str, *, standardizer: str | Mapping = "native", split: str = "train"
) -> tuple[episodes_lib.Episodes, episodes_lib.FrameReader]:
    """(the table of all episodes of a split, the reader of its images).

    Raises UserError as `make` does.
    """
    spec = {"type": standardizer} if isinstance(standardizer, str) else dict(standardizer)
    folder = _rlds_folder.open_folder(path)
    stamp = tuple((piece.path, _files.stat(piece.path)) for piece in folder.pieces(split))
    table = _load(folder.path, split, json.dumps(spec, sort_keys=True), stamp)
    return table, _Reader(folder, split, table)


@functools.lru_cache(maxsize=16)
def _load(path: str, split: str, spec: str, stamp: tuple) -> episodes_lib.Episodes:
    folder = _rlds_folder.open_folder(path)
    where = f"{folder.path} {split}"
    standardizer = plugin.build(
        "data.standardizers", json.loads(spec), SourceContext(name=where, stream="")
    )
    columns = standardizer.columns(folder.features)
    views = standardizer.views(folder.features)
    for view, name in views.items():
        shape = folder.features[name].shape
        if folder.features[name].kind != "image" or shape[-1:] not in ((3,), ()):
            raise plugin.UserError(
                f"{where}: {name} (view {view}) is {folder.features[name]}, expected an RGB image"
            )
    wanted = columns | set(views.values())
    rows = []
    shards = [piece.path for piece in folder.pieces(split)]
    for record in _rlds_folder.records(folder, split, wanted.__contains__):
        missing = sorted(wanted - set(record.columns))
        if missing:
            raise plugin.UserError(f"{record.where}: lacks {missing}, which features.json promises")
        episode = standardizer.episode(record.columns, record.length, record.where)
        frames = {}
        for view, name in views.items():
            spans = record.columns[name][episode.steps]
            mask = episode.image_masks.get(view, True)
            frames[view] = (spans.offsets, np.where(mask, spans.lengths, 0))
        rows.append((episode, frames, shards.index(record.path), record.number, record.offset))
    return episodes_lib.collect(where, folder.name, rows, tuple(views))


class _Reader:
    """A FrameReader of encoded images; pickled without open files."""

    def __init__(self, folder: _rlds_folder.Folder, split: str, table: episodes_lib.Episodes):
        self.table = table
        self.shards = [folder.reader(piece.path) for piece in folder.pieces(split)]

    def __call__(self, view: str, episode: int, rows: Sequence[int]) -> list[bytes]:
        frames, table = self.table.frames[view], self.table
        shard = self.shards[table.shard[episode]]
        record = (int(table.record[episode]), int(table.record_offset[episode]))
        spans = [(int(frames.offset[row]), int(frames.length[row])) for row in rows]
        found = iter(shard.read(*record, [span for span in spans if span[1]]))
        return [next(found) if span[1] else b"" for span in spans]
