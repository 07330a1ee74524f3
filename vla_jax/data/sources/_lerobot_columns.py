"""Columns of a LeRobot data set's parquet files, as numpy per episode, and embedded images."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vla_jax import plugin
from vla_jax.data.sources import _files, _lerobot_folder
from vla_jax.data.sources._lerobot_folder import Feature, Folder

ORDER = ("episode_index", "frame_index")
TIME = "timestamp"


def episodes(
    folder: Folder, chosen: Iterable[int], names: Iterable[str], kept: Sequence[str] = ()
) -> Iterator[tuple[int, str, int, dict]]:
    """(episode, its file, its first row in it, {name: values}) of the chosen episodes, in order.

    Values are arrays [T, …] as stored ([T] of scalars), or lists of T texts. One file's columns
    are in memory at a time. Raises UserError for a broken file, a missing column (also of those
    `kept` for later) or value, and for rows that are not the steps 0 … T-1 of an episode.
    """
    names = list(names)
    stored = {n for n in names if n != "task"} | ({"task_index"} if "task" in names else set())
    columns = sorted(stored | set(ORDER))
    for file, numbers in itertools.groupby((int(e) for e in chosen), folder.data_file):
        numbers = list(numbers)
        table, skipped = _whole(folder, file, columns, kept, numbers)
        for episode in numbers:
            where, length = f"{file}: episode {episode}", int(folder.lengths[episode])
            first = _first(table, where, episode, length)
            rows = slice(first, first + length)
            values = {name: table[name][rows] for name in names if name != "task"}
            if "task" in names:
                values["task"] = _tasks(folder, table["task_index"][rows], where)
            yield episode, file, skipped + first, values


def image_bytes(
    folder: Folder, file: str, name: str, rows: Sequence[int], where: str
) -> list[bytes]:
    """The encoded images in rows of an image column; UserError, with `where`, without one."""
    starts, found = _row_groups(file), []
    for row in rows:
        group = int(np.searchsorted(starts, row, side="right")) - 1
        image = _images(file, name, group)[row - starts[group]]
        data, path = image.get("bytes"), image.get("path")
        if not data:
            beside = _files.join(folder.path, path) if path else ""
            if not beside or not _files.is_file(beside):
                raise plugin.UserError(
                    f"{where}: {file}: {name} of row {row} has no bytes, and its path {path!r} is "
                    f"no file in {folder.path}; copy the data again or remove this episode"
                )
            data = _files.read(beside)
        found.append(data)
    return found


@functools.lru_cache(maxsize=256)
def _row_groups(file: str) -> np.ndarray:
    """int64, the first row of each row group."""
    with _lerobot_folder.open_parquet(file) as opened:
        groups = opened.metadata.num_row_groups
        sizes = [opened.metadata.row_group(i).num_rows for i in range(groups)]
    return np.cumsum([0, *sizes])[: max(len(sizes), 1)]


@functools.lru_cache(maxsize=4)
def _images(file: str, name: str, group: int) -> list[dict]:
    """A row group's images; LeRobot writes one row group per episode."""
    with _lerobot_folder.open_parquet(file) as opened:
        try:
            found = opened.read_row_group(group, [f"{name}.bytes", f"{name}.path"])
        except (pa.ArrowException, OSError) as error:
            raise _lerobot_folder.broken(f"{file}: row group {group} of {name}", error) from error
        return [image or {} for image in found[name].to_pylist()]


def _whole(
    folder: Folder, file: str, columns: list[str], kept: Sequence[str], numbers: list[int]
) -> tuple[dict, int]:
    """`_file`; its error names the first episode that has the fault, if one of them has."""
    try:
        return _file(folder, file, columns, kept, numbers)
    except plugin.UserError as error:
        if len(numbers) > 1:
            for number in numbers:
                _whole(folder, file, columns, kept, [number])
            raise  # each can be read by itself: none is to blame
        raise plugin.UserError(f"{error} (episode {numbers[0]})") from error


def _file(
    folder: Folder, file: str, columns: list[str], kept: Sequence[str], numbers: list[int]
) -> tuple[dict, int]:
    """(columns of the rows from the first to the last of the episodes, the rows before these)."""
    groups = range(*_overlap(file, min(numbers), max(numbers)))
    table = _lerobot_folder.read_parquet(file, columns, groups, kept)
    before = int(_row_groups(file)[groups.start])
    rows = np.flatnonzero(np.isin(table[ORDER[0]].to_numpy(), numbers))
    if len(rows):  # the rest of a row group may be broken: that is nothing to these
        table, before = table.slice(rows[0], rows[-1] + 1 - rows[0]), before + int(rows[0])
    integer = Feature("tensor", (1,), "int64")
    found = {}
    for name in columns:
        feature = folder.features.get(name, integer)
        found[name] = _values(table[name], feature, f"{file}: {name}", before)
    return found, before


def _overlap(file: str, low: int, high: int) -> tuple[int, int]:
    """The first row group that may hold one of these episodes, and the one after the last."""
    held = []
    with _lerobot_folder.open_parquet(file) as opened:
        paths = [opened.schema.column(i).path for i in range(len(opened.schema))]
        column = paths.index(ORDER[0]) if ORDER[0] in paths else None
        for group in range(opened.metadata.num_row_groups):
            if column is None:  # reading says so
                return 0, opened.metadata.num_row_groups
            known = opened.metadata.row_group(group).column(column).statistics
            told = known is not None and known.has_min_max
            if not told or (known.min <= high and known.max >= low):
                held.append(group)
    return (held[0], held[-1] + 1) if held else (0, 1)


def _first(table: dict, where: str, episode: int, length: int) -> int:
    rows = np.flatnonzero(table["episode_index"] == episode)
    if len(rows) != length:
        raise plugin.UserError(
            f"{where}: {len(rows)} rows with this episode_index, meta/ says {length}; "
            "copy the data set again"
        )
    if length < 1:
        raise plugin.UserError(f"{where}: an episode without steps; remove it")
    steps = table["frame_index"][rows]
    if rows[-1] - rows[0] != length - 1 or not np.array_equal(steps, np.arange(length)):
        wrong = int(np.argmax(steps != np.arange(length)))
        raise plugin.UserError(
            f"{where}: frame_index {steps[wrong]} at step {wrong}, expected 0 to {length - 1} in "
            "rows that follow one another; repair or remove this episode"
        )
    return int(rows[0])


def _tasks(folder: Folder, indices: np.ndarray, where: str) -> list[str]:
    try:
        return [folder.tasks[int(i)] for i in indices]
    except KeyError as error:
        raise plugin.UserError(
            f"{where}: task_index {error}, but meta/tasks has {sorted(folder.tasks)[:10]}"
        ) from error


def _values(column: pa.ChunkedArray, feature: Feature, where: str, first: int):
    """A column from row `first` of its file on, as one array [N, …] or list of texts."""
    if not len(column):
        return np.zeros((0, *feature.shape))
    if feature.kind == "language":  # nested notes: JSON per step
        return [json.dumps(value) for value in column.to_pylist()]
    if column.null_count:
        row = first + column.is_null().index(True).as_py()
        raise plugin.UserError(f"{where}: row {row} is empty; repair or remove its episode")
    if feature.kind == "text":
        return [str(value) for value in column.to_pylist()]
    shape, count = [], len(column)
    while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        sizes = np.unique(pc.list_value_length(whole).to_numpy(zero_copy_only=False))
        if len(sizes) > 1:
            raise plugin.UserError(
                f"{where}: rows of {sizes.tolist()[:5]} numbers, expected {feature.shape} as "
                "features of meta/info.json say"
            )
        shape.append(int(sizes[0]))
        column = whole.flatten()
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if math.prod(shape) != math.prod(feature.shape) or column.null_count:
        raise plugin.UserError(
            f"{where}: rows of {tuple(shape) or 1} numbers ({column.null_count} empty), expected "
            f"{feature.shape} as features of meta/info.json say"
        )
    array = column.to_numpy(zero_copy_only=False)
    if array.dtype.kind not in "fiub" or array.dtype.kind != np.dtype(feature.dtype).kind:
        raise plugin.UserError(
            f"{where}: holds {column.type}, expected {feature.dtype} as features of meta/info.json "
            "say"
        )
    return array.reshape(count, *(feature.shape if shape else ()))
