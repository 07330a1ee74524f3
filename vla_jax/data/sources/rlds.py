"""Robot episodes in RLDS/TFDS folders (TFRecord or array_record), read in place without TensorFlow.

Every record is read once, its CRC checked, for the index (_index.py, `vla data index`). From it and
a standardizer comes the table of episodes, which is kept and mapped (_rlds_table.py). Images stay
in the shards and are read by byte range when a sample needs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vla_jax.data import episodes as episodes_lib
from vla_jax.data import looks, recordings, robot
from vla_jax.data.sources import _files, _index_build, _rlds_folder, _rlds_raw, _rlds_table
from vla_jax.types import SourceContext

DEBUG: dict = {}


def make(
    context: SourceContext,
    *,
    path: str,
    standardizer: str | Mapping = "native",
    split: str = "train",
    index_dir: str | None = None,
    **reading: robot.Reading,
) -> robot.RobotRows:
    """The samples of one split of an RLDS folder.

    Args:
      context: the stream's; `context.train` picks the training or the held-out episodes.
      path: the folder with dataset_info.json, or the one above its single version.
      standardizer: ``"native"`` or ``dict(type="oxe", row="bridge")``.
      split: a split or slice as TFDS means it: "train", "train[:95%]", "train+val". (A validation
        split may repeat the training split: see holdout.)
      index_dir: where the index lies, if not beside the data or in $VLA_JAX_INDEX_DIR.
      reading: holdout, steps, language, augment, …: see robot.Reading.

    Raises:
      UserError: no such folder, split or shard; a corrupt record; columns that do not fit the
        standardizer, embodiment or action space; a number that is not finite.
    """
    made = robot.Reading.make(reading)
    table, read = recorded(
        path,
        standardizer=standardizer,
        split=split,
        bad_samples=made.bad_samples,
        index_dir=index_dir,
    )
    return robot.RobotRows(context, table, read, made)


def is_at(path: _files.Path) -> bool:
    """Whether there is a TFDS folder of episodes at `path`, or just below it; reads names only."""
    return any(_files.is_file(_files.join(v, "features.json")) for v in _rlds_folder.versions(path))


def raw(path: _files.Path, split: str | None = None, bad_episodes: str = "error") -> _rlds_raw.Raw:
    """The episodes as they were recorded, every field decoded; needs no index.

    A shard is opened when an episode of it is read: `bad_episodes` changes nothing here.
    `split` None: `train`, or the first there is. Raises UserError for another folder, split or
    slice.
    """
    del bad_episodes
    if split is None:
        split = recordings.default_split(_rlds_folder.open_folder(path).splits)
    return _rlds_raw.Raw(path, split)


def recorded(
    path: str,
    *,
    standardizer: str | Mapping = "native",
    split: str = "train",
    bad_samples: str = "error",
    index_dir: str | None = None,
) -> tuple[episodes_lib.Episodes, episodes_lib.FrameReader]:
    """(the table of all episodes of a split, the reader of its images).

    Makes the index where it is absent or stale. Raises UserError as `make` does.
    """
    spec = {"type": standardizer} if isinstance(standardizer, str) else dict(standardizer)
    folder = _rlds_folder.open_folder(path)
    table, shards, files = _rlds_table.open_table(folder, split, spec, bad_samples, index_dir)
    stamps = [s.stamp if s.path == file else None for s, file in zip(shards, files)]
    reader = _RangeReader if folder.file_format == "tfrecord" else _Reader
    read = reader(table, [folder.reader(*pair) for pair in zip(files, stamps)])
    return table, looks.upright(table, read)


def index(path: str, *, index_dir: str | None = None, workers: int | None = None) -> dict:
    """Makes the indexes of all splits that are absent or stale, and says what they hold.

    Returns {path, index, shards, made, episodes, bytes, faults}: `faults` are the messages of
    records that are broken. Raises UserError where the place cannot be written.
    """
    folder = _rlds_folder.open_folder(path)
    counts = {shard: n for shards in folder.splits.values() for shard, n in shards}
    shards = _index_build.shards(folder, counts, index_dir)
    made = _index_build.ensure(folder, shards, workers)
    indexes = [_index_build.load(folder, shard) for shard in shards]
    return {
        "path": folder.path,
        "index": _index_build.place(folder, index_dir),
        "shards": len(shards),
        "made": made,
        "episodes": sum(index.count for index in indexes),
        "bytes": sum(_files.stat(shard.target).size for shard in shards),
        "faults": [fault for index in indexes for fault in index.all_faults()],
    }


class _Reader:
    """A FrameReader of encoded images; pickled without open files."""

    def __init__(self, table: episodes_lib.Episodes, shards: Sequence):
        self.table, self.shards = table, shards

    def __call__(self, view: str, episode: int, rows: Sequence[int]) -> list[bytes]:
        frames, table = self.table.frames[view], self.table
        shard = self.shards[table.shard[episode]]
        record = (int(table.record[episode]), int(table.record_offset[episode]))
        spans = [(int(frames.offset[row]), int(frames.length[row])) for row in rows]
        found = iter(shard.read(*record, [span for span in spans if span[1]]))
        return [next(found) if span[1] else b"" for span in spans]


class _RangeReader(_Reader):
    """The same of shards whose bytes can be fetched by range; see data/runs.py."""

    @property
    def remote(self) -> bool:
        """Whether a fetch goes over a network."""
        return any(_files.is_url(shard.file.path) for shard in self.shards[:1])

    def places(self, view: str, episode: int, rows: Sequence[int]) -> list[tuple[int, int]]:
        """(offset in the shard, length) of each row's image."""
        frames, base = self.table.frames[view], int(self.table.record_offset[episode])
        return [(base + int(frames.offset[row]), int(frames.length[row])) for row in rows]

    def fetch(self, shard: int, offset: int, length: int) -> bytes:
        """Bytes of a shard."""
        return self.shards[shard].file.read(offset, length)
