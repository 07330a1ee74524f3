"""A checkpoint's folder of Octo or CrossFormer, read and checked but not yet understood.

FOLDER/config.json, example_batch.msgpack, dataset_statistics.json
FOLDER/STEP/default/checkpoint      one msgpack with all arrays, or with the names of arrays in
                                    tensorstore folders beside it (saved from several devices)

Octo: octo_model.py; CrossFormer: crossformer_model.py.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.serialization
import numpy as np

from vla_jax import plugin, storage, trees
from vla_jax.models.importers import _project

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
class Foreign:
    """What lies in a checkpoint's folder, parsed and not yet understood."""

    project: _project.Project
    folder: pathlib.Path
    step: int
    config: Mapping[str, Any]
    example: Mapping[str, Any]  # nested numpy, batch of 1
    statistics: Mapping[str, Any]
    parameters: Mapping[str, np.ndarray]  # by canonical path (_project.py), joined by /

    @property
    def where(self) -> str:
        """How messages begin."""
        return f"{self.project.name} checkpoint {self.folder}"


def read(project: _project.Project, folder: str, step: int | None = None) -> Foreign:
    """The folder's contents at `step`, by default the newest.

    UserError for a folder that is no checkpoint of the project, a missing step, truncated files.
    """
    root, said = storage.local("vla import", folder), f"{project.name} checkpoint"
    for name in FILES:
        if not (root / name).is_file():
            raise plugin.UserError(_unknown(project, root, name))
    steps = sorted(int(path.name) for path in root.iterdir() if path.name.isdigit())
    if not steps or step not in (None, *steps):
        there = f"there are {', '.join(map(str, steps))}" if steps else "no folder is a number"
        raise plugin.UserError(f"{said} {folder}: no step {step or 'at all'}; {there}")
    step = steps[-1] if step is None else step
    config, example = _json(said, root / CONFIG), _msgpack(said, root / EXAMPLE)
    _require(project, str(root / CONFIG), config, MODEL)
    _require(project, str(root / EXAMPLE), example, ENTRIES)
    return Foreign(
        project=project,
        folder=root,
        step=step,
        config=config,
        example=example,
        statistics=_json(said, root / STATISTICS),
        parameters=_parameters(project, root / str(step) / "default"),
    )


def _unknown(project: _project.Project, root: pathlib.Path, missing: str) -> str:
    """The message for something that is no checkpoint of the project."""
    said = f"{project.name} checkpoint {root}: "
    if not root.is_dir():
        return said + f"{'is a file' if root.exists() else 'no such folder'}; expected a folder"
    if (root / "checkpoints").is_dir() or (root / "meta").is_dir():
        return said + ("this is a checkpoint of vla_jax already; evaluate or fine-tune it as it is")
    there = sorted(path.name for path in root.iterdir())
    listed = ", ".join(there[:8]) + (", …" if len(there) > 8 else "") if there else "nothing"
    return said + (
        f"{missing} is missing (there: {listed}); expected the folder that {project.title}'s "
        f"save_pretrained writes: {', '.join(FILES)}, a folder per step"
    )


def _require(project: _project.Project, where: str, tree: Any, paths: tuple[str, ...]) -> None:
    """UserError unless the nested `tree` has all `paths`."""
    for path in paths:
        node = tree
        for name in path.split("/"):
            if not isinstance(node, Mapping) or name not in node:
                known = ", ".join(map(str, node)) if isinstance(node, Mapping) else "no table"
                raise plugin.UserError(
                    f"{project.name} checkpoint: {where}: {path} is missing (there: {known}); the "
                    f"file is not of {project.title}'s save_pretrained, or of another version than "
                    f"{project.versions}"
                )
            node = node[name]


def _parameters(project: _project.Project, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """{path: array} of the msgpack file, which holds the arrays or names those beside it."""
    said = f"{project.name} checkpoint"
    if not (folder / "checkpoint").is_file():
        raise plugin.UserError(
            f"{said}: {folder / 'checkpoint'} is missing; copy the whole folder again"
        )
    tree, found = _msgpack(said, folder / "checkpoint"), {}
    for path, value in trees.items(tree) if isinstance(tree, Mapping) else ():
        if isinstance(value, str) and value.startswith(PLACEHOLDER):
            value = _tensorstore(said, folder, value.removeprefix(PLACEHOLDER))
        if isinstance(value, np.ndarray):
            found[path] = value
    root = f"{project.root}/"
    if not any(path.startswith(root) for path in found):
        others = (p for p in _project.PROJECTS if any(n.startswith(f"{p.root}/") for n in found))
        other = next((f"{p.title}'s: vla import {p.name}" for p in others), "another kind of it")
        raise plugin.UserError(
            f"{said} {folder}: holds {', '.join(sorted(found)[:3]) or 'no arrays'}, expected "
            f"{project.title}'s parameters ({root}…, heads_…); this checkpoint is {other}"
        )
    broken = [path for path, value in found.items() if not np.isfinite(value).all()]
    if broken:
        raise plugin.UserError(
            f"{said} {folder}: {broken[0]} is not finite, nor are {len(broken) - 1} other "
            "parameters; the file is damaged or the training broke down, take another step"
        )
    return {
        f"{_project.CANONICAL}/{path[len(root) :]}" if path.startswith(root) else path: value
        for path, value in found.items()
    }


def _tensorstore(said: str, folder: pathlib.Path, name: str) -> np.ndarray:
    """An array that stands beside the msgpack file, in a zarr folder or in an OCDBT database."""
    import tensorstore  # only for checkpoints that were saved from several devices

    store: dict[str, Any] = {"driver": "file", "path": str((folder / name).absolute())}
    if not (folder / name).is_dir():
        bases = sorted(path.parent for path in folder.rglob("manifest.ocdbt"))
        if not bases:
            raise plugin.UserError(f"{said} {folder}: array {name} is missing")
        store = {"driver": "ocdbt", "base": f"file://{bases[0].absolute()}/", "path": name}
    try:
        array = tensorstore.open({"driver": "zarr", "kvstore": store}).result()
        return np.asarray(array.read().result())
    except ValueError as error:
        raise plugin.UserError(f"{said} {folder}: array {name}: {error}") from error


def _json(said: str, path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise plugin.UserError(
            f"{said}: {path} is no JSON, or is cut off ({error}); copy it again"
        ) from error


def _msgpack(said: str, path: pathlib.Path) -> Any:
    try:
        return flax.serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack raises several, for foreign and for truncated files
        raise plugin.UserError(
            f"{said}: {path} ({path.stat().st_size} bytes) is no msgpack file of flax, or "
            f"is cut off ({type(error).__name__}: {error}); copy it again"
        ) from error
