"""An Octo checkpoint's folder in this project's words (Octo, Ghosh et al. 2024; octo_model.py).

    FOLDER/config.json              ModuleSpecs               → config (`_octo_config.py`)
    FOLDER/example_batch.msgpack    cameras, sizes, lengths   → config
    FOLDER/dataset_statistics.json  per dataset, or flat      → Normalizer
    FOLDER/STEP/default/checkpoint  parameters, one msgpack   → parameters (`_octo_params.py`)
           or the names of arrays in tensorstore folders (saved from several devices)

`read` opens the folder, `translate` makes the native parts; nothing is written here.
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

FILES = ("config.json", "example_batch.msgpack", "dataset_statistics.json")
PLACEHOLDER = "PLACEHOLDER://"  # of Orbax, before the name of an array that stands elsewhere
TEXT_ENCODER = "octo_transformer/task_tokenizers_language/hf_model/"


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
            there = sorted(path.name for path in root.glob("*")) if root.is_dir() else "no folder"
            raise plugin.UserError(
                f"octo checkpoint {folder}: {name} is missing (there: {there}); expected the "
                f"folder that Octo's save_pretrained writes: {', '.join(FILES)}, a folder per step"
            )
    steps = sorted(int(path.name) for path in root.iterdir() if path.name.isdigit())
    if not steps or step not in (None, *steps):
        raise plugin.UserError(
            f"octo checkpoint {folder}: no step {'at all' if step is None else step}; "
            f"there are {steps}"
        )
    step = steps[-1] if step is None else step
    return Octo(
        folder=root,
        step=step,
        config=_json(root / "config.json"),
        example=_msgpack(root / "example_batch.msgpack"),
        statistics=_json(root / "dataset_statistics.json"),
        parameters=_parameters(root / str(step) / "default"),
    )


def _parameters(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """{path: array} of the msgpack file, which holds the arrays or names those beside it."""
    if not (folder / "checkpoint").is_file():
        raise plugin.UserError(f"octo checkpoint: {folder / 'checkpoint'} is missing")
    found = {}
    for path, value in trees.items(_msgpack(folder / "checkpoint")):
        if isinstance(value, str) and value.startswith(PLACEHOLDER):
            value = _tensorstore(folder, value.removeprefix(PLACEHOLDER))
        if isinstance(value, np.ndarray):
            found[path] = value
    if not any(path.startswith("octo_transformer/") for path in found):
        raise plugin.UserError(
            f"octo checkpoint {folder}: holds {sorted(found)[:3] or 'no arrays'}, expected Octo's "
            "parameters (octo_transformer/…, heads_…); this is another kind of checkpoint"
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
        raise plugin.UserError(f"octo checkpoint: {path} is no JSON ({error})") from error


def _msgpack(path: pathlib.Path) -> Any:
    try:
        return flax.serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack raises several, for foreign and for truncated files
        raise plugin.UserError(
            f"octo checkpoint: {path} ({path.stat().st_size} bytes) is no msgpack file of flax, or "
            f"is cut off: {type(error).__name__}: {error}"
        ) from error
