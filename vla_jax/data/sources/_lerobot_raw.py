"""Whole episodes of a LeRobot data set, decoded, for the tools."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.data import images
from vla_jax.data.sources import _lerobot_columns, _video
from vla_jax.data.sources._lerobot_folder import Folder

KINDS = {"depth": "video", "language": "text"}


class Raw:
    """A split's episodes (recordings.Raw); fields have LeRobot's names, and `task` is the text.

    Depth maps come as the grey pictures that their videos show, annotations (dtype "language") as
    JSON. What our own writer laid down `beside` them (meta/vla_jax.parquet) are no fields: a
    standardizer reads it, the data's own if it `names_standardizer`.
    """

    def __init__(self, folder: Folder, chosen: np.ndarray):
        self._folder, self._chosen = folder, chosen
        self.kind, self.name, self.fps = f"LeRobot {folder.version}", folder.name, folder.fps
        beside = [] if folder.metadata is None else folder.metadata.column_names
        self.beside = [name for name in beside if name != "episode_id"]
        self.names_standardizer = folder.standardizer is not None
        self.splits = {name: len(part) for name, part in folder.splits.items()}
        self.fields = {
            name: dict(kind=KINDS.get(f.kind, f.kind), shape=f.shape, dtype=f.dtype)
            for name, f in folder.features.items()
        }

    def __len__(self) -> int:
        return len(self._chosen)

    def ids(self) -> list[str]:
        """What each episode is called, in order."""
        return [f"episode_{number:06d}" for number in self._chosen.tolist()]

    def episode(
        self,
        index: int,
        fields: Sequence[str] | None = None,
        steps: Sequence[int] | None = None,
    ) -> dict[str, np.ndarray]:
        """Field -> array, first axis = step: pictures uint8 [T, height, width, 3], texts as str.

        `fields`: None = all. `steps`: those wanted of pictures, None = all. Raises UserError for
        an unknown field, and naming file, episode and field for what cannot be read.
        """
        folder, wanted = self._folder, list(self.fields if fields is None else fields)
        for name in wanted:
            if name not in self.fields:
                where = f"{folder.path}: field"
                raise plugin.UserError(plugin.unknown(where, name, self.fields))
        pictures = [name for name in wanted if self.fields[name]["kind"] in ("image", "video")]
        read = {name for name in wanted if name not in pictures} | {_lerobot_columns.TIME}
        number, file, first, values = next(
            _lerobot_columns.episodes(folder, self._chosen[index : index + 1], read)
        )
        chosen = np.arange(int(folder.lengths[number]))[slice(None) if steps is None else steps]
        found = {}
        for name in wanted:
            if name not in pictures:
                found[name] = np.asarray(values[name])
                continue
            where = f"{folder.path}: episode {number}, {name}"
            if self.fields[name]["kind"] == "video":
                times = folder.times(name, number, values[_lerobot_columns.TIME])[chosen]
                video = folder.video_file(name, number)
                frames = _video.frames(video, times.tolist(), where)
            else:
                rows = (first + chosen).tolist()
                encoded = _lerobot_columns.image_bytes(folder, file, name, rows, where)
                frames = [images.decode(data) for data in encoded]
            found[name] = np.stack(frames)
        return found
