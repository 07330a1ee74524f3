"""A dataset_statistics.json of Octo or CrossFormer as a Normalizer.

Both normalize by mean and deviation ("normal": our zscore) or by quantiles ("bounds": our q01_q99,
clipped to [-1, 1]), per dataset after pretraining, and flat, without a dataset's name, after
fine-tuning. Octo has one reading of the body, `proprio`; CrossFormer's are called `proprio_NAME`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vla_jax import plugin
from vla_jax.codecs import normalizer as normalizer_lib
from vla_jax.models.importers import _project

PROPRIO = "proprio"  # a reading of the body that has no other name
NUMBERS = ("mean", "std", "min", "max", "p01", "p99")


def readings(names: Iterable[str]) -> dict[str, str]:
    """Proprio group -> the project's name of it, of those among `names`."""
    found = [name for name in names if re.fullmatch(rf"{PROPRIO}(_\w+)?", name)]
    return {name.removeprefix(f"{PROPRIO}_"): name for name in found}


def normalizer(
    where: str,
    project: _project.Project,
    found: Mapping[str, Any],
    config: Mapping[str, Any],
    size: int,
    mode: str | None = None,
) -> normalizer_lib.Normalizer:
    """The Normalizer of dataset_statistics.json; `mode` None takes the one that config.json says.

    `size` is A, the numbers of an action; a dataset may have fewer (they are padded), not all may.
    Readings in config.json's skip_norm_keys stay as they are.

    UserError, beginning with `where`, for a dataset without action statistics, statistics that
    `mode` needs and the file lacks, and numbers that cannot be.
    """
    if not isinstance(found, Mapping) or not found:
        raise plugin.UserError(f"{where}: {_FORM}")
    datasets = {project.name: found} if "action" in found else found
    skipped = _find(config, "skip_norm_keys") or ()
    if mode is None:
        kind = _find(config, "action_proprio_normalization_type") or "normal"
        mode = "q01_q99" if "bounds" in str(kind).lower() else "zscore"
    entries: dict[str, dict[str, normalizer_lib.Entry]] = {}
    for key, fields in datasets.items():
        if not isinstance(fields, Mapping) or not isinstance(fields.get("action"), Mapping):
            raise plugin.UserError(f"{where}: {key} has no action statistics; {_FORM}")
        count = fields.get("num_transitions", 0)
        named = {"action": "action"}
        named |= {name: f"proprio/{group}" for group, name in readings(fields).items()}
        entries[key] = {
            ours: _entry(f"{where}: {key}.{name}", fields[name], mode, count, name in skipped)
            for name, ours in named.items()
        }
    sizes = {key: len(fields["action"].active) for key, fields in entries.items()}
    if max(sizes.values()) != size:
        key = max(sizes, key=sizes.__getitem__)
        raise plugin.UserError(
            f"{where}: {key}.action has {sizes[key]} numbers, the checkpoint's actions have {size} "
            "(example_batch.msgpack); take the file that lies beside this checkpoint"
        )
    return normalizer_lib.Normalizer(entries)


_FORM = (
    "expected {DATASET: {action: {mean, std, …}}}, or {action: …} after fine-tuning, as "
    "save_pretrained writes it"
)


def _entry(
    where: str, found: Mapping[str, Any], mode: str, count: Any, skipped: bool = False
) -> normalizer_lib.Entry:
    """One field's entry; old checkpoints lack quantiles, and bounds stand in for them."""
    wanted = ("mean", "std") if mode == "zscore" else ("p01", "p99")
    for name in wanted:
        if name not in found:
            raise plugin.UserError(
                f"{where}: {name} is missing (there: {', '.join(found)}); the checkpoint "
                f"normalizes by {' and '.join(wanted)}"
            )
    given = {name: _numbers(f"{where}.{name}", found[name]) for name in NUMBERS if name in found}
    sizes = {name: len(numbers) for name, numbers in given.items()}
    sizes |= {"mask": np.size(found["mask"])} if "mask" in found else {}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise plugin.UserError(f"{where}: expected as many numbers of each, got {said}")
    mean = given.get("mean", given[wanted[0]])
    spread = given.get("std", np.ones_like(mean))
    low = given.get("p01", given.get("min", mean - 3 * spread))
    high = given.get("p99", given.get("max", mean + 3 * spread))
    active = np.asarray(found.get("mask", np.ones(mean.shape)), bool)
    for name, wrong in (("std", spread < 0), ("p01 and p99", low > high)):
        if wrong.any():
            dim = int(np.argmax(wrong))
            said = f"{spread[dim]} < 0" if name == "std" else f"{low[dim]} > {high[dim]}"
            raise plugin.UserError(f"{where}, {name}: number {dim} has {said}; it cannot be")
    numbers = dict(
        mean=mean, std=spread, min=given.get("min", low), max=given.get("max", high),
        q01=low, q99=high,
    )  # fmt: skip
    lists = {name: tuple(values.tolist()) for name, values in numbers.items()}
    statistics = normalizer_lib.Statistics(int(np.asarray(count)), **lists)
    clip = 1.0 if mode == "q01_q99" and not skipped else None
    mode = "identity" if skipped else mode
    return normalizer_lib.Entry(mode, statistics, tuple(active.tolist()), clip=clip)


def _numbers(where: str, found: Any) -> np.ndarray:
    """float64 [D]; UserError for anything else, and for what is not finite."""
    try:
        values = np.asarray(found, np.float64)
    except (TypeError, ValueError):
        values = np.zeros(())
    if values.ndim != 1 or not values.size:
        raise plugin.UserError(f"{where}: got {str(found)[:60]}, expected a list of numbers")
    if not np.isfinite(values).all():
        dim = int(np.argmin(np.isfinite(values)))
        raise plugin.UserError(f"{where}: number {dim} is {values[dim]}, expected finite numbers")
    return values


def _find(tree: Any, key: str) -> Any:
    """The first value under `key`, however deep."""
    if not isinstance(tree, Mapping):
        return None
    if key in tree:
        return tree[key]
    return next((v for v in (_find(branch, key) for branch in tree.values()) if v), None)
