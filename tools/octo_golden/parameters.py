"""Our numbers under Octo's names: the importer's table, read backwards; and the JSON summaries."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tools.octo_golden.golden import Golden
from vla_jax.models.importers import _params

MANIFEST = "params_manifest.json"


def theirs(ours: Mapping[str, Any], like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{Octo's path: array} of {our path: array}, for the paths and shapes of `like`.

    Every number of `like` is followed through the importer's table to its place in ours, so that
    stacked, squeezed and turned parameters come back. What ours lacks is left out.
    """
    ends = np.cumsum([0, *(array.size for array in like.values())])
    numbered = {
        path: np.arange(ends[i], ends[i + 1]).reshape(array.shape)
        for i, (path, array) in enumerate(like.items())
    }
    placed, _ = _params.place(numbered)
    flat = np.full(ends[-1], np.nan)
    for path, numbers in placed.items():
        if path in ours and np.shape(ours[path]) == numbers.shape:
            flat[numbers] = ours[path]
    made = {path: flat[numbers] for path, numbers in numbered.items()}
    return {path: array for path, array in made.items() if not np.isnan(array).any()}


def compare(golden: Golden) -> None:
    """params_manifest.json: the parameters as they were read."""
    golden.attempt(_manifest)


def _manifest(golden: Golden) -> None:
    """Shape, dtype, bytes and moments of every parameter of the checkpoint."""
    read = golden.checkpoint.parameters
    for path, facts in golden.facts(MANIFEST).items():
        known = f"{MANIFEST}:{path}"
        if path not in read:
            golden.fail(known, "the checkpoint lacks it")
            continue
        array = np.ascontiguousarray(read[path])
        little = array.astype(array.dtype.newbyteorder("<"))
        same = (
            list(array.shape) == facts["shape"]
            and str(array.dtype) == facts["dtype"]
            and hashlib.sha256(little.tobytes()).hexdigest() == facts["sha256"]
        )
        golden.settle(known, 0.0, 0.0) if same else golden.fail(known, "other bytes or shape")
