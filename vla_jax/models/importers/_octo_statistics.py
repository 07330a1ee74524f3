"""Octo's dataset_statistics.json as a Normalizer.

Octo normalizes by mean and deviation ("normal": our zscore) or by quantiles ("bounds": our q01_q99,
clipped to [-1, 1]), per dataset after pretraining, and flat, without a dataset's name, after
fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vla_jax import plugin
from vla_jax.codecs import normalizer as normalizer_lib

PROPRIO = "proprio"  # Octo's only reading of the body, and what its group is called here
FLAT = "octo"  # the dataset key of statistics that name no dataset


def normalizer(
    where: str, found: Mapping[str, Any], config: Mapping[str, Any], mode: str | None = None
) -> normalizer_lib.Normalizer:
    """The Normalizer of dataset_statistics.json; `mode` None takes the one that config.json says.

    UserError, beginning with `where`, for a dataset without action statistics, and for statistics
    that `mode` needs and the file lacks.
    """
    datasets = {FLAT: found} if "action" in found else found
    if mode is None:
        kind = _find(config, "action_proprio_normalization_type") or "normal"
        mode = "q01_q99" if "bounds" in str(kind).lower() else "zscore"
    entries: dict[str, dict[str, normalizer_lib.Entry]] = {}
    for key, fields in datasets.items():
        entries[key] = {}
        for name, ours in (("action", "action"), (PROPRIO, f"proprio/{PROPRIO}")):
            if name in fields:
                entries[key][ours] = _entry(f"{where}, {key}.{name}", fields[name], mode)
    if not all("action" in fields for fields in entries.values()):
        raise plugin.UserError(
            f"{where} has no action statistics for "
            f"{[key for key, fields in entries.items() if 'action' not in fields]}"
        )
    return normalizer_lib.Normalizer(entries)


def _entry(where: str, found: Mapping[str, Any], mode: str) -> normalizer_lib.Entry:
    """One field's entry; old checkpoints lack quantiles, and bounds stand in for them."""
    wanted = ("mean", "std") if mode == "zscore" else ("p01", "p99")
    for name in wanted:
        if name not in found:
            raise plugin.UserError(plugin.unknown(where, name, found))
    mean = np.asarray(found.get("mean", found[wanted[0]]), np.float64)
    spread = np.asarray(found.get("std", np.ones_like(mean)), np.float64)
    low = found.get("p01", found.get("min", mean - 3 * spread))
    high = found.get("p99", found.get("max", mean + 3 * spread))
    numbers = dict(
        mean=mean, std=spread, min=found.get("min", low), max=found.get("max", high),
        q01=low, q99=high,
    )  # fmt: skip
    lists = {name: tuple(np.asarray(v, np.float64).tolist()) for name, v in numbers.items()}
    count = int(found.get("num_transitions", 0))
    active = tuple(np.asarray(found.get("mask", np.ones_like(mean)), bool).tolist())
    statistics = normalizer_lib.Statistics(count, **lists)
    return normalizer_lib.Entry(mode, statistics, active, clip=1.0 if mode == "q01_q99" else None)


def _find(tree: Any, key: str) -> Any:
    """The first value under `key`, however deep."""
    if not isinstance(tree, Mapping):
        return None
    if key in tree:
        return tree[key]
    return next((v for v in (_find(branch, key) for branch in tree.values()) if v), None)
