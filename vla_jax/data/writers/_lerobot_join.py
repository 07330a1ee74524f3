"""Parts of a conversion to LeRobot v3.0 joined to one data set; see _lerobot_shards.py."""

from __future__ import annotations

import json
import pathlib
import pickle
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_jax import plugin
from vla_jax.data.sources import _lerobot_folder
from vla_jax.data.writers import _lerobot_files, _lerobot_stats, _shards, lerobot


class Whole:
    """The data set as the parts come to it."""

    def __init__(self, plan: Mapping, root: pathlib.Path):
        self._plan, self._root, self.rows = plan, root, []
        self._metadata, self._tasks, self._frames = [], {}, 0
        self._statistics = _lerobot_stats.Statistics()
        self._data = _lerobot_files.DataFiles(root, 0)
        self._files = {}  # video key -> how many there are

    def add(self, part: pathlib.Path) -> None:
        """Takes over a part."""
        rows, metadata, tasks, statistics = pickle.loads((part / "told.pickle").read_bytes())
        numbers = np.asarray([self._tasks.setdefault(t, len(self._tasks)) for t in tasks])
        videos = {}  # (key, place in the part) -> place here
        with pq.ParquetFile(part / "steps.parquet") as steps:
            for group, row in enumerate(rows):
                counted = self._add_steps(steps.read_row_group(group), row, numbers)
                found = self._statistics.add(counted, {})
                for name, told in found.items():
                    row |= {f"stats/{name}/{kind}": value for kind, value in told.items()}
                if self._plan["codec"]:
                    for key in self._plan["pictures"].values():
                        self._link_video(part, key, row, videos)
                self.rows.append(row)
        self._statistics.join(statistics)
        self._metadata += metadata

    def _add_steps(self, table: pa.Table, row: dict, numbers: np.ndarray) -> dict:
        length, episode = row["length"], len(self.rows)
        counted = {
            "timestamp": table["timestamp"].to_numpy(),
            "frame_index": table["frame_index"].to_numpy(),
            "episode_index": np.full(length, episode),
            "index": self._frames + np.arange(length),
            "task_index": numbers[table["task_index"].to_numpy()],
        }
        for name in ("episode_index", "index", "task_index"):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, pa.array(counted[name]))
        row["episode_index"] = episode
        row["data/chunk_index"], row["data/file_index"] = self._data.add(table)
        row["dataset_from_index"], row["dataset_to_index"] = self._frames, self._frames + length
        self._frames += length
        return counted

    def _link_video(self, part: pathlib.Path, key: str, row: dict, videos: dict) -> None:
        names = [f"videos/{key}/{name}" for name in _lerobot_folder.PLACES]
        old = tuple(row[name] for name in names)
        if (key, old) not in videos:
            number = self._files.setdefault(key, 0)
            self._files[key] += 1
            videos[key, old] = divmod(number, _lerobot_files.FILES_PER_CHUNK)
            source, target = (
                root
                / _lerobot_files.VIDEO.format(
                    video_key=key, **dict(zip(_lerobot_folder.PLACES, place, strict=True))
                )
                for root, place in ((part, old), (self._root, videos[key, old]))
            )
            _shards.link(source, target)
        row |= dict(zip(names, videos[key, old], strict=True))

    def close(self, splits: Mapping[str, str]) -> None:
        """Writes what is said of the data set."""
        self._data.close()
        _lerobot_files.write_tasks(self._root, self._tasks)
        _lerobot_files.write_episodes(self._root, 0, self.rows)
        _lerobot_files.write_json(self._root / "meta/stats.json", self._statistics.total())
        self._write_sidecar()
        plan = self._plan
        about = {
            "codebase_version": "v3.0",
            "robot_type": plan["robot"],
            "total_episodes": len(self.rows),
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": _lerobot_files.FILES_PER_CHUNK,
            "data_files_size_in_mb": _lerobot_files.DATA_MB,
            "video_files_size_in_mb": _lerobot_files.VIDEO_MB,
            "fps": int(plan["fps"]) if plan["fps"] == int(plan["fps"]) else plan["fps"],
            "splits": dict(splits),
            "data_path": _lerobot_files.DATA,
            "video_path": _lerobot_files.VIDEO if plan["codec"] else None,
            "features": plan["features"],
        }
        _lerobot_files.write_json(self._root / "meta/info.json", about)

    def _write_sidecar(self) -> None:
        try:
            table = pa.Table.from_pylist(self._metadata)
        except pa.ArrowException as error:
            raise plugin.UserError(f"metadata that differ in kind ({error})") from error
        told = json.dumps(self._row())
        pq.write_table(
            table.replace_schema_metadata({"standardizer": told}), self._root / lerobot.SIDECAR
        )

    def _row(self) -> dict | None:
        """The standardizer that reads a data set in our nouns back."""
        plan = self._plan
        if not plan["ours"]:
            return None
        groups = {group: np.zeros((0, size)) for group, size in plan["groups"].items()}
        views = [key.removeprefix(lerobot.IMAGES) for key in plan["pictures"].values()]
        like = {"metadata": self._metadata[0], "proprio": groups, "images": dict.fromkeys(views)}
        return lerobot.row_of(like)
