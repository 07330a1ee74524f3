"""Episodes in their source's names → a LeRobot v3.0 data set, written in parts by several workers.

    steps/observation/state        observation.state              `/` becomes `.`
    steps/observation/image_0      observation.images.image_0     video (h264, AV1), or PNG
    steps/language_instruction     task                           the instruction of each step
    episode_metadata/…             meta/vla_jax.parquet           see lerobot.py

A data set in our nouns gets observation.state and the row that reads it, as lerobot.py writes them.
A worker encodes the films of its episodes; what depends on other parts (numbers of episodes, files
and tasks, statistics of all) is filled in when all are there, without touching a frame again.
"""

from __future__ import annotations

import pathlib
import pickle
import shutil
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow.parquet as pq

from vla_jax import plugin
from vla_jax.data import images, inspect, recordings
from vla_jax.data.sources import _lerobot_folder, _video
from vla_jax.data.standardizers import native
from vla_jax.data.writers import (
    _lerobot_files,
    _lerobot_join,
    _lerobot_stats,
    _rlds_shards,
    _shards,
    lerobot,
)
from vla_jax.data.writers._shards import Job, Part

PICTURES = ("h264", "av1", "png")
MADE = lerobot.COUNTED  # columns that are counted anew
PREFERRED = ("steps/language_instruction", "task")
OURS = ("steps/action", "episode_metadata/embodiment", "episode_metadata/action_space")


def plan(job: Job, raw: recordings.Raw) -> dict:
    """What all parts share: features of info.json, the names that they come from, fps, codec.

    Sizes are those of the first episode. Raises UserError for a field that LeRobot has no place
    for, a task that is not clear, and where nothing says the steps per second.
    """
    fields = _shards.chosen(job, raw)
    pictures = {n: _key(n, True) for n, f in fields.items() if _shards.pictured(f)}
    stepwise = {n for n in fields if _shards.of_steps(raw, n)}
    ours = all(name in fields for name in OURS)
    task = _task(job, fields)
    columns = {
        name: _key(name, False)
        for name in fields
        if name in stepwise and name not in (task, *pictures) and _key(name, False) not in MADE
        and not name.startswith(native.IMAGE_MASKS)
    }  # fmt: skip
    keys = [*pictures.values(), *columns.values()]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise plugin.UserError(f"{job.path}: several fields would be called {twice[0]} in LeRobot")
    made = {
        "columns": columns,
        "pictures": pictures,
        "metadata": [n for n in fields if n not in stepwise],
        "masks": [n for n in fields if n.startswith(native.IMAGE_MASKS)],
        "task": task,
        "ours": ours,
        "codec": None if job.pictures == "png" or not pictures else job.pictures or "h264",
    }
    index, found = _shards.first(job, raw, list(fields))
    for name in made["metadata"]:
        if name in pictures or found[name].dtype.kind not in "fiubU":
            raise _shards.refuse(job, name, "no place in LeRobot for such a thing per episode")
    made["fps"] = _fps(job, raw, found)
    body = found.get("episode_metadata/embodiment")
    made["robot"] = None if body is None else str(body)
    made["features"], made["groups"] = _features(job, made, found)
    return made


def _key(name: str, picture: bool) -> str:
    """LeRobot's name of a field: no slashes; cameras below observation.images."""
    plain = name.removeprefix(_shards.STEPS)
    if plain == name and "/" not in name:  # LeRobot's own
        return name
    if picture:
        plain = plain.removeprefix("observation/").removeprefix("images/")
        return lerobot.IMAGES + plain.replace("/", ".").removeprefix(lerobot.IMAGES)
    return plain.replace("/", ".")


def _task(job: Job, fields: Mapping) -> str | None:
    texts = [n for n, f in fields.items() if f["kind"] == "text" and "episode_metadata/" not in n]
    if job.task is not None:
        if job.task not in texts:
            raise plugin.UserError(plugin.unknown(f"{job.path}: --task", job.task, texts))
        return job.task
    spoken = [name for name in texts if any(word in name for word in inspect.SPEAKS)]
    preferred = [name for name in PREFERRED if name in spoken]
    if len(spoken) > 1 and not preferred:
        raise plugin.UserError(
            f"{job.path}: {spoken} may each be LeRobot's task; name one by --task"
        )
    return next(iter(preferred or spoken), None)


def _fps(job: Job, raw: recordings.Raw, found: Mapping) -> float:
    """What the source says, else what --hz or the episodes' action space does.

    --hz is the recorded rate; a standardizer may keep every so many steps.
    """
    told = getattr(raw, "fps", None) or found.get("episode_metadata/control_hz")
    stride = getattr(raw, "stride", 1)
    if told and job.control_hz and abs(float(told) * stride - job.control_hz) > 1e-3:
        raise plugin.UserError(
            f"{job.path}: --hz: got {job.control_hz:g}, but the source says "
            f"{float(told) * stride:g} steps per second; leave --hz out"
        )
    known = told or (job.control_hz and job.control_hz / stride) or _space_hz(found)
    if not known:
        raise plugin.UserError(
            f"{job.path}: does not say its steps per second, which LeRobot needs: give --hz"
        )
    return float(known)


def _space_hz(found: Mapping) -> float | None:
    """Of the action space that an episode in our nouns names, where its body is one of ours."""
    body, space = (str(found.get(name, "")) for name in OURS[1:])
    if body not in plugin.names("embodiments"):
        return None
    spaces = plugin.module("embodiments", body).EMBODIMENT.action_spaces
    return next((known.control_hz for known in spaces if known.name == space), None)


def _features(job: Job, plan: Mapping, found: Mapping) -> tuple[dict, dict]:
    """(`features` of info.json, sizes of the proprio groups of a data set in our nouns)."""
    given = {key: found[name] for name, key in plan["columns"].items()}
    proprio = _proprio(plan, given)
    groups = {group: values.shape[1] for group, values in proprio.items()}
    features = {}
    for name, key in plan["columns"].items():
        values = found[name]
        if key not in given:
            continue
        if values.ndim > 2 or values.dtype.kind not in "fiubU":
            what = f"{values.dtype} {list(values.shape[1:])} at a step; LeRobot takes vectors here"
            raise _shards.refuse(job, name, what)
        dtype = "string" if values.dtype.kind == "U" else values.dtype.name
        size = values.shape[1] if values.ndim == 2 else 1
        names = [f"{key}_{i}" for i in range(size)] if values.ndim == 2 else None
        features[key] = {"dtype": dtype, "shape": [size], "names": names}
    if groups:
        names = [f"{group}_{i}" for group, size in groups.items() for i in range(size)]
        features[lerobot.STATE] = {"dtype": "float32", "shape": [len(names)], "names": names}
    fps = int(plan["fps"]) if plan["fps"] == int(plan["fps"]) else plan["fps"]
    for name, key in plan["pictures"].items():
        shape = found[name].shape[1:]
        if found[name].dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
            raise _shards.refuse(job, name, f"{found[name].dtype} {shape} is no colour picture")
        height, width = job.resize or shape[:2]
        entry = {"dtype": "video" if plan["codec"] else "image", "shape": [height, width, 3]}
        features[key] = entry | {"names": ["height", "width", "channels"]}
        if plan["codec"]:
            features[key]["info"] = _lerobot_files.video_info(height, width, fps, plan["codec"])
    for name in MADE:
        dtype = "float32" if name == "timestamp" else "int64"
        features[name] = {"dtype": dtype, "shape": [1], "names": None}
    return features, groups


def _proprio(plan: Mapping, columns: dict) -> dict[str, np.ndarray]:
    """Takes the proprio groups of a data set in our nouns out of the columns."""
    prefix = _key(native.PROPRIO, False)
    if not plan["ours"]:
        return {}
    return {k.removeprefix(prefix): columns.pop(k) for k in sorted(columns) if k.startswith(prefix)}


def write(job: Job, plan: Mapping, part: Part, folder: pathlib.Path) -> dict:
    """Writes a part: {"episodes", "steps", "skipped": messages}."""
    raw = _shards.source(job, part.split)
    root = _root(folder, part)
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    shard = _Shard(job, plan, raw, root)
    skipped = []
    for index in range(part.first, part.last):
        try:
            shard.add(index)
        except plugin.UserError as error:
            if not _shards.is_left_out(job, error):
                raise
            skipped.append(str(error))
    shard.close()
    return {"episodes": len(shard.rows), "steps": shard.frames, "skipped": skipped}


def _root(folder: pathlib.Path, part: Part) -> pathlib.Path:
    return folder / f"{part.number:06d}"


class _Shard:
    """The films, steps and statistics of a part's episodes, counted from 0."""

    def __init__(self, job: Job, plan: Mapping, raw: recordings.Raw, root: pathlib.Path):
        self._job, self._plan, self._raw, self._root = job, plan, raw, root
        self.rows, self.frames, self._tasks = [], 0, {}
        self._statistics, self._metadata = _lerobot_stats.Statistics(), []
        self._columns: list[dict] = []
        self._steps = None
        self._videos = {
            key: _lerobot_files.VideoFiles(root, key, 0, plan["fps"], plan["codec"])
            for key in (plan["pictures"].values() if plan["codec"] else ())
        }

    def add(self, index: int) -> None:
        """Writes an episode; UserError where it cannot be read or is not like the first."""
        job, plan = self._job, self._plan
        where = f"{job.path}: episode {self._raw.ids()[index]}"
        columns, metadata, said = self._read(index, where)
        length = len(said)
        row = {"tasks": list(dict.fromkeys(said)), "length": length}
        encoded = {}
        for name, key in plan["pictures"].items():
            films = self._film(index, name, key, length, where)
            if plan["codec"]:
                names = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
                place = zip(names, self._videos[key].add(films), strict=True)
                row |= {f"videos/{key}/{n}": v for n, v in place}
            else:
                encoded[key] = [images.png(image) for image in films]
        counted = {
            "timestamp": (np.arange(length) / plan["fps"]).astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, len(self.rows)),
            "index": self.frames + np.arange(length),
            "task_index": np.asarray([self._tasks.setdefault(t, len(self._tasks)) for t in said]),
        }
        table = _lerobot_files.steps(columns | counted, encoded)
        if self._steps is None:
            self._steps = pq.ParquetWriter(self._root / "steps.parquet", table.schema)
        self._steps.write_table(table, row_group_size=length)
        self.rows.append(row)
        self._columns.append({k: v for k, v in columns.items() if v.dtype.kind != "U"})
        if not plan["codec"]:
            self._measure(len(self.rows) - 1, encoded)
        self._metadata.append(metadata)
        self.frames += length

    def close(self) -> None:
        """Ends the files, reads the frames back, and lays down what the whole is counted from."""
        if self._steps is not None:
            self._steps.close()
        for files in self._videos.values():
            files.close()
        for number, row in enumerate(self.rows if self._videos else ()):
            self._measure(number, {key: self._read_back(key, row) for key in self._videos})
        told = (self.rows, self._metadata, list(self._tasks), self._statistics)
        (self._root / "told.pickle").write_bytes(pickle.dumps(told))

    def _read(self, index: int, where: str) -> tuple[dict, dict, list[str]]:
        """(columns by LeRobot's names, metadata, the task of each step)."""
        plan = self._plan
        spoken = [plan["task"]] if plan["task"] else []
        names = [*plan["columns"], *plan["metadata"], *plan["masks"], *spoken]
        found = self._raw.episode(index, names)
        for name in names:
            _shards.held(where, found, name)
        for name in plan["masks"]:
            if not np.all(found[name]):
                absent = np.flatnonzero(~found[name])[:5].tolist()
                raise plugin.UserError(
                    f"{where}: {name}: no picture at steps {absent}; LeRobot has one at each step: "
                    "convert to rlds, or leave the view's fields out (--without)"
                )
        columns = {key: found[name] for name, key in plan["columns"].items()}
        proprio = _proprio(plan, columns)
        if proprio:
            columns[lerobot.STATE] = np.concatenate(list(proprio.values()), axis=1)
        length = len(next(iter(columns.values()))) if columns else 0
        for key, values in columns.items():
            columns[key] = self._fitting(key, values, where)
        metadata = {
            name.removeprefix(native.METADATA): found[name].tolist() for name in plan["metadata"]
        }
        metadata.setdefault("episode_id", self._raw.ids()[index])
        length = length or recordings.length(self._raw, index)
        said = [str(t).strip() for t in found[plan["task"]]] if spoken else [""] * length
        return columns, metadata, said

    def _fitting(self, key: str, values: np.ndarray, where: str) -> np.ndarray:
        feature = self._plan["features"][key]
        dtype = "string" if values.dtype.kind == "U" else values.dtype.name
        size = values.shape[1] if values.ndim == 2 else 1
        if values.ndim > 2 or dtype != feature["dtype"] or [size] != feature["shape"]:
            raise plugin.UserError(
                f"{where}: {key}: got {dtype} {list(values.shape[1:])}, expected "
                f"{feature['dtype']} {feature['shape']} as in the first episode; leave it out "
                "(--without), or this episode (--bad-episodes skip)"
            )
        return values.reshape(len(values)) if values.ndim == 2 and size == 1 else values

    def _film(self, index: int, name: str, key: str, length: int, where: str):
        shape = tuple(self._plan["features"][key]["shape"])
        for image in _shards.films(self._job, self._raw, index, name, length):
            if image.shape != shape:
                raise plugin.UserError(
                    f"{where}: {name}: a picture of {image.shape}, the first episode's are "
                    f"{shape}; LeRobot takes one size: give --resize"
                )
            yield image

    def _read_back(self, key: str, row: Mapping) -> list[np.ndarray]:
        place = {name: row[f"videos/{key}/{name}"] for name in _lerobot_folder.PLACES}
        path = self._root / _lerobot_files.VIDEO.format(video_key=key, **place)
        steps = _lerobot_stats.sampled(row["length"]) / self._plan["fps"]
        times = row[f"videos/{key}/from_timestamp"] + steps.astype(np.float32).astype(np.float64)
        return _video.frames(path, times.tolist(), f"{path}: read back")

    def _measure(self, number: int, pictures: Mapping) -> None:
        row, arrays = self.rows[number], {}
        for key, found in pictures.items():
            if not self._plan["codec"]:
                found = [found[i] for i in _lerobot_stats.sampled(row["length"])]
            arrays[key] = np.stack([images.decode(p) if isinstance(p, bytes) else p for p in found])
        found = self._statistics.add(self._columns[number], arrays)
        for name, statistics in found.items():
            row |= {f"stats/{name}/{kind}": value for kind, value in statistics.items()}


def finish(
    job: Job,
    plan: Mapping,
    parts: Sequence[Part],
    made: Sequence[Mapping],
    folder: pathlib.Path,
    built: pathlib.Path,
) -> None:
    """Joins the parts in `built`: numbers of episodes, files and tasks, and what is said of all."""
    built.mkdir()
    whole = _lerobot_join.Whole(plan, built)
    splits: dict[str, list[int]] = {}
    for part, told in zip(parts, made, strict=True):
        span = splits.setdefault(_rlds_shards.recorded_name(part.split), [len(whole.rows)] * 2)
        if told["episodes"]:
            whole.add(_root(folder, part))
        span[1] = len(whole.rows)
    whole.close({name: f"{first}:{last}" for name, (first, last) in splits.items()})
