"""Parameters as safetensors, for other people's programs: names are our parameters' paths.

A folder with ``model.safetensors``, or, above a size, with shards and an index as Hugging Face lays
them out (huggingface_hub/serialization/_base.py). The metadata of every file holds the config, the
train_step, the normalizer, the action spaces and the text tokenizer (base64), each as JSON.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

from vla_jax import plugin
from vla_jax.train import checkpoint
from vla_jax.train import meta as metas

NAME = "model"
KEPT = ("config", "step", "n", "normalizer", "action_spaces", "text_tokenizer")


def write(
    folder: pathlib.PurePath,
    out: pathlib.Path,
    *,
    averaged: bool = True,
    shard_bytes: int = 5 * 10**9,
) -> dict[str, Any]:
    """{"files", "arrays", "bytes"} of what was written to the new folder `out`.

    The moving average where there is one, unless `averaged` is False. UserError, and nothing left,
    when `out` holds something or cannot be written, and for a damaged checkpoint.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise plugin.UserError(f"--out {out}: is there already; give a new folder")
    raw = metas.read_json(folder)
    metadata = {"format": "vla_jax", **{name: json.dumps(raw[name]) for name in KEPT}}
    item_of, sizes = _plan(folder, averaged)
    shards = _shards(sizes, shard_bytes)
    names = [_file(number, len(shards)) for number in range(len(shards))]
    partial = out.with_name(f"{out.name}.part")
    try:
        partial.mkdir(parents=True)
        for name, paths in zip(names, shards):
            arrays = _read(folder, {path: item_of[path] for path in paths})
            safetensors.save_file(arrays, partial / name, metadata)
        if len(shards) > 1:
            index = {path: name for name, paths in zip(names, shards) for path in paths}
            table = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index}
            (partial / f"{NAME}.safetensors.index.json").write_text(json.dumps(table, indent=1))
        if out.exists():
            out.rmdir()
        os.rename(partial, out)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise plugin.UserError(f"--out {out}: could not be written: {error}") from error
        raise
    return dict(files=names, arrays=len(sizes), bytes=sum(sizes.values()))


def _plan(folder: pathlib.PurePath, averaged: bool) -> tuple[dict[str, str], dict[str, int]]:
    """({path: the item it is read from}, {path: bytes}) of all parameters."""
    shapes = checkpoint.shapes(folder, "params")
    has_average = averaged and "ema" in checkpoint.items(folder)
    average = checkpoint.shapes(folder, "ema") if has_average else {}
    sizes = {p: int(np.prod(s.shape)) * np.dtype(s.dtype).itemsize for p, s in shapes.items()}
    return {path: "ema" if path in average else "params" for path in shapes}, sizes


def _shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Paths in their order, in groups of at most `limit` bytes; a larger array stands alone."""
    shards: list[list[str]] = [[]]
    room = limit
    for path, size in sizes.items():
        if shards[-1] and size > room:
            shards.append([])
            room = limit
        shards[-1].append(path)
        room -= size
    return shards


def _file(number: int, shards: int) -> str:
    if shards == 1:
        return f"{NAME}.safetensors"
    return f"{NAME}-{number + 1:05d}-of-{shards:05d}.safetensors"


def _read(folder: pathlib.PurePath, item_of: dict[str, str]) -> dict[str, np.ndarray]:
    found = {}
    for item in sorted(set(item_of.values())):
        paths = [path for path, of in item_of.items() if of == item]
        for path, array in checkpoint.arrays(folder, item, paths):
            if isinstance(array, Exception):
                raise metas.damaged(folder, f"{item}: {path} cannot be read: {array}") from array
            found[path] = np.ascontiguousarray(array)  # safetensors writes the buffer as it lies
    return found
