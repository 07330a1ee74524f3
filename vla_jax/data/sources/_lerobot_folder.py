"""What a LeRobot data set says about itself: v2.0, v2.1 and v3.0 (no LeRobot, no torch).

    v3.0  meta/info.json  meta/tasks.parquet  meta/episodes/chunk-000/file-000.parquet
          data/chunk-000/file-000.parquet                   several episodes in a file
          videos/<key>/chunk-000/file-000.mp4               from_timestamp: where an episode begins
    v2.x  meta/info.json  meta/tasks.jsonl    meta/episodes.jsonl
          data/chunk-000/episode_000000.parquet             one episode in a file
          videos/chunk-000/<key>/episode_000000.mp4

Source: lerobot's src/lerobot/datasets/{utils,dataset_metadata,dataset_reader}.py and
scripts/convert_dataset_v21_to_v30.py.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_jax import plugin
from vla_jax.data.sources import _files

SIDECAR = "meta/vla_jax.parquet"  # what our own writer adds: one row per episode
VERSIONS = ("v2.0", "v2.1", "v3.0")
PLACES = ("chunk_index", "file_index")
# What meta/ says of an episode for LeRobot's own use; all else are facts about it.
OWN = ("data/", "videos/", "stats/", "meta/", "dataset_from_index", "dataset_to_index", "length")
FACTS = (str, bool, int, float, type(None))


@dataclasses.dataclass(frozen=True)
class Feature:
    """One feature: `kind` is tensor, text, image, video, depth or language."""

    kind: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Folder:
    """A LeRobot data set on disk.

    Attributes:
      path, name, version: the folder, its last part, codebase_version.
      fps: frames per second.
      features: name -> Feature, as info.json has them, and `task`.
      tasks: task_index -> text.
      lengths: int64 [E], steps of each episode; episode e has the episode_index e.
      splits: name -> int64 [episodes].
      facts: name -> E values: one number, text or None each, that the list of episodes in meta/
        says beside what is above; `task` is the first of an episode's tasks.
      begins: video key -> float64 [E], where the episode begins in its video file (s).
      metadata: what our own writer adds, a row per episode; None = somebody else wrote it.
      standardizer: the spec of the one that reads such data.
    """

    path: str
    name: str
    version: str
    fps: float
    features: Mapping[str, Feature]
    tasks: Mapping[int, str]
    lengths: np.ndarray
    splits: Mapping[str, np.ndarray]
    facts: Mapping[str, Sequence]
    begins: Mapping[str, np.ndarray]
    metadata: pa.Table | None
    standardizer: Mapping | None
    _templates: Mapping[str, str]
    _chunks_size: int
    _places: Mapping[str, np.ndarray]  # "" (the data) or a video key -> int64 [E, 2]

    def data_file(self, episode: int) -> str:
        """The parquet file that holds the episode's steps."""
        return self._file("data_path", "", episode)

    def video_file(self, key: str, episode: int) -> str:
        """The file that holds the episode's frames of a video feature."""
        return self._file("video_path", key, episode)

    def times(self, key: str, episode: int, timestamps: np.ndarray) -> np.ndarray:
        """float64 [T], where the steps' frames lie in the episode's video file (s)."""
        return self.begins[key][episode] + timestamps.astype(np.float64)

    def split(self, name: str) -> np.ndarray:
        """int64, the episodes of a split; UserError for an unknown one."""
        if name not in self.splits:
            raise plugin.UserError(plugin.unknown(f"{self.path}: split", name, self.splits))
        return self.splits[name]

    def _file(self, template: str, key: str, episode: int) -> str:
        if self.version == "v3.0":
            values = dict(zip(PLACES, self._places[key][episode].tolist(), strict=True))
        else:
            chunk = episode // self._chunks_size
            values = {"episode_chunk": chunk, "episode_index": episode}
        try:
            name = self._templates[template].format(video_key=key, **values)
        except (KeyError, IndexError, ValueError) as error:
            raise plugin.UserError(
                f"{self.path}/meta/info.json: {template} {self._templates[template]!r} cannot be "
                f"filled with {sorted(values)} and video_key ({error!r}); restore what LeRobot "
                f"{self.version} writes"
            ) from error
        return _files.join(self.path, name)


def is_at(path: _files.Path) -> bool:
    """Whether a LeRobot data set lies at `path`; reads names only."""
    return _files.is_file(_files.join(_files.normal(path), "meta", "info.json"))


def open_folder(path: _files.Path) -> Folder:
    """The data set at `path`, the folder that holds meta/info.json.

    Raises UserError where there is none, and for metadata that are of an unknown version, broken,
    incomplete or at odds with one another, naming the file.
    """
    path = _files.normal(path)
    if not is_at(path):
        raise plugin.UserError(
            f"{path}: holds no meta/info.json, expected a LeRobot data set; "
            "`vla data inspect` says what a folder is"
        )
    file = _files.join(path, "meta", "info.json")
    info = _json(file)
    version = info.get("codebase_version")
    if version not in VERSIONS:
        raise plugin.UserError(
            f"{file}: codebase_version {version!r}, expected one of {', '.join(VERSIONS)}; convert "
            "older data with LeRobot's own converters"
        )
    features = _features(file, info)
    videos = [key for key, f in features.items() if f.kind in ("video", "depth")]
    read = _episodes_v3 if version == "v3.0" else _episodes_v2
    lengths, places, begins, rows = read(path, info, videos)
    templates = {
        k: _of(file, info, k, str) for k in ("data_path", *(["video_path"] * bool(videos)))
    }
    metadata, standardizer = _sidecar(_files.join(path, SIDECAR), len(lengths))
    return Folder(
        path=path,
        name=_files.name(path if _files.is_url(path) else os.path.realpath(path)),
        version=version,
        fps=float(_of(file, info, "fps", int, float)),
        features=features,
        tasks=_tasks(path, version),
        lengths=lengths,
        splits=_splits(file, info, len(lengths)),
        facts=_facts(rows),
        begins=begins,
        metadata=metadata,
        standardizer=standardizer,
        _templates=templates,
        _chunks_size=int(info.get("chunks_size", 1000)),
        _places=places,
    )


def _features(file: str, info: Mapping) -> dict[str, Feature]:
    features = {}
    for name, entry in _of(file, info, "features", dict).items():
        try:
            dtype, shape = entry["dtype"], tuple(int(n) for n in entry.get("shape") or ())
            facts = entry.get("info") or entry.get("video_info") or {}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise plugin.UserError(
                f"{file}: features.{name} is {entry!r} ({error!r}), expected dtype and shape"
            ) from error
        if dtype in ("image", "video"):
            depth = facts.get("video.is_depth_map") or facts.get("is_depth_map")
            kind = "depth" if depth else dtype
        elif dtype in ("string", "language"):
            kind = "text" if dtype == "string" else "language"
        else:
            kind = "tensor"
            try:
                np.dtype(dtype)
            except TypeError as error:
                raise plugin.UserError(
                    f"{file}: features.{name}: dtype {dtype!r} is none that numpy knows, nor "
                    "image, video, string or language"
                ) from error
        features[name] = Feature(kind, shape, dtype)
    features["task"] = Feature("text", (), "string")
    return features


def _episodes_v3(path: str, info: Mapping, videos: list[str]):
    columns = ["episode_index", "length", *(f"data/{place}" for place in PLACES)]
    for key in videos:
        columns += [f"videos/{key}/{name}" for name in (*PLACES, "from_timestamp")]
    where = _files.join(path, "meta", "episodes")
    chunks = [_files.join(where, chunk) for chunk in _files.names(where)]
    files = [_files.join(c, n) for c in chunks for n in _files.names(c) if n.endswith(".parquet")]
    if not files:
        raise plugin.UserError(f"{where}: no parquet file; copy the data set again")
    tables = [_listed(file, columns) for file in files]
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise plugin.UserError(f"{where}: its files do not fit together ({error})") from error
    for name in columns:
        if table[name].null_count:
            row = table[name].is_null().index(True).as_py()
            raise plugin.UserError(f"{where}: {name} of row {row} is empty; copy it again")
    found = {name: table[name].to_numpy() for name in columns}
    order = _order(where, info, found["episode_index"])

    def place(prefix: str) -> np.ndarray:
        return np.stack([found[f"{prefix}/{name}"][order] for name in PLACES], axis=1)

    places = {"": place("data"), **{key: place(f"videos/{key}") for key in videos}}
    begins = {key: found[f"videos/{key}/from_timestamp"][order] for key in videos}
    rows = table.select(["episode_index", *(n for n in table.column_names if n not in columns)])
    return found["length"][order], places, begins, rows.take(order).to_pylist()


def _listed(file: str, columns: list[str]) -> pa.Table:
    """Those columns, and the ones that may be facts (the statistics are most of such a file)."""
    with open_parquet(file) as opened:
        present = opened.schema_arrow.names
    more = [name for name in present if not name.startswith(OWN) and name not in columns]
    return read_parquet(file, columns + more)


def _episodes_v2(path: str, info: Mapping, videos: list[str]):
    file = _files.join(path, "meta", "episodes.jsonl")
    rows = _lines(file, ("episode_index", "length"), whole=True)
    order = _order(file, info, np.asarray([row["episode_index"] for row in rows], np.int64))
    lengths = np.asarray([row["length"] for row in rows], np.int64)[order]
    begins = {key: np.zeros(len(lengths)) for key in videos}
    return lengths, {}, begins, [rows[i] for i in order]


def _facts(rows: list[dict]) -> dict[str, list]:
    """See Folder.facts; `rows` say what meta/ does, episode by episode."""
    told = [dict(row) for row in rows]
    for row in told:
        tasks = row.pop("tasks", None)
        if isinstance(tasks, list) and tasks:
            row["task"] = tasks[0]
    names = dict.fromkeys(n for row in told for n in row if not n.startswith(OWN))
    found = {name: [row.get(name) for row in told] for name in names if name != "episode_index"}
    return {n: values for n, values in found.items() if all(isinstance(v, FACTS) for v in values)}


def _order(where, info: Mapping, numbers: np.ndarray) -> np.ndarray:
    """The order in which episodes 0 … E-1 are listed; UserError for holes and doubles."""
    order, count = np.argsort(numbers, kind="stable"), info.get("total_episodes", len(numbers))
    if len(numbers) != count or not np.array_equal(numbers[order], np.arange(count)):
        distinct, counts = np.unique(numbers, return_counts=True)
        lacking = sorted(set(range(count)) - set(distinct.tolist()))[:5]
        beyond = distinct[(distinct >= count) | (distinct < 0)][:5].tolist()
        raise plugin.UserError(
            f"{where}: {len(numbers)} episodes, expected 0 to {count - 1} as total_episodes of "
            f"meta/info.json says; episode_index lacks {lacking}, twice "
            f"{distinct[counts > 1][:5].tolist()}, beyond {beyond}; copy it again"
        )
    return order


def _tasks(path: str, version: str) -> dict[int, str]:
    if version != "v3.0":
        rows = _lines(_files.join(path, "meta", "tasks.jsonl"), ("task_index", "task"))
        return {int(row["task_index"]): str(row["task"]) for row in rows}
    file = _files.join(path, "meta", "tasks.parquet")
    table = read_parquet(file)
    # The text is the index of a pandas frame, with or without a name.
    texts = [n for n in table.column_names if n != "task_index"]
    named = [n for n in ("task", "__index_level_0__") if n in texts] or texts
    if "task_index" not in table.column_names or not named:
        raise plugin.UserError(
            f"{file}: columns {table.column_names}, expected task_index and the text"
        )
    try:
        texts = table[named[0]].to_pylist()
    except UnicodeDecodeError as error:
        raise plugin.UserError(
            f"{file}: {named[0]}: bytes that are no UTF-8 ({error}); copy it again"
        ) from error
    return dict(zip(table["task_index"].to_pylist(), texts, strict=True))


def _sidecar(file: str, count: int) -> tuple[pa.Table | None, dict | None]:
    if not _files.is_file(file):
        return None, None
    table = read_parquet(file)
    if len(table) != count:
        raise plugin.UserError(
            f"{file}: {len(table)} rows, but there are {count} episodes; if another program has "
            "added some, remove this file and name a standardizer"
        )
    return table, json.loads((table.schema.metadata or {}).get(b"standardizer", b"null"))


def _splits(file: str, info: Mapping, count: int) -> dict[str, np.ndarray]:
    splits = {}
    for name, span in (info.get("splits") or {"train": f"0:{count}"}).items():
        try:
            first, last = (int(part) for part in span.split(":"))
        except (AttributeError, ValueError) as error:
            raise plugin.UserError(
                f"{file}: splits.{name} is {span!r}, expected 'FIRST:LAST' of episodes"
            ) from error
        if not 0 <= first <= last <= count:
            raise plugin.UserError(
                f"{file}: splits.{name} is {span!r}, but there are {count} episodes"
            )
        splits[name] = np.arange(first, last)
    return splits


def read_parquet(
    file: str,
    columns: list[str] | None = None,
    groups: range | None = None,
    kept: Sequence[str] = (),
) -> pa.Table:
    """Columns of a parquet file's row groups (None: all); UserError for what is not there.

    Those `kept` for later must be there, too.
    """
    try:
        with open_parquet(file) as opened:
            present = opened.schema_arrow.names
            absent = [name for name in (*(columns or ()), *kept) if name not in present]
            if absent:
                raise plugin.UserError(plugin.unknown(f"{file}: column", absent[0], present))
            everything = groups is None or not opened.metadata.num_row_groups
            table = opened.read(columns) if everything else opened.read_row_groups(groups, columns)
    except (pa.ArrowException, OSError) as error:
        for name in columns if columns and columns[1:] else ():
            read_parquet(file, [name], groups)  # raises for the first that is broken
        field = f"{file}: {columns[0]}" if columns else file
        raise broken(field, error) from error
    return table.select(columns) if columns is not None else table  # a.b also reads a.b.c


def open_parquet(file: str) -> pq.ParquetFile:
    """Opened by its footer; UserError for a missing file or one that is not whole."""
    try:
        if _files.is_url(file):
            return pq.ParquetFile(_files.File(file).open(), page_checksum_verification=True)
        return pq.ParquetFile(file, memory_map=True, page_checksum_verification=True)
    except FileNotFoundError as error:
        raise plugin.UserError(f"{file}: no such file; copy the data set again") from error
    except (pa.ArrowException, OSError) as error:
        raise broken(file, error) from error


def broken(file: str, error: Exception) -> plugin.UserError:
    """What to say of a parquet file that cannot be read."""
    return plugin.UserError(f"{file}: not a whole parquet file ({error}); copy it again")


def _json(file: str) -> dict:
    try:
        found = json.loads(_files.read(file))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise plugin.UserError(f"{file}: not JSON ({error}); copy the data set again") from error
    if not isinstance(found, dict):
        raise plugin.UserError(f"{file}: a {type(found).__name__}, expected a dict")
    return found


def _lines(file: str, keys: tuple[str, ...], whole: bool = False) -> list[dict]:
    """A JSON lines file's rows: those keys, which all must have, or the `whole` of them."""
    rows = []
    for number, line in enumerate(_files.read(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            rows.append({**(row if whole else {}), **{key: row[key] for key in keys}})
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise plugin.UserError(
                f"{file}: line {number} is no JSON with {keys} ({error!r}); copy it again"
            ) from error
    return rows


def _of(file: str, info: Mapping, key: str, *kinds: type):
    if not isinstance(info.get(key), kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise plugin.UserError(f"{file}: {key} is {info.get(key)!r}, expected {names}")
    return info[key]
