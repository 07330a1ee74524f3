"""Statistics of the training episodes, exact, and the Normalizer made of them.

A chunk of C actions starts at every step, so step i of an episode stands in min(i + 1, C) of them:
rows are weighted by that count instead of being copied. Quantiles are those of the repeated rows
(numpy's linear interpolation), so that they do not depend on any sketch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from vla_jax import plugin
from vla_jax.codecs import normalizer as normalizer_lib


def moments(values: np.ndarray, counts: np.ndarray) -> normalizer_lib.Statistics:
    """Statistics of `values` [N, D] where row i counts `counts[i]` (int [N]) times.

    Raises ValueError for no rows.
    """
    values, counts = np.asarray(values, np.float64), np.asarray(counts, np.int64)
    total = int(counts.sum())
    if total == 0:
        raise ValueError("statistics of no rows")
    weights = counts[:, None] / total
    mean = (values * weights).sum(axis=0)
    std = np.sqrt((np.square(values - mean[None]) * weights).sum(axis=0))
    q01, q99 = quantiles(values, counts, (0.01, 0.99))
    seen = values[counts > 0]
    columns = (mean, std, seen.min(axis=0), seen.max(axis=0), q01, q99)
    return normalizer_lib.Statistics(total, *(tuple(map(float, c)) for c in columns))


def quantiles(values: np.ndarray, counts: np.ndarray, which: tuple[float, ...]) -> np.ndarray:
    """float64 [len(which), D]: ``np.quantile(np.repeat(values, counts, 0), which, axis=0)``."""
    result = np.empty((len(which), values.shape[1]))
    for dim in range(values.shape[1]):
        order = np.argsort(values[:, dim], kind="stable")
        column, ends = values[order, dim], np.cumsum(counts[order])
        for row, q in enumerate(which):
            place = q * (ends[-1] - 1)
            low = int(np.floor(place))
            pair = column[np.searchsorted(ends, [low, min(low + 1, ends[-1] - 1)], side="right")]
            result[row, dim] = pair[0] + (pair[1] - pair[0]) * (place - low)
    return result


def compute(
    sources: Iterable,
    *,
    mode: str | Mapping[str, str] = "zscore",
    clip: float | None = None,
) -> normalizer_lib.Normalizer:
    """The Normalizer of all dataset keys that `sources` have, from training episodes only.

    Args:
      sources: of any kind; those without a `statistics_columns` method (pictures) are passed over.
        Two members over the same data count once; two data sets under one key are pooled.
      mode: one of codecs.normalizer.MODES, or field -> mode with "*" as the default, e.g.
        ``{"action": "q01_q99", "*": "zscore"}``.
      clip: bound of the normalized values; the share of values it changes is stored per dim.

    Raises:
      UserError: unknown mode; two data sets under one key that differ in their fields.
    """
    tables: dict[str, dict[str, dict]] = {}
    for source in sources:
        if hasattr(source, "statistics_columns"):
            data = tables.setdefault(source.dataset_key, {})
            if source.data_fingerprint not in data:
                data[source.data_fingerprint] = source.statistics_columns()
    entries = {}
    for key in sorted(tables):
        parts = list(tables[key].values())
        if len({tuple(sorted(part)) for part in parts}) > 1:
            raise plugin.UserError(
                f"statistics: dataset key {key!r}: its data sets have the fields "
                f"{[sorted(part) for part in parts]}, expected the same; give "
                "each its own dataset_key"
            )
        entries[key] = {
            field: _entry(key, field, [part[field] for part in parts], _mode(mode, field), clip)
            for field in sorted(parts[0])
        }
    return normalizer_lib.Normalizer(entries)


def report(normalizer: normalizer_lib.Normalizer) -> str:
    """The statistics as text, one line per dim, with the share of clipped values."""
    lines = []
    for key, fields in normalizer.entries.items():
        for field, entry in fields.items():
            s = entry.statistics
            lines.append(f"{key} {field}: {entry.mode}, clip {entry.clip}, {s.count} rows")
            for dim in range(len(s.mean)):
                numbers = " ".join(
                    f"{name} {getattr(s, name)[dim]:.4g}"
                    for name in ("mean", "std", "min", "max", "q01", "q99")
                )
                kept = "" if entry.active[dim] else ", not normalized"
                lines.append(f"  {dim}: {numbers}, clipped {entry.clipped[dim]:.2%}{kept}")
    return "\n".join(lines)


def _mode(mode, field: str) -> str:
    chosen = mode if isinstance(mode, str) else mode.get(field, mode.get("*", "zscore"))
    if chosen not in normalizer_lib.MODES:
        raise plugin.UserError(
            plugin.unknown(f"normalizer mode of {field}", chosen, normalizer_lib.MODES)
        )
    return chosen


def _entry(key: str, field: str, parts: list[dict], mode: str, clip: float | None):
    sizes = {part["values"].shape[1] for part in parts}
    if len(sizes) > 1:
        raise plugin.UserError(
            f"statistics: dataset key {key!r}, {field}: sizes {sorted(sizes)}; give each data set "
            "its own dataset_key"
        )
    values = np.concatenate([part["values"] for part in parts])
    counts = np.concatenate([part["counts"] for part in parts])
    entry = normalizer_lib.Entry(
        mode=mode,
        statistics=moments(values, counts),
        active=tuple(map(bool, parts[0]["active"])),
        clip=clip,
        clipped=(0.0,) * values.shape[1],
        unit_scale=tuple(map(float, parts[0]["unit_scale"])),
    )
    if clip is None:
        return entry
    shift, scale = entry.shift_and_scale()
    outside = np.abs((values.astype(np.float64) - shift) / scale) > clip
    shares = np.where(entry.active, (outside * counts[:, None]).sum(axis=0) / counts.sum(), 0.0)
    return dataclasses.replace(entry, clipped=tuple(map(float, shares)))
