"""RLDS episodes as they were recorded: every field of one episode, decoded."""

from __future__ import annotations

import pathlib

import numpy as np

from vla_jax.data import images
from vla_jax.data.sources import _example, _rlds_folder


def is_at(path: str) -> bool:
    """Whether `path` is an RLDS folder, or the one above its versions; looks at names only."""
    path = pathlib.Path(path).expanduser()
    return (path / "dataset_info.json").is_file() or any(path.glob("*/dataset_info.json"))


def raw(path: str, split: str | None = None) -> RldsRaw:
    """The recorded episodes of a split (None: `train`, or the first there is)."""
    folder = _rlds_folder.open_folder(path)
    if split is None:
        split = "train" if "train" in folder.splits else next(iter(folder.splits), "train")
    return RldsRaw(folder, split)


class RldsRaw:
    """See recordings.Raw."""

    kind = "RLDS"

    def __init__(self, folder: _rlds_folder.Folder, split: str):
        self.folder, self.split, self.name = folder, split, folder.name
        self.path = str(folder.path)
        self.about = {"version": folder.version, "file_format": folder.file_format}
        self.splits = {name: sum(n for _, n in shards) for name, shards in folder.splits.items()}
        self.fields = {
            f.name: dict(kind=f.kind, shape=f.shape, dtype=f.dtype)
            for _, f in sorted(folder.features.items())
        }
        self._records, self._ids = [], []
        clock = next(n for n in self.fields if n.startswith("steps/"))
        for record in _rlds_folder.records(
            folder, split, lambda name: name == clock or name.startswith("episode_metadata/")
        ):
            self._records.append((record.shard, record.number, record.offset))
            self._ids.append(str(record.columns.get("episode_metadata/episode_id", "")))

    def __len__(self) -> int:
        return len(self._records)

    def ids(self) -> list[str]:
        """What the data set calls its episodes; their places where it has no unique names."""
        unique = len(set(self._ids)) == len(self._ids) and all(self._ids)
        return list(self._ids) if unique else [str(i) for i in range(len(self))]

    def episode(self, index: int, fields=None, steps=None) -> dict[str, np.ndarray]:
        """See recordings.Raw."""
        shard, number, _ = self._records[index]
        path, _ = self.folder.shards(self.split)[shard]
        scan = _rlds_folder.READERS[self.folder.file_format].scan(path)
        data = next(data for n, (_, data) in enumerate(scan) if n == number)
        where = f"{path}: record {number}"
        clock = next(n for n in self.fields if n.startswith("steps/"))
        found = _example.parse(data, lambda name: not fields or name == clock or name in fields)
        columns, _ = _rlds_folder._decode(self.folder, data, found, where)
        return {
            name: self._array(name, column, data, steps)
            for name, column in columns.items()
            if fields is None or name in fields
        }

    def _array(self, name: str, column, data: bytes, steps) -> np.ndarray:
        if isinstance(column, _example.Spans):
            spans = column if steps is None else column[np.asarray(steps)]
            # TensorFlow's own transform, so that the pictures are those that TFDS gives.
            return np.stack([images.decode(part, "tensorflow") for part in spans.read(data)])
        return np.asarray(column)
