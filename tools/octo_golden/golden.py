"""A golden folder: Octo's checkpoint, its inputs, what it said of them, and what was compared.

FOLDER/ckpt/              as Octo saves it
FOLDER/inputs.npz         a batch
FOLDER/{outputs,grads,…}.npz
FOLDER/arrays.json        {file: [[name, shape, dtype], …]}

Sizes, window, horizon, names of views and heads, numbers of steps come from the folder's config
and from the arrays; what the generator's README fixes (random keys, the optimizer) is a constant
where it is used.
"""

from __future__ import annotations

import json
import pathlib
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from vla_jax import plugin, trees, types
from vla_jax.models.importers import octo

ATOL, SAMPLES, GRADIENTS = 1e-5, 2e-4, 1e-4  # of one pass, of chained ones, of a gradient's norm
OUTPUTS, INPUTS = "outputs.npz", "inputs.npz"
APART = sys.float_info.max  # max_abs where there is no difference to tell; JSON has no infinity
GIVEN = "an input: given to our network as it was to Octo's"


class Golden:
    """The folder's contents, and a ledger: every array is compared, given or excused."""

    def __init__(self, folder: pathlib.Path):
        listing = folder / "arrays.json"
        if not listing.is_file() or not (folder / "ckpt").is_dir():
            raise plugin.UserError(
                f"--golden {folder}: expected a folder with ckpt/ and arrays.json in it"
            )
        self.folder, self.listed = folder, _json(listing)
        if not isinstance(self.listed, Mapping):
            raise plugin.UserError(f"{listing}: expected {{file: [[name, shape, dtype], …]}}")
        self.checkpoint = octo.read(str(folder / "ckpt"))
        self.verdicts: dict[str, dict[str, Any]] = {}
        self.excused: dict[str, str] = {}
        self.broken: dict[str, str] = {}  # comparison or file -> what went wrong
        self.files = {file.name: self._arrays(file) for file in sorted(folder.glob("*.npz"))}
        self.inputs = self.files.get(INPUTS, {})
        self.outputs = self.files.get(OUTPUTS, {})
        self.given = {f"{INPUTS}:{name}": GIVEN for name in self.inputs}
        self._natives: dict[str, octo.Native] = {}
        self._compiled: dict[tuple[int, str], Callable] = {}

    def _arrays(self, file: pathlib.Path) -> dict[str, np.ndarray]:
        try:
            with file.open("rb") as opened, np.load(opened) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            self.broken[file.name] = f"cannot be read: {error}"
            return {}

    def facts(self, name: str) -> Any:
        """What a JSON file of the folder holds, {} where there is none."""
        return _json(self.folder / name) if (self.folder / name).is_file() else {}

    # ---------------------------------------------------------------------------------- the ledger

    def compare(
        self, name: str, got: Any, atol: float = ATOL, file: str = OUTPUTS, relative: bool = False
    ) -> None:
        """Judges an array, if the folder has it: the largest difference against a tolerance.

        That is atol · max(1, max|reference|), with `relative` atol · max|reference|, and none at
        all for masks and integers.
        """
        if name not in self.files.get(file, {}):
            return
        known, reference, got = f"{file}:{name}", self.files[file][name], np.asarray(got)
        if got.shape != reference.shape:
            self.fail(known, f"its shape is {reference.shape}, ours {got.shape}")
            return
        exact = reference.dtype.kind in "biu" or got.dtype == bool
        reference, got = reference.astype(np.float64), got.astype(np.float64)
        largest = float(np.max(np.abs(reference), initial=0.0))
        tolerance = atol * (largest if relative else max(1.0, largest))
        apart = float(np.max(np.abs(got - reference), initial=0.0))
        self.settle(known, apart, 0.0 if exact else tolerance)

    def settle(self, known: str, apart: float, tolerance: float) -> None:
        """Writes a verdict; a number that is not finite fails."""
        if not np.isfinite([apart, tolerance]).all():
            self.fail(known, f"not finite: difference {apart}, tolerance {tolerance}")
            return
        self.verdicts[known] = {
            "max_abs": float(apart),
            "tolerance": float(tolerance),
            "pass": bool(apart <= tolerance),
        }

    def fail(self, known: str, why: str) -> None:
        """Writes a verdict of something that cannot be compared, and should be."""
        self.verdicts[known] = {"max_abs": APART, "tolerance": 0.0, "pass": False, "why": why}

    def take(self, name: str, file: str = OUTPUTS, why: str = GIVEN) -> np.ndarray:
        """An array that serves as an input of a comparison; KeyError where it is missing."""
        array = self.files[file][name]
        self.given[f"{file}:{name}"] = why
        return array

    def excuse(self, name: str, why: str, file: str = OUTPUTS) -> None:
        """Leaves out an array, if the folder has it, and says why."""
        if name in self.files.get(file, {}):
            self.excused[f"{file}:{name}"] = why

    def attempt(self, comparison: Callable, *given: Any) -> None:
        """Makes a comparison; one that cannot be made fails, and others go on."""
        try:
            comparison(self, *given)
        except Exception as error:  # noqa: BLE001  a damaged folder may break anything
            where = f"{comparison.__module__}.{comparison.__name__}".removeprefix("tools.")
            name = " ".join([where, *(value for value in given if isinstance(value, str))])
            self.broken[name] = f"{type(error).__name__}: {error}"

    def names(self, prefix: str, file: str = OUTPUTS) -> list[str]:
        """The arrays of a file that begin with `prefix`."""
        return [name for name in self.files.get(file, {}) if name.startswith(prefix)]

    def report(self) -> dict[str, Any]:
        """{"file:array": verdict, …, "not_compared": {"file:array": why}}.

        What nobody knows, what arrays.json lists otherwise and what broke are failed verdicts.
        """
        for known, why in self._unaccounted().items():
            self.fail(known, why)
        for name, why in self.broken.items():
            self.fail(name, why)
        rest = {**self.given, **self.excused}
        return {
            **self.verdicts,
            "not_compared": {k: why for k, why in rest.items() if k not in self.verdicts},
        }

    def _unaccounted(self) -> dict[str, str]:
        """Arrays that were neither compared, given nor excused; listed ones that are missing."""
        found = {
            f"{file}:{name}": "no comparison knows it, or one that does broke"
            for file, arrays in self.files.items()
            for name in arrays
        }
        for known in (*self.verdicts, *self.given, *self.excused):
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

    def native(self, partial: bool = False, window: int | None = None, **changes) -> octo.Native:
        """The imported checkpoint; `changes` are laid over its config["model"]."""
        key = json.dumps([partial, window, changes], sort_keys=True, default=str)
        if key not in self._natives:
            made = octo.translate(self.checkpoint, partial=partial, window=window, **changes)
            if made.report.missing:
                raise plugin.UserError(f"the checkpoint lacks {made.report.missing}")
            self._natives[key] = made
        return self._natives[key]

    def ask(self, native: octo.Native, verb: str, *given: Any) -> Any:
        """What a verb of a network says ("encode", "sample"), as numpy; compiled once."""
        key = id(native), verb
        if key not in self._compiled:
            method = getattr(native.network, verb)
            self._compiled[key] = jax.jit(lambda v, b, *rest: method(v, b, "robot", *rest))
        return jax.device_get(self._compiled[key](native.variables, *given))

    @property
    def acting(self) -> str:
        """The head that Octo's sample_actions and train step ask: "action", or the only one."""
        heads = list(self.checkpoint.config["model"]["heads"])
        if "action" not in heads and len(heads) > 1:
            raise plugin.UserError(f"no head is called action: {heads}")
        return "action" if "action" in heads else heads[0]

    def batch(
        self,
        drop: tuple[str, ...] = (),
        steps: slice = slice(None),
        rows: slice = slice(None),
        task: Mapping[str, np.ndarray] | None = None,
    ) -> types.Batch:
        """The stored inputs as a Batch, without the paths in `drop`."""
        flat = {path: leaf[rows] for path, leaf in self.inputs.items() if path not in drop}
        if task is not None:
            flat = {path: leaf for path, leaf in flat.items() if not path.startswith("task/")}
            flat |= {f"task/{path}": leaf for path, leaf in task.items()}
        for path in flat:
            if path.startswith(("observation/", "action")):
                flat[path] = flat[path][:, steps]
        return octo.batch(trees.unflatten(flat))


def ours(name: str) -> str:
    """Octo's name of a token group in ours."""
    name = name.replace("obs_task_", "repeat_")
    return name if name.startswith("readout_") else name.removeprefix("obs_").removeprefix("task_")


def _json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise plugin.UserError(f"{path} is no JSON ({error})") from error
