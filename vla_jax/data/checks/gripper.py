"""Whether gripper actions mean what the action space says: their range, their start, their sign.

Nothing proves a convention but the robot; what speaks against it is a suspicion.
"""

from __future__ import annotations

import numpy as np

from vla_jax import plugin
from vla_jax.codecs import actions
from vla_jax.data import doctor

OUTSIDE = 0.01  # share of values off the convention's range
SLACK = 0.05  # of the range
MOVES = 0.05  # share of steps in the rarer of open and closed, below which it does not move
BEGINS_OPEN = 0.3  # share of episodes that begin open; nearly all do
CORRELATED = 0.6  # with a reading
LAGS = (0, 1, 2, 4)
PLAIN = "1=open,0=closed"


def check(case: doctor.Case):
    """(findings, numbers) of every gripper group."""
    findings, numbers = [], {}
    for group, part in case.groups:
        if group.quantity != "gripper":
            continue
        try:
            opening = actions.gripper(case.table.action[:, part], group.gripper, PLAIN)
        except plugin.UserError as error:
            numbers[group.name] = {"not_judged": str(error)}
            continue
        found, numbers[group.name] = _group(case, group, opening[:, 0])
        findings += found
    return findings, numbers


def _group(case: doctor.Case, group, opening: np.ndarray):
    """Findings of one group whose values are `opening` [N], 1 = open, by its convention."""
    raw = case.table.action[:, case.source.action_space.slices()[group.name]]
    outside = float(np.mean((opening < -SLACK) | (opening > 1 + SLACK)))
    open_ = opening > 0.5
    rarer = float(min(open_.mean(), 1 - open_.mean()))
    begins = float(np.mean(open_[case.table.start[:-1]]))
    reading, correlation = _reading(case, opening)
    numbers = {
        "convention": group.gripper,
        "range": [float(raw.min()), float(raw.max())],
        "outside": outside,
        "open": float(open_.mean()),
        "begins_open": begins,
        "reading": reading,
        "correlation": correlation,
    }
    findings = []
    if outside > OUTSIDE:
        findings.append(
            doctor.Finding(
                severity="error",
                message=(
                    f"{group.name}: values from {raw.min():.4g} to {raw.max():.4g}, "
                    f"{doctor.percent(outside)} of them off the range of {group.gripper!r}"
                ),
                remedy="Correct the convention of the group, or scale the column to it.",
            )
        )
    elif rarer > MOVES and begins < BEGINS_OPEN:
        against = (
            f"; the reading {reading} falls when the actions say open (correlation "
            f"{correlation:.2f})"
            if reading and correlation < 0
            else ""
        )
        findings.append(
            doctor.Finding(
                severity="warning",
                message=(
                    f"{group.name}: by the convention {group.gripper!r} only "
                    f"{doctor.percent(begins)} of the episodes begin with an open gripper{against}"
                ),
                remedy="Look at an episode; if open and closed are swapped, invert the column.",
            )
        )
    elif rarer > MOVES and reading and correlation < 0:
        findings.append(
            doctor.Finding(
                severity="note",
                message=(
                    f"{group.name}: the reading {reading} falls when the actions say open "
                    f"(correlation {correlation:.2f})"
                ),
                remedy="Right if that reading grows as the gripper closes, else the sign is wrong.",
            )
        )
    return findings, numbers


def _reading(case: doctor.Case, opening: np.ndarray) -> tuple[str | None, float]:
    """The number of a reading that goes with the gripper's actions most, and its correlation."""
    best, strongest = None, 0.0
    follows = np.zeros(len(opening), bool)
    follows[case.follows] = True
    for group in case.readings:
        for dim in range(group.size):
            values = case.table.proprio[group.name][:, dim].astype(np.float64)
            for lag in LAGS:
                rows = np.arange(len(opening) - lag)
                for step in range(lag):
                    rows = rows[follows[rows + step]]
                if len(rows) < 2:
                    continue
                a, b = opening[rows], values[rows + lag]
                if a.std() > 0 and b.std() > 1e-9:
                    found = float(np.corrcoef(a, b)[0, 1])
                    if abs(found) > max(CORRELATED, abs(strongest)):
                        best, strongest = f"{group.name}.{dim}", found
    return best, strongest
