"""Episodes in our nouns → a LeRobot v3.0 data set, without torch or LeRobot.

An episode is what writers/rlds.py says, with a picture at every step. It becomes

    action                       float32 [A]
    observation.state            float32 [n], the proprio groups by name, one after the other
    observation.images.<view>    video (h264 or AV1), or PNG in the parquet files (codec=None)
    next.reward, next.done, next.success      where the metadata say `success`
    task                         the instruction

What LeRobot has no place for (metadata, cameras, and the standardizer's row that reads it all back)
stands in meta/vla_jax.parquet, which other readers pass over.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_jax import plugin
from vla_jax.data import images
from vla_jax.data.sources import _lerobot_folder, _lerobot_raw, _video
from vla_jax.data.writers import _lerobot_files, _lerobot_stats, _shards, _spool
from vla_jax.plugin import UserError

STATE = "observation.state"
IMAGES = "observation.images."
SIDECAR = _lerobot_folder.SIDECAR
COUNTED = ("timestamp", "frame_index", "episode_index", "index", "task_index")
INDEX = "vla_index"  # of a reader, made anew
REWRITTEN = ("meta/info.json", "meta/stats.json", "meta/tasks.parquet", SIDECAR)


encode = images.png  # a picture as episodes hold it until they are written


def write(out: str | os.PathLike, episodes: Iterable[Mapping], **options) -> int:
    """Writes `episodes` to the folder `out` and returns their number; `options` as for `Writer`."""
    with Writer(out, **options) as writer:
        for index, chunk in _spool.chunks(episodes):
            spool(writer.spool, index, chunk)
        return writer.finish()


def spool(folder: str | os.PathLike, index: int, episodes: list[Mapping]) -> None:
    """Lays chunk `index` of the data set down for `Writer.finish`; any process may, in any order.

    Raises UserError when an episode's lengths, dtypes or values do not fit.
    """
    _spool.lay(folder, index, [_prepare(episode) for episode in episodes])


class Writer(_spool.Folder):
    """A folder in the making; as a context manager it leaves nothing half-written behind.

    Args:
      out: the data set's folder.
      name: see _spool.Folder.
      codec: of the videos, "h264" or "av1"; None = PNG pictures in the parquet files, exact.
      append: add to the data set at `out`, which stays as it is until `finish` has succeeded.
      control_hz: LeRobot's `fps`; None = what the first episode's metadata say.
      embodiment: LeRobot's `robot_type`; None = what the first episode's metadata say.

    Raises:
      UserError: `out` is not empty (without `append`); an unknown codec.
    """

    def __init__(
        self,
        out: str | os.PathLike,
        *,
        name: str | None = None,
        codec: str | None = "h264",
        append: bool = False,
        control_hz: float | None = None,
        embodiment: str | None = None,
    ):
        if codec is not None and codec not in _lerobot_files.CODECS:
            raise UserError(plugin.unknown(f"{out}: codec", codec, _lerobot_files.CODECS))
        super().__init__(out, name, replaces=append)
        self._codec, self._fps, self._body = codec, control_hz, embodiment

    def finish(self) -> int:
        """Builds the data set from the spool and moves it to `out`: number of episodes added.

        Raises UserError when there are no episodes, they differ in form, or they do not fit the
        data set that they are added to.
        """
        first = next(_spool.laid(self.spool), None)
        if first is None:
            raise UserError(f"{self.out}: no episodes to write")
        fps = self._fps or first["metadata"].get("control_hz")
        if not fps:
            raise UserError(
                f"{self.out}: LeRobot needs the steps per second: give control_hz, here or in the "
                "episodes' metadata"
            )
        body = self._body or first["metadata"].get("embodiment")
        self.built.mkdir()
        build = _Build(self.built, self.out if self.old else None, first, float(fps), self._codec)
        for episode in _spool.laid(self.spool):
            build.add(episode)
        build.close(body)
        self.publish()
        return build.added


class _Build:
    """The data set as it grows in `root`, from nothing or from `previous`."""

    def __init__(self, root, previous: pathlib.Path | None, first: Mapping, fps, codec):
        self._root, self._fps, self._codec = root, fps, codec
        self._features = _features(first, fps, codec)
        self._views = sorted(first["images"])
        self._tasks: dict[str, int] = {}
        self._statistics = _lerobot_stats.Statistics()
        self._rows, self._metadata, self._row = [], [], row_of(first)
        self._unmeasured: list[tuple[dict, dict]] = []  # rows and columns of episodes in videos
        self.added, self._episodes, self._frames, self._info = 0, 0, 0, {}
        if previous is not None:
            self._take_up(previous)
        next_file = {kind: _next(root, kind) for kind in ("data", "meta/episodes")}
        self._episodes_file = next_file["meta/episodes"]
        self._data = _lerobot_files.DataFiles(root, next_file["data"])
        self._videos = {
            IMAGES + view: _lerobot_files.VideoFiles(
                root, IMAGES + view, _next(root, f"videos/{IMAGES}{view}"), fps, codec
            )
            for view in (self._views if codec else ())
        }

    def add(self, episode: Mapping) -> None:
        """Writes an episode's steps and frames; UserError where its form is not the first's."""
        number, length = self._episodes, len(episode["action"])
        if _features(episode, self._fps, self._codec) != self._features:
            raise UserError(
                f"{self._root}: episode {self.added} has {_form(episode)}, which are not the "
                f"features of those before: {sorted(self._features)}"
            )
        task = self._tasks.setdefault(episode["instruction"], len(self._tasks))
        columns = _columns(episode) | {
            "timestamp": (np.arange(length) / self._fps).astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, number),
            "index": self._frames + np.arange(length),
            "task_index": np.full(length, task),
        }
        encoded = {IMAGES + view: episode["images"][view] for view in self._views}
        row = {"episode_index": number, "tasks": [episode["instruction"]], "length": length}
        table = _lerobot_files.steps(columns, {} if self._codec else encoded)
        row["data/chunk_index"], row["data/file_index"] = self._data.add(table)
        row["dataset_from_index"], row["dataset_to_index"] = self._frames, self._frames + length
        for key, files in self._videos.items():
            place = files.add([images.decode(data) for data in encoded[key]])
            names = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
            row |= {f"videos/{key}/{n}": v for n, v in zip(names, place, strict=True)}
        self._rows.append(row)
        if self._videos:
            self._unmeasured.append((row, columns))  # by what can be read when the file is whole
        else:
            chosen = _lerobot_stats.sampled(length)
            self._measure(row, columns, {k: [v[i] for i in chosen] for k, v in encoded.items()})
        self._metadata.append(_flat(episode["metadata"]))
        self._episodes, self._frames, self.added = number + 1, self._frames + length, self.added + 1

    def close(self, embodiment: str | None) -> None:
        """Ends the files, reads the frames back, and writes what is said of the data set."""
        self._data.close()
        for files in self._videos.values():
            files.close()
        for row, columns in self._unmeasured:
            self._measure(row, columns, {key: self._read_back(key, row) for key in self._videos})
        _lerobot_files.write_tasks(self._root, self._tasks)
        _lerobot_files.write_episodes(self._root, self._episodes_file, self._rows)
        _lerobot_files.write_json(self._root / "meta/stats.json", self._statistics.total())
        if self._row is not None:
            self._write_sidecar()
        _lerobot_files.write_json(self._root / "meta/info.json", self._describe(embodiment))

    def _read_back(self, key: str, row: Mapping) -> list[np.ndarray]:
        """The frames that statistics are of; UserError where a reader would not find one."""
        place = {name: row[f"videos/{key}/{name}"] for name in _lerobot_folder.PLACES}
        path = self._root / _lerobot_files.VIDEO.format(video_key=key, **place)
        steps = _lerobot_stats.sampled(row["length"]) / self._fps
        times = row[f"videos/{key}/from_timestamp"] + steps.astype(np.float32).astype(np.float64)
        where = f"{self._root}: episode {row['episode_index']}, {key}, read back"
        return _video.frames(path, times.tolist(), where)

    def _measure(self, row: dict, columns: Mapping, pictures: Mapping) -> None:
        arrays = {
            key: np.stack([images.decode(p) if isinstance(p, bytes) else p for p in found])
            for key, found in pictures.items()
        }
        found = self._statistics.add(columns, arrays)
        for name in self._features:
            row |= {f"stats/{name}/{kind}": value for kind, value in found[name].items()}

    def _take_up(self, previous: pathlib.Path) -> None:
        """Links the files of the data set that is added to, and counts and measures it."""
        folder = _lerobot_folder.open_folder(previous)
        self._info = json.loads((previous / "meta/info.json").read_text())
        known = {k: (f["dtype"], list(f["shape"])) for k, f in self._info["features"].items()}
        mine = {k: (f["dtype"], list(f["shape"])) for k, f in self._features.items()}
        if folder.version != "v3.0" or folder.fps != self._fps or known != mine:
            raise UserError(
                f"{previous}: {folder.version}, {folder.fps} steps/s, features {known}; the "
                f"episodes to be added are v3.0, {self._fps} steps/s, {mine}: write another folder"
            )
        for file in sorted(path for path in previous.rglob("*") if path.is_file()):
            name = file.relative_to(previous)
            if name.as_posix() not in REWRITTEN and name.parts[0] != INDEX:
                _shards.link(file, self._root / name)
        raw = _lerobot_raw.Raw(folder, np.arange(len(folder.lengths)))
        keys = [IMAGES + view for view in self._views]
        plain = [name for name in raw.fields if name not in (*keys, "task")]
        for episode, length in enumerate(folder.lengths.tolist()):
            chosen = _lerobot_stats.sampled(length)
            pictures = raw.episode(episode, keys, chosen.tolist())
            self._statistics.add(raw.episode(episode, plain), pictures)
        self._episodes, self._frames = len(folder.lengths), int(folder.lengths.sum())
        self._tasks = {text: index for index, text in sorted(folder.tasks.items())}
        if (previous / SIDECAR).is_file():
            self._metadata = pq.read_table(previous / SIDECAR).to_pylist()
        else:
            self._row = None

    def _write_sidecar(self) -> None:
        try:
            table = pa.Table.from_pylist(self._metadata)
        except pa.ArrowException as error:
            raise UserError(f"{self._root}: metadata that differ in kind ({error})") from error
        table = table.replace_schema_metadata({"standardizer": json.dumps(self._row)})
        pq.write_table(table, self._root / SIDECAR)

    def _describe(self, embodiment: str | None) -> dict:
        whole = int(self._fps) if self._fps == int(self._fps) else self._fps
        made = {
            "codebase_version": "v3.0",
            "robot_type": embodiment,
            "total_episodes": self._episodes,
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": _lerobot_files.FILES_PER_CHUNK,
            "data_files_size_in_mb": _lerobot_files.DATA_MB,
            "video_files_size_in_mb": _lerobot_files.VIDEO_MB,
            "fps": whole,
            "splits": {"train": f"0:{self._episodes}"},
            "data_path": _lerobot_files.DATA,
            "video_path": _lerobot_files.VIDEO if self._videos else None,
            "features": self._features,
        }
        fresh = ("total_episodes", "total_frames", "total_tasks", "splits")
        return {**made, **{k: v for k, v in self._info.items() if k not in fresh}}


def _prepare(episode: Mapping) -> dict:
    """The checked episode with its pictures as PNG or as the bytes they came in."""
    _spool.check(episode)
    encoded = {}
    for view, pictures in episode["images"].items():
        absent = [step for step, picture in enumerate(pictures) if picture is None]
        if absent:
            raise UserError(
                f"episode images/{view}: no picture at steps {absent[:5]}; LeRobot has one at each "
                "step: record them all, or write RLDS"
            )
        shapes = {images.decode(p).shape if isinstance(p, bytes) else p.shape for p in pictures}
        if len(shapes) != 1:
            raise UserError(f"episode images/{view}: sizes {sorted(shapes)}, expected one size")
        encoded[view] = [p if isinstance(p, bytes) else encode(p) for p in pictures]
    return {**episode, "images": encoded}


def _columns(episode: Mapping) -> dict[str, np.ndarray]:
    length, found = len(episode["action"]), {}
    if episode["proprio"]:
        groups = sorted(episode["proprio"])
        found[STATE] = np.concatenate([episode["proprio"][group] for group in groups], axis=1)
    found["action"] = episode["action"]
    if "success" in episode["metadata"]:
        last = np.arange(length) == length - 1
        success = last & bool(episode["metadata"]["success"])
        found |= {"next.reward": success.astype(np.float32), "next.done": last}
        found["next.success"] = success
    return found


def _features(episode: Mapping, fps: float, codec: str | None) -> dict:
    """The entry `features` of meta/info.json."""
    features = {}
    for name, values in _columns(episode).items():
        names = None
        if name == STATE:
            groups = sorted(episode["proprio"].items())
            names = [f"{group}_{i}" for group, value in groups for i in range(value.shape[1])]
        elif values.ndim == 2:
            names = [f"{name}_{i}" for i in range(values.shape[1])]
        shape = list(values.shape[1:]) or [1]
        features[name] = {"dtype": values.dtype.name, "shape": shape, "names": names}
    whole = int(fps) if fps == int(fps) else fps
    for view, pictures in sorted(episode["images"].items()):
        shapes = {images.decode(data).shape for data in pictures[:1]}
        height, width, _ = next(iter(shapes))
        entry = {
            "dtype": "video" if codec else "image",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
        }
        if codec:
            entry["info"] = _lerobot_files.video_info(height, width, whole, codec)
        features[IMAGES + view] = entry
    for name in COUNTED:
        dtype = "float32" if name == "timestamp" else "int64"
        features[name] = {"dtype": dtype, "shape": [1], "names": None}
    return features


def _form(episode: Mapping) -> dict:
    shapes = {name: values.shape[1:] for name, values in _columns(episode).items()}
    return shapes | {v: images.decode(p[0]).shape for v, p in episode["images"].items()}


def row_of(episode: Mapping) -> dict | None:
    """The standardizer that reads these episodes back, where their metadata name the robot."""
    metadata = episode["metadata"]
    if "embodiment" not in metadata or "action_space" not in metadata:
        return None
    proprio, end = {}, 0
    for group, values in sorted(episode["proprio"].items()):
        proprio[group] = f"{STATE}[{end}:{end + values.shape[1]}]"
        end += values.shape[1]
    row = {
        "embodiment": metadata["embodiment"],
        "action_space": metadata["action_space"],
        "views": {view: IMAGES + view for view in sorted(episode["images"])},
        "action": "action",
        "proprio": proprio,
        "language": "task",
        "episode_id": ["episode_id"] if "episode_id" in metadata else [],
    }
    return {"type": "rows", "row": row}


def _flat(metadata: Mapping, prefix: str = "") -> dict:
    """Metadata with nested names joined by `/`, as parquet's lists and scalars."""
    found = {}
    for name, value in metadata.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}/")
        else:
            plain = isinstance(value, np.ndarray | np.generic)
            found[prefix + name] = value.tolist() if plain else value
    return found


def _next(root: pathlib.Path, kind: str) -> int:
    """The number of the first file of a kind that is not there yet."""
    per = _lerobot_files.FILES_PER_CHUNK
    files = (root / kind).glob("chunk-*/file-*")
    numbers = [int(f.parent.name[6:]) * per + int(f.stem[5:]) for f in files]
    return max(numbers, default=-1) + 1
