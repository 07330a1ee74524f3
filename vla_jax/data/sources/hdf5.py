"""Robot episodes in HDF5 files of robomimic, LIBERO or ALOHA, read in place by h5py.

A column is named by its data set's path, below `steps/`: `steps/actions`,
`steps/obs/agentview_rgb`, `steps/observations/images/cam_high`; see _hdf5_folder.py. Numbers are
read once, into a table that is kept and mapped; a picture is read, and decoded, when a sample needs
it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.data import episodes as episodes_lib
from vla_jax.data import looks, passing, robot
from vla_jax.data.sources import (
    _files,
    _hdf5_folder,
    _hdf5_raw,
    _index_build,
    _rlds_table,
)
from vla_jax.data.sources._hdf5_folder import Folder
from vla_jax.types import SourceContext

DEBUG: dict = {}
is_at = _hdf5_folder.is_at


def make(
    context: SourceContext,
    *,
    path: str,
    standardizer: str | Mapping = "native",
    split: str = "train",
    index_dir: str | None = None,
    **reading: robot.Reading,
) -> robot.RobotRows:
    """The samples of one split of HDF5 episodes.

    Args:
      context: the stream's; `context.train` picks the training or the held-out episodes.
      path: a file, or the folder that they lie in.
      standardizer: ``dict(type="oxe", row="libero_hdf5")``, "aloha_hdf5", or rows of your own.
      split: one of robomimic's filter keys; without them `train` is all there is.
      index_dir: where the table of numbers is kept, if not beside the data, in
        $VLA_JAX_INDEX_DIR, or, where neither can be written, in the user's cache.
      reading: holdout, steps, language, augment, …: see robot.Reading.

    Raises:
      UserError: no such file or split; a file that is broken or of another layout; columns that do
        not fit the standardizer, embodiment or action space; a number that is not finite.
    """
    made = robot.Reading.make(reading)
    if made.access != "random":
        raise plugin.UserError(
            f"{path}: access={made.access!r}: HDF5 finds its bytes itself; expected 'random' (with "
            "cache=…, or `vla data convert --to rlds` where the data are far away)"
        )
    table, read = recorded(
        path,
        standardizer=standardizer,
        split=split,
        bad_samples=made.bad_samples,
        index_dir=index_dir,
    )
    return robot.RobotRows(context, table, read, made)


def raw(path: str, split: str | None = None, bad_episodes: str = "error") -> _hdf5_raw.Raw:
    """The episodes of a split (None: train) as they are stored; UserError as `make` raises it."""
    broken = [] if bad_episodes == "skip" else None
    folder = _hdf5_folder.open_folder(path, broken)
    return _hdf5_raw.Raw(folder, split or "train", tuple(broken or ()))


def recorded(
    path: str,
    *,
    standardizer: str | Mapping = "native",
    split: str = "train",
    bad_samples: str = "error",
    index_dir: str | None = None,
) -> tuple[episodes_lib.Episodes, episodes_lib.FrameReader]:
    """(the table of all episodes of a split, the reader of its images); UserError as `make`."""
    if bad_samples not in _rlds_table.BAD_SAMPLES:
        known = _rlds_table.BAD_SAMPLES
        raise plugin.UserError(plugin.unknown(f"{path}: bad_samples", bad_samples, known))
    broken = [] if bad_samples == "skip" else None
    folder = _hdf5_folder.open_folder(path, broken)
    spec = {"type": standardizer} if isinstance(standardizer, str) else dict(standardizer)
    where = f"{folder.path} {split}"
    reads = plugin.build("data.standardizers", spec, SourceContext(name=where, stream=""))
    views = _views(folder, where, reads)
    of = {"path": folder.path, "split": folder.split(split), "bad_samples": bad_samples}
    of |= {"spec": spec, "row": _rlds_table.described(reads), "code": _rlds_table.code(reads)}
    own = sorted(pathlib.Path(__file__).parent.glob("*hdf5*.py"))
    of |= {"own": [file.read_text() for file in own]}
    of["stamps"] = [(file, s.size, s.version) for file, s in sorted(folder.stamps.items())]
    # Broken files are passed over: the same stamps may be of other episodes another time.
    of["files"] = sorted({place.file for place in folder.places})
    told = json.dumps(of, sort_keys=True, default=repr).encode()
    key = hashlib.blake2b(told, digest_size=16).hexdigest()

    def make_table() -> tuple[dict, dict]:
        return episodes_lib.pack(_standardized(folder, split, where, reads, views, broken))

    kept = os.path.join(_place(folder, index_dir), f"{key}.safetensors")
    table = episodes_lib.unpack(where, *_rlds_table.kept(kept, make_table))
    reader = _Reader(folder, table, views)
    table = dataclasses.replace(table, origin=reader.origin)
    return table, looks.upright(table, reader)


def _place(folder: Folder, index_dir: str | None) -> str:
    """Where tables lie: beside the data (a folder's), or in `index_dir`; else in a cache."""
    beside = folder
    if folder.path.endswith(_hdf5_folder.SUFFIXES):
        beside = dataclasses.replace(folder, path=_files.parent(folder.path))
    place = _files.join(_index_build.place(beside, index_dir), "tables")
    if not _files.is_url(place) and _files.writable(place):
        return place
    return _rlds_table.cached(place)


def _views(folder: Folder, where: str, standardizer) -> dict[str, str]:
    views = standardizer.views(folder.features)
    for view, name in views.items():
        if folder.features[name].kind != "image":
            raise plugin.UserError(
                f"{where}: {name} (view {view}) is {folder.features[name]}, expected pictures"
            )
    return views


def _standardized(folder: Folder, split, where, standardizer, views, broken: list[str] | None):
    """The table of a split's episodes; `broken` files are counted, or no fault is allowed."""
    names = sorted(standardizer.columns(folder.features))
    files = {file: number for number, file in enumerate(folder.stamps)}
    rows, skipped, places = [], list(broken or ()), {}
    for number in folder.split(split):
        place = folder.places[number]
        try:
            columns = folder.columns(number, names)
            length = folder.length(number)
            folder.check_pictures(number, views.values())
            episode = standardizer.episode(columns, length, str(place))
            if str(place).endswith(episode.id):  # the row names none
                episode = dataclasses.replace(episode, id=place.id)
            episodes_lib.check(str(place), episode, rows[0][0] if rows else None)
            episodes_lib.distinct(str(place), episode.id, places)
        except plugin.UserError as error:
            if broken is None:
                raise
            skipped.append(passing.fault(error))
            continue
        steps = np.asarray(episode.steps, np.int64)
        size = np.full(len(steps), folder.stamps[place.file].size, np.int64)
        frames = dict.fromkeys(views, (steps, size))
        rows.append((episode, frames, files[place.file], number, 0))
    if not rows:
        first = f", the first: {skipped[0]}" if skipped else ""
        raise plugin.UserError(f"{where}: no episode is whole ({len(skipped)} are not{first})")
    table = episodes_lib.collect(where, folder.name, rows, tuple(views))
    return dataclasses.replace(table, skipped=tuple(skipped))


class _Reader:
    """A FrameReader: stored bytes, or uint8 arrays; pickled without open files.

    Frames.offset is the step, Frames.length the file's size, so that another file is another
    fingerprint.
    """

    def __init__(self, folder: Folder, table: episodes_lib.Episodes, views: Mapping[str, str]):
        self.folder, self.table, self.views = folder, table, views

    def __call__(self, view: str, episode: int, rows: Sequence[int]) -> list[bytes | np.ndarray]:
        name, offset = self.views[view], self.table.frames[view].offset
        number, steps = int(self.table.record[episode]), [int(offset[row]) for row in rows]
        return self.folder.pictures(number, name, steps)

    def origin(self, view: str, episode: int) -> str:
        """See Episodes.origin."""
        return f"{self.folder.places[int(self.table.record[episode])]}: {self.views[view]}"
