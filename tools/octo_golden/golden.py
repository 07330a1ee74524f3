"""A golden folder: Octo's checkpoint, its inputs, what it said of them, and what was compared.

FOLDER/ckpt/              as Octo saves it
FOLDER/inputs.npz         a batch
FOLDER/{outputs,grads,…}.npz
FOLDER/arrays.json        {file: [[name, shape, dtype], …]}
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vla_jax import plugin, trees, types
from vla_jax.models.importers import octo

ATOL, SAMPLES = 1e-5, 2e-4  # of one pass, and of twenty chained ones


class Golden:
    """The folder's contents, and a ledger: every array is compared, used or excused."""

    def __init__(self, folder: pathlib.Path):
        listing = folder / "arrays.json"
        if not listing.is_file() or not (folder / "ckpt").is_dir():
            raise plugin.UserError(
                f"--golden {folder}: expected a folder with ckpt/ and arrays.json in it"
            )
        self.folder, self.listed = folder, json.loads(listing.read_text())
        if not isinstance(self.listed, Mapping):
            raise plugin.UserError(f"{listing}: expected {{file: [[name, shape, dtype], …]}}")
        self.checkpoint = octo.read(str(folder / "ckpt"))
        self.files: dict[str, dict[str, np.ndarray]] = {}
        for file in sorted(folder.glob("*.npz")):
            with np.load(file) as arrays:
                self.files[file.name] = dict(arrays)
        self.inputs = self.files.get("inputs.npz", {})
        self.outputs = self.files.get("outputs.npz", {})
        self.verdicts: dict[str, dict[str, Any]] = {}
        self.used: set[str] = {f"inputs.npz:{name}" for name in self.inputs}
        self.excused: dict[str, str] = {}
        self._natives: dict[str, octo.Native] = {}

    # ---------------------------------------------------------------------------------- the ledger

    def compare(self, name: str, got: Any, atol: float = ATOL, file: str = "outputs.npz") -> None:
        """Judges one array: the largest difference against atol · max(1, max|reference|)."""
        reference = self.files[file][name]
        got = np.asarray(got)
        if got.shape != reference.shape:
            raise plugin.UserError(
                f"{file}:{name} has shape {reference.shape}, ours is {got.shape}"
            )
        if reference.dtype == bool or got.dtype == bool:
            apart, tolerance = float(np.sum(got.astype(bool) != reference.astype(bool))), 0.0
        else:
            reference, got = reference.astype(np.float64), got.astype(np.float64)
            apart = float(np.max(np.abs(got - reference), initial=0.0))
            tolerance = atol * max(1.0, float(np.max(np.abs(reference), initial=0.0)))
        self.verdicts[f"{file}:{name}"] = {
            "max_abs": apart,
            "tolerance": tolerance,
            "pass": bool(apart <= tolerance),
        }

    def take(self, name: str, file: str = "outputs.npz") -> np.ndarray:
        """An array that serves as an input of a comparison."""
        self.used.add(f"{file}:{name}")
        return self.files[file][name]

    def excuse(self, prefix: str, why: str, file: str = "outputs.npz") -> None:
        """Leaves out the arrays of a file that begin with `prefix`, and says why."""
        for name in self.files.get(file, {}):
            known = f"{file}:{name}"
            if name.startswith(prefix) and known not in self.verdicts and known not in self.used:
                self.excused[known] = why

    def names(self, prefix: str, file: str = "outputs.npz") -> list[str]:
        """The arrays of a file that begin with `prefix`."""
        return [name for name in self.files.get(file, {}) if name.startswith(prefix)]

    def unaccounted(self) -> dict[str, str]:
        """Arrays that were neither compared, used nor excused; listed ones that are missing."""
        found = {
            f"{file}:{name}": "no comparison knows it"
            for file, arrays in self.files.items()
            for name in arrays
        }
        for known in (*self.verdicts, *self.used, *self.excused):
            found.pop(known, None)
        for file, rows in self.listed.items():
            for name, shape, dtype in rows:
                array = self.files.get(file, {}).get(name)
                if array is None:
                    found[f"{file}:{name}"] = "listed in arrays.json, but missing"
                elif list(array.shape) != list(shape) or str(array.dtype) != dtype:
                    found[f"{file}:{name}"] = (
                        f"listed as {dtype} {shape}, but is {array.dtype} {list(array.shape)}"
                    )
        return found

    # ----------------------------------------------------------------------------------- the model

    def native(self, partial: bool = False, **changes: Any) -> octo.Native:
        """The imported checkpoint; `changes` are laid over its config["model"]."""
        key = json.dumps([partial, changes], sort_keys=True, default=str)
        if key not in self._natives:
            self._natives[key] = octo.translate(self.checkpoint, partial=partial, **changes)
        return self._natives[key]

    def batch(
        self, drop: str | None = None, steps: slice = slice(None), task: Mapping | None = None
    ) -> types.Batch:
        """The stored inputs as a Batch, without the paths that begin with `drop`."""
        flat = dict(self.inputs)
        if task is not None:
            flat = {path: leaf for path, leaf in flat.items() if not path.startswith("task/")}
            flat |= {f"task/{path}": leaf for path, leaf in task.items()}
        for path in list(flat):
            if drop is not None and path.startswith(drop):
                del flat[path]
            elif path.startswith(("observation/", "action")):
                flat[path] = flat[path][:, steps]
        return octo.batch(trees.unflatten(flat))


def encoded(native: octo.Native, batch: types.Batch) -> dict[str, types.Output]:
    """{group: Output} of the stream."""
    run = jax.jit(native.network.encode, static_argnums=2)
    return jax.device_get(run(native.variables, batch, "robot"))


def ours(name: str) -> str:
    """Octo's name of a token group in ours."""
    name = name.replace("obs_task_", "repeat_")
    return name if name.startswith("readout_") else name.removeprefix("obs_").removeprefix("task_")
