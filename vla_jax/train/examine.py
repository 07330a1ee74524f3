"""What `vla ckpt` says of checkpoints: a run's steps, one step's content, differences, damage.

Arrays are read one at a time: a checkpoint need not fit into memory.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from vla_jax import plugin, storage
from vla_jax.train import checkpoint, checksums
from vla_jax.train import meta as metas


def steps(run: str) -> list[dict[str, Any]]:
    """One row per save in a run's folder: place, train_step, n, bytes, metric, whether complete.

    `wrong` says what an incomplete one lacks. UserError where there is none.
    """
    root = metas.place(run)
    found = []
    for place in (metas.RESUME, metas.BEST):
        for name in storage.names(root / place):
            folder, number = root / place / name, name.split(".")[0]
            if number.isdigit() and storage.is_dir(folder):
                found.append(_step(root, folder, int(number)))
    if not found:
        state = "holds no checkpoints" if storage.is_dir(root) else "does not exist"
        raise plugin.UserError(
            f"{run}: {state}; expected a run's folder with {metas.RESUME}/ or {metas.BEST}/ in it"
        )
    return sorted(found, key=lambda row: (row["folder"].split("/")[0], row["train_step"]))


def _step(root: pathlib.PurePath, folder: pathlib.PurePath, step: int) -> dict[str, Any]:
    row = dict(
        folder=folder.relative_to(root).as_posix(),
        train_step=step,
        n={},
        bytes=sum(storage.sizes(folder).values()),
        metric=None,
        checksums=storage.is_file(folder / checksums.FILE),
        wrong="",
    )
    if not folder.name.isdigit():
        row["wrong"] = "moved away" if folder.name.endswith(".damaged") else "interrupted save"
    elif not metas.is_complete(folder):
        row["wrong"] = "incomplete"
    else:
        try:
            row["n"] = metas.read_json(folder)["n"]
            metrics = folder / "metrics" / "metrics"
            if storage.is_file(metrics):
                row["metric"] = json.loads(storage.read(metrics))["value"]
        except (plugin.UserError, ValueError, KeyError) as error:
            row["wrong"] = str(error).split("; ")[0]
    row["complete"] = not row["wrong"]
    return row


def show(folder: pathlib.PurePath, item: str = "params") -> dict[str, Any]:
    """Config, provenance and every array of one item: path, shape, dtype, Euclidean norm."""
    raw = metas.read_json(folder)
    _check_item(folder, item)
    table = []
    for path, array in checkpoint.arrays(folder, item):
        if isinstance(array, Exception):
            raise metas.damaged(folder, f"{item}: {path} cannot be read: {array}") from array
        table.append((path, list(array.shape), str(array.dtype), _norm(array)))
    return dict(
        folder=str(folder),
        train_step=raw["step"],
        n=raw["n"],
        config=raw["config"],
        provenance=raw["provenance"],
        items=checkpoint.items(folder),
        item=item,
        arrays=[dict(zip(("path", "shape", "dtype", "norm"), row)) for row in table],
    )


def diff(a: pathlib.PurePath, b: pathlib.PurePath, item: str = "params") -> dict[str, Any]:
    """What differs between two steps' folders: settings of the config, arrays of one item.

    `arrays` holds {path: {"max_abs", "relative"}} of those that differ, `relative` being
    ‖a - b‖ / max(‖a‖, ‖b‖).
    """
    settings = [_flat(metas.read_json(folder)["config"]) for folder in (a, b)]
    for folder in (a, b):
        _check_item(folder, item)
    shapes = [checkpoint.shapes(folder, item) for folder in (a, b)]
    both = [path for path in shapes[0] if path in shapes[1]]
    other = {p: [_signature(s[p]) for s in shapes] for p in both}
    other = {path: pair for path, pair in other.items() if pair[0] != pair[1]}
    same = [path for path in both if shapes[0][path].shape == shapes[1][path].shape]
    found = {}
    for (path, x), (_, y) in zip(*(checkpoint.arrays(folder, item, same) for folder in (a, b))):
        for folder, array in ((a, x), (b, y)):
            if isinstance(array, Exception):
                raise metas.damaged(folder, f"{item}: {path} cannot be read: {array}") from array
        found[path] = _difference(x, y)
    differing = {path: row for path, row in found.items() if row["max_abs"] != 0}
    return dict(
        a=str(a),
        b=str(b),
        config={
            key: [settings[0].get(key), settings[1].get(key)]
            for key in sorted(set(settings[0]) | set(settings[1]))
            if settings[0].get(key) != settings[1].get(key)
        },
        only_in_a=[path for path in shapes[0] if path not in shapes[1]],
        only_in_b=[path for path in shapes[1] if path not in shapes[0]],
        shapes=other,
        equal=len(found) - len(differing),
        arrays=differing,
        max_abs=max((row["max_abs"] for row in found.values()), default=0.0),
        max_relative=max((row["relative"] for row in found.values()), default=0.0),
    )


def verify(folder: pathlib.PurePath) -> dict[str, Any]:
    """`wrong`: one line per file and per array of a step's folder that is not as it was saved.

    Every file is hashed where the save has written ``checksums.json``, every array is read. Arrays
    must be finite and of the listed shapes, and those of `ema` must be of `params`.
    """
    hashed = checksums.check(folder)
    wrong = [f"file {line}" for line in hashed or ()]
    items, read = [], 0
    try:
        raw = metas.read_json(folder)
        if str(raw["step"]) != folder.name.split(".")[0]:
            wrong.append(f"meta: says train_step {raw['step']}, the folder is called {folder.name}")
    except plugin.UserError as error:
        wrong.append(f"meta: {error}")
    try:
        items = checkpoint.items(folder)
    except plugin.UserError as error:
        wrong.append(str(error))
    stored = {}
    for item in items:
        try:
            stored[item] = checkpoint.shapes(folder, item)
        except plugin.UserError as error:
            wrong.append(f"{item}: {error}")
            continue
        for path, array in checkpoint.arrays(folder, item):
            read += 1
            problem = _problem(array, stored[item][path])
            wrong += [f"array {item} {path}: {problem}"] if problem else []
    for path, leaf in stored.get("ema", {}).items():
        of = stored.get("params", {}).get(path)
        if of is None or of.shape != leaf.shape:
            wrong.append(f"array ema {path}: params has no such array of shape {list(leaf.shape)}")
    return dict(
        folder=str(folder), items=items, arrays=read, hashed=hashed is not None, wrong=wrong
    )


def _problem(array: np.ndarray | Exception, listed: Any) -> str | None:
    """What is wrong with an array as it was read, None when nothing is."""
    if isinstance(array, Exception):
        return f"cannot be read: {' '.join(str(array).split())[:300]}"
    if _signature(array) != _signature(listed):
        return f"is {_signature(array)}, listed is {_signature(listed)}"
    if not np.issubdtype(array.dtype, np.integer) and array.dtype != bool:
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        if bad:
            return f"{bad} of {array.size} numbers are not finite"
    return None


def _check_item(folder: pathlib.PurePath, item: str) -> None:
    if item not in checkpoint.items(folder):
        raise plugin.UserError(plugin.unknown(f"{folder}: item", item, checkpoint.items(folder)))


def _signature(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(array.astype(np.float64).ravel()))


def _difference(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    gap = x.astype(np.float64) - y.astype(np.float64)
    scale = max(_norm(x), _norm(y))
    largest = float(np.max(np.abs(gap), initial=0.0))
    return dict(max_abs=largest, relative=_norm(gap) / scale if scale else 0.0)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """{dotted path: value} of nested objects."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    pairs = ((f"{path}.{key}" if path else key, below) for key, below in value.items())
    return {name: leaf for key, below in pairs for name, leaf in _flat(below, key).items()}
