"""An Octo checkpoint's folder, read and checked but not yet understood (octo_model.py).

FOLDER/config.json, example_batch.msgpack, dataset_statistics.json
FOLDER/STEP/default/checkpoint      one msgpack with all arrays, or with the names of arrays in
                                    tensorstore folders beside it (saved from several devices)
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.serialization
import numpy as np

from vla_jax import plugin, trees

CONFIG, EXAMPLE, STATISTICS = FILES = (
    "config.json",
    "example_batch.msgpack",
    "dataset_statistics.json",
)
PLACEHOLDER = "PLACEHOLDER://"  # of Orbax, before the name of an array that stands elsewhere
# What the translation cannot do without.
MODEL = (
    "model/observation_tokenizers",
    "model/heads",
    "model/token_embedding_size",
    "model/max_horizon",
    "model/transformer_kwargs/num_layers",
    "model/transformer_kwargs/num_attention_heads",
    "model/transformer_kwargs/mlp_dim",
)
ENTRIES = ("observation", "observation/timestep_pad_mask", "task", "action", "action_pad_mask")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Octo:
    """What lies in an Octo checkpoint's folder, parsed and not yet understood."""

    folder: pathlib.Path
    step: int
    config: Mapping[str, Any]
    example: Mapping[str, Any]  # nested numpy, batch of 1
    statistics: Mapping[str, Any]
    parameters: Mapping[str, np.ndarray]  # by path, joined by /


def read(folder: str, step: int | None = None) -> Octo:
    """The folder's contents at `step`, by default the newest.

    UserError for a folder that is no Octo checkpoint, a missing step, and truncated files.
    """
    root = pathlib.Path(folder)
    for name in FILES:
        if not (root / name).is_file():
            raise plugin.UserError(_foreign(root, name))
    steps = sorted(int(path.name) for path in root.iterdir() if path.name.isdigit())
    if not steps or step not in (None, *steps):
        there = f"there are {', '.join(map(str, steps))}" if steps else "no folder is a number"
        raise plugin.UserError(f"octo checkpoint {folder}: no step {step or 'at all'}; {there}")
    step = steps[-1] if step is None else step
    config, example = _json(root / CONFIG), _msgpack(root / EXAMPLE)
    _require(str(root / CONFIG), config, MODEL)
    _require(str(root / EXAMPLE), example, ENTRIES)
    return Octo(
        folder=root,
        step=step,
        config=config,
        example=example,
        statistics=_json(root / STATISTICS),
        parameters=_parameters(root / str(step) / "default"),
    )


def _foreign(root: pathlib.Path, missing: str) -> str:
    """The message for something that is no Octo checkpoint."""
    said = f"octo checkpoint {root}: "
    if not root.is_dir():
        return said + f"{'is a file' if root.exists() else 'no such folder'}; expected a folder"
    if (root / "checkpoints").is_dir() or (root / "meta").is_dir():
        return said + ("this is a checkpoint of vla_jax already; evaluate or fine-tune it as it is")
    there = sorted(path.name for path in root.iterdir())
    listed = ", ".join(there[:8]) + (", …" if len(there) > 8 else "") if there else "nothing"
    return said + (
        f"{missing} is missing (there: {listed}); expected the folder that Octo's save_pretrained "
        f"writes: {', '.join(FILES)}, a folder per step"
    )


def _require(where: str, tree: Any, paths: tuple[str, ...]) -> None:
    """UserError unless the nested `tree` has all `paths`."""
    for path in paths:
        node = tree
        for name in path.split("/"):
            if not isinstance(node, Mapping) or name not in node:
                known = ", ".join(map(str, node)) if isinstance(node, Mapping) else "no table"
                raise plugin.UserError(
                    f"octo checkpoint: {where}: {path} is missing (there: {known}); the file is "
                    "not of Octo's save_pretrained, or of another version than 1.0 and 1.5"
                )
            node = node[name]


def _parameters(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """{path: array} of the msgpack file, which holds the arrays or names those beside it."""
    if not (folder / "checkpoint").is_file():
        raise plugin.UserError(
            f"octo checkpoint: {folder / 'checkpoint'} is missing; copy the whole folder again"
        )
    tree, found = _msgpack(folder / "checkpoint"), {}
    for path, value in trees.items(tree) if isinstance(tree, Mapping) else ():
        if isinstance(value, str) and value.startswith(PLACEHOLDER):
            value = _tensorstore(folder, value.removeprefix(PLACEHOLDER))
        if isinstance(value, np.ndarray):
            found[path] = value
    if not any(path.startswith("octo_transformer/") for path in found):
        raise plugin.UserError(
            f"octo checkpoint {folder}: holds {', '.join(sorted(found)[:3]) or 'no arrays'}, "
            "expected Octo's parameters (octo_transformer/…, heads_…); this is another kind of "
            "checkpoint"
        )
    broken = [path for path, value in found.items() if not np.isfinite(value).all()]
    if broken:
        raise plugin.UserError(
            f"octo checkpoint {folder}: {broken[0]} is not finite, nor are {len(broken) - 1} other "
            "parameters; the file is damaged or the training broke down, take another step"
        )
    return found


def _tensorstore(folder: pathlib.Path, name: str) -> np.ndarray:
    """An array that stands beside the msgpack file, in a zarr folder or in an OCDBT database."""
    import tensorstore  # only for checkpoints that were saved from several devices

    store: dict[str, Any] = {"driver": "file", "path": str((folder / name).absolute())}
    if not (folder / name).is_dir():
        bases = sorted(path.parent for path in folder.rglob("manifest.ocdbt"))
        if not bases:
            raise plugin.UserError(f"octo checkpoint {folder}: array {name} is missing")
        store = {"driver": "ocdbt", "base": f"file://{bases[0].absolute()}/", "path": name}
    try:
        array = tensorstore.open({"driver": "zarr", "kvstore": store}).result()
        return np.asarray(array.read().result())
    except ValueError as error:
        raise plugin.UserError(f"octo checkpoint {folder}: array {name}: {error}") from error


def _json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise plugin.UserError(
            f"octo checkpoint: {path} is no JSON, or is cut off ({error}); copy it again"
        ) from error


def _msgpack(path: pathlib.Path) -> Any:
    try:
        return flax.serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack raises several, for foreign and for truncated files
        raise plugin.UserError(
            f"octo checkpoint: {path} ({path.stat().st_size} bytes) is no msgpack file of flax, or "
            f"is cut off ({type(error).__name__}: {error}); copy it again"
        ) from error
