"""Actions that say nothing: dead dims, a first action of zero, idle steps; values past limits."""

from __future__ import annotations

import re

import numpy as np

from vla_jax.codecs import normalizer
from vla_jax.data import doctor, recordings

FIRST = 0.5  # share of episodes whose first action is zero
IDLE = 0.25  # share of steps that ask for nothing
OUTSIDE, OUTSIDE_BADLY = 0.001, 0.05  # share of values past the limits
RAW_EPISODES = 50  # looked at for a zero first action that the standardizer leaves out


def check(case: doctor.Case):
    """(findings, numbers) of actions and readings."""
    findings, numbers = [], {}
    for part in (_dead, _first, _idle, _limits):
        found, numbers[part.__name__[1:]] = part(case)
        findings += found
    return findings, numbers


def _dead(case: doctor.Case):
    """Dims that never change, in the sense of the normalizer."""
    columns = {"action": (case.table.action, case.dims)}
    for group in case.readings:
        names = [f"{group.name}.{i}" for i in range(group.size)]
        columns[f"proprio/{group.name}"] = (case.table.proprio[group.name], names)
    findings, numbers = [], {}
    for field, (values, names) in columns.items():
        low, high = values.min(axis=0), values.max(axis=0)
        largest = np.maximum(np.abs(low), np.abs(high))
        dead = high - low <= normalizer.DEGENERATE * largest
        numbers[field] = [names[d] for d in np.flatnonzero(dead)]
        if not dead.any():
            continue
        told = ", ".join(f"{names[d]} is always {low[d]:.4g}" for d in np.flatnonzero(dead)[:4])
        findings.append(
            doctor.Finding(
                severity="error" if field == "action" and dead.all() else "warning",
                message=f"{field}: {int(dead.sum())} of {len(names)} dims never change: {told}",
                remedy="Check that the standardizer takes the right column, or leave them out.",
            )
        )
    return findings, numbers


def _first(case: doctor.Case):
    """Episodes that begin with an action of zero, as BridgeData's do; OpenVLA leaves it out."""
    first = case.table.start[:-1]
    share = float(np.mean(case.still[first]))
    elsewhere = (
        float(np.mean(np.delete(case.still, first))) if len(case.still) > len(first) else 0.0
    )
    left_out = int(case.table.step[first].min())
    raw, findings = _raw_first(case) if left_out else ({}, [])
    numbers = {"zero": share, "zero_elsewhere": elsewhere, "first_step": left_out, "raw": raw}
    if share >= FIRST and elsewhere < share / 2:
        return [
            *findings,
            doctor.Finding(
                severity="warning",
                message=(
                    f"the first action is zero in {doctor.percent(share)} of the episodes, at "
                    f"other steps in {doctor.percent(elsewhere)}"
                ),
                remedy="Leave the first step out (drop_first=1 in the standardizer's row).",
            ),
        ], numbers
    return findings + [
        doctor.Finding(
            severity="note",
            message=(
                f"the first recorded {field} is zero in {doctor.percent(zero)} of the episodes; "
                f"the standardizer begins at step {left_out}"
            ),
            remedy="Nothing to do: these steps are left out already.",
        )
        for field, zero in raw.items()
        if zero >= FIRST
    ], numbers


def _raw_first(case: doctor.Case) -> tuple[dict[str, float], list[doctor.Finding]]:
    """Raw action column -> share of episodes whose first row is zero but for one number."""
    fields = [n for n in recordings.numbers(case.raw) if re.search(r"(^|[/._])actions?$", n)]
    read, broken = case.recorded(RAW_EPISODES, fields) if fields else ([], [])
    parts = {field: [] for field in fields if read}
    for found in read:
        for field in parts:
            parts[field].append(np.asarray(found[field], np.float64).reshape(len(found[field]), -1))
    shares = {}
    for field, episodes in parts.items():
        values = np.abs(np.concatenate(episodes))
        usual = np.quantile(values, 0.99, axis=0)
        moves = int(np.sum(values.max(axis=0) > 0))
        zero = [np.sum(np.abs(e[0]) > doctor.STILL * usual) <= 1 for e in episodes]
        elsewhere = np.mean(np.sum(values > doctor.STILL * usual, axis=1) <= 1)
        shares[field] = float(np.mean(zero)) if moves > 2 and elsewhere < FIRST else 0.0
    return shares, doctor.left_out(broken, len(read) + len(broken))


def _idle(case: doctor.Case):
    """Steps that ask for nothing: no motion, and the gripper as at the step before."""
    rest = case.table.action[:, ~case.moving]
    same = np.zeros(len(rest), bool)
    same[1:] = np.all(rest[1:] == rest[:-1], axis=1)
    same[case.table.start[:-1]] = True
    idle = float(np.mean(case.still & same))
    if idle <= IDLE:
        return [], {"share": idle}
    return [
        doctor.Finding(
            severity="warning",
            message=f"{doctor.percent(idle)} of the steps ask for nothing (no motion)",
            remedy="Leave them out (noop_threshold), or a policy learns to stand still.",
        )
    ], {"share": idle}


def _limits(case: doctor.Case):
    findings, numbers = [], {}
    for group, part in case.groups:
        if group.limits is None:
            continue
        low, high = group.limits
        slack = 1e-3 * (high - low)
        values = case.table.action[:, part]
        share = float(np.mean((values < low - slack) | (values > high + slack)))
        numbers[group.name] = share
        if share > OUTSIDE:
            findings.append(
                doctor.Finding(
                    severity="error" if share > OUTSIDE_BADLY else "warning",
                    message=(
                        f"{doctor.percent(share)} of the values of action {group.name} are outside "
                        f"its limits {low:g} to {high:g} (found {values.min():.4g} to "
                        f"{values.max():.4g})"
                    ),
                    remedy="Check unit, scale and convention of the group in the embodiment.",
                )
            )
    return findings, numbers
