"""Statistics against the data: of other data, stretched by outliers, or clipping too much."""

from __future__ import annotations

import numpy as np

from vla_jax.data import doctor

# (means apart in the normalizer's standard deviations, ratio of standard deviations)
OTHER, OTHER_BADLY = (1.5, 2.0), (3.0, 4.0)
OUTLIER = 20.0  # farthest value, in half-widths of the middle 98%
CLIPPED, CLIPPED_BADLY = 0.05, 0.2  # share of values changed by `clip`; q01_q99 alone: 0.02


def check(case: doctor.Case):
    """(findings, numbers) of every normalized field."""
    findings, numbers = [], {}
    for field, values in _fields(case).items():
        entry, own = (n.entry(case.key, field) for n in (case.normalizer, case.own))
        active = np.asarray(entry.active, bool)
        mine, theirs = _arrays(own.statistics), _arrays(entry.statistics)
        names = case.dims if field == "action" else [f"{field}.{i}" for i in range(len(active))]
        clipped = case.normalizer.clip_fraction(case.key, field, values)
        spread = (mine["q99"] - mine["q01"]) / 2
        centre = (mine["q99"] + mine["q01"]) / 2
        far = np.maximum(mine["max"] - centre, centre - mine["min"])
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = np.where(spread > 0, far / spread, np.where(far > 0, np.inf, 1.0))
        numbers[field] = {
            "mode": entry.mode,
            "clip": entry.clip,
            "dims": names,
            "clipped": clipped,
            "outlier_reach": reach,
            "data": mine,
            **({"normalizer": theirs} if case.given else {}),
        }
        if case.given:
            findings += _foreign(field, names, mine, theirs, active)
        findings += _outliers(field, names, mine, reach, active, entry.mode)
        findings += _clipping(field, names, clipped, entry)
    return findings, numbers


def _fields(case: doctor.Case) -> dict[str, np.ndarray]:
    groups = {f"proprio/{g.name}": case.table.proprio[g.name] for g in case.readings}
    return {"action": case.table.action, **groups}


def _arrays(statistics) -> dict[str, np.ndarray]:
    names = ("mean", "std", "min", "max", "q01", "q99")
    return {name: np.asarray(getattr(statistics, name), np.float64) for name in names}


def _foreign(field, names, mine, theirs, active):
    """Statistics from elsewhere whose middle or width is not that of these data."""
    noise = 1e-6 * np.maximum(np.abs(theirs["min"]), np.abs(theirs["max"])) + 1e-12
    std = np.maximum(theirs["std"], noise)
    shift = np.abs(mine["mean"] - theirs["mean"]) / std
    ratio = np.maximum(mine["std"], noise) / std
    stretch = np.maximum(ratio, 1 / ratio)
    wrong = active & ((shift > OTHER[0]) | (stretch > OTHER[1]))
    bad = active & ((shift > OTHER_BADLY[0]) | (stretch > OTHER_BADLY[1]))
    if not wrong.any():
        return
    dim = int(np.argmax(np.where(wrong, np.maximum(shift, stretch), 0.0)))
    yield doctor.Finding(
        severity="error" if bad.any() else "warning",
        message=(
            f"{field}: the statistics are not those of these data in {int(wrong.sum())} of "
            f"{len(names)} dims, most in {names[dim]}: mean {mine['mean'][dim]:.4g}, std "
            f"{mine['std'][dim]:.4g} here, mean {theirs['mean'][dim]:.4g}, std "
            f"{theirs['std'][dim]:.4g} in the normalizer"
        ),
        remedy="Recompute the statistics on these data, or name the dataset_key they are of.",
    )


def _outliers(field, names, mine, reach, active, mode):
    rare = active & np.isinf(reach)
    far = active & (reach > OUTLIER) & ~rare
    if rare.any():
        dim = int(np.flatnonzero(rare)[0])
        yield doctor.Finding(
            severity="warning",
            message=(
                f"{field} {names[dim]}: 98% of the values are {mine['q01'][dim]:.4g}, the rest "
                f"reach {mine['min'][dim]:.4g} to {mine['max'][dim]:.4g} ({int(rare.sum())} dims "
                "are so); quantiles cannot scale it"
            ),
            remedy="Use the mode zscore for this field, or leave the idle steps out.",
        )
    if far.any():
        dim = int(np.argmax(np.where(far, reach, 0)))
        effect = (
            f"98% of the data lie within ±{1 / reach[dim]:.2g} of [-1, 1]"
            if mode == "minmax"
            else f"normalized, it is {reach[dim]:.3g} times as large as the middle 98%"
        )
        yield doctor.Finding(
            severity="warning",
            message=(
                f"{field} {names[dim]}: outliers: values from {mine['min'][dim]:.4g} to "
                f"{mine['max'][dim]:.4g}, 98% between {mine['q01'][dim]:.4g} and "
                f"{mine['q99'][dim]:.4g} ({int(far.sum())} dims are so): {effect}"
            ),
            remedy="Look at these episodes, filter them out, or set the mode q01_q99 with clip=1.",
        )


def _clipping(field, names, clipped, entry):
    worst = int(np.argmax(clipped))
    if clipped[worst] > CLIPPED:
        bad = clipped[worst] > CLIPPED_BADLY
        yield doctor.Finding(
            severity="error" if bad else "warning",
            message=(
                f"{field} {names[worst]}: clip={entry.clip} changes "
                f"{doctor.percent(clipped[worst])} of the values (mode {entry.mode})"
            ),
            remedy="Raise normalizer.clip, set it to None, or use the mode minmax.",
        )
