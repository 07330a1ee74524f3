"""Gaps in time: timestamps, frame numbers and step numbers that jump; a rate that is another."""

from __future__ import annotations

import re

import numpy as np

from vla_jax.data import doctor, recordings

GAP = 1.5  # times the usual interval
RATE = 1.25  # between the recorded rate and the action space's
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
EPISODES = 200  # whose times are read


def check(case: doctor.Case):
    """(findings, numbers) of time, as far as the data set says anything about it."""
    findings, numbers = _left_out(case)
    times, frames = _fields(case.raw, r"timestamp(_\w+)?$"), _fields(case.raw, r"frame_index$")
    numbers |= {"timestamps": None, "frame_numbers": None}
    if not times and not frames:
        return findings, numbers | {"not_judged": "no field named timestamp or frame_index"}
    columns = {name: [] for name in (*times[:1], *frames[:1])}
    read, broken = case.recorded(EPISODES, list(columns))
    findings += doctor.left_out(broken, len(read) + len(broken))
    if not read:
        return findings, numbers | {"not_judged": "no episode looked at can be read"}
    for found in read:
        for name, parts in columns.items():
            parts.append(np.diff(np.asarray(found[name], np.float64).reshape(-1)))
    for name in times[:1]:
        found, numbers["timestamps"] = _timestamps(case, name, columns[name])
        findings += found
    for name in frames[:1]:
        found, numbers["frame_numbers"] = _frames(case, name, columns[name])
        findings += found
    return findings, numbers


def _left_out(case: doctor.Case):
    """Steps that the standardizer or a filter leaves out of the middle of an episode."""
    share = 1 - len(case.follows) / len(case.inner) if len(case.inner) else 0.0
    findings = []
    if share > 0:
        findings.append(
            doctor.Finding(
                severity="note",
                message=(
                    f"{doctor.percent(share)} of the steps are followed by another than the next "
                    "recorded one (the standardizer or a filter leaves steps out)"
                ),
                remedy="Make sure that the actions are meant to be executed across these gaps.",
            )
        )
    return findings, {"steps_left_out": share, "stride": case.stride}


def _fields(raw: recordings.Raw, pattern: str) -> list[str]:
    return [
        name
        for name in recordings.numbers(raw)
        if re.search(rf"(^|[/._]){pattern}", name) and int(np.prod(raw.fields[name]["shape"])) == 1
    ]


def _timestamps(case: doctor.Case, name: str, parts: list[np.ndarray]):
    steps = np.concatenate(parts)
    usual = float(np.median(steps)) if len(steps) else 0.0
    if usual <= 0:
        finding = doctor.Finding(
            severity="error",
            message=f"{name}: the median interval is {usual:g}; time does not go on",
            remedy="Record the data again with a clock, or leave the field out.",
        )
        return [finding], {"field": name, "median": usual}
    # The unit under which the rate is a robot's.
    unit = next((u for u, s in UNITS.items() if 0.5 <= 1 / (usual * s) <= 2000), "s")
    rate, asked = 1 / (usual * UNITS[unit]), case.source.action_space.control_hz
    gaps, back = steps > GAP * usual, steps <= 0
    where = [i for i, part in enumerate(parts) if np.any((part > GAP * usual) | (part <= 0))]
    numbers = {
        "field": name,
        "unit": unit,
        "hz": rate,
        "control_hz": asked,
        "gaps": int(gaps.sum()),
        "backwards": int(back.sum()),
        "intervals": len(steps),
        "largest_s": float(steps.max() * UNITS[unit]),
        "episodes": len(where),
    }
    findings = []
    if gaps.any() or back.any():
        findings.append(
            doctor.Finding(
                severity="error" if back.any() else "warning",
                message=(
                    f"{name}: {int(gaps.sum())} gaps and {int(back.sum())} steps that do not go on "
                    f"among {len(steps)} intervals of {1000 / rate:.4g} ms, in {len(where)} of "
                    f"{len(parts)} episodes; the largest is {numbers['largest_s']:.3g} s"
                ),
                remedy="Split or remove these episodes: a chunk across a gap is no motion.",
            )
        )
    kept = f" and taken at {rate / case.stride:.4g} Hz" if case.stride > 1 else ""
    if not asked / RATE <= rate / case.stride <= asked * RATE:
        findings.append(
            doctor.Finding(
                severity="warning",
                message=(
                    f"{name}: recorded at {rate:.4g} Hz{kept}, the action space "
                    f"{case.source.action_space.name!r} says {asked:g} Hz"
                ),
                remedy="Correct control_hz in the embodiment's file, or resample the data.",
            )
        )
    return findings, numbers


def _frames(case: doctor.Case, name: str, parts: list[np.ndarray]):
    jumps = [int(np.sum(part != 1)) for part in parts]
    numbers = {"field": name, "jumps": sum(jumps), "episodes": sum(j > 0 for j in jumps)}
    if not sum(jumps):
        return [], numbers
    return [
        doctor.Finding(
            severity="warning",
            message=f"{name}: {sum(jumps)} numbers are not the one before plus 1, in "
            f"{numbers['episodes']} of {len(parts)} episodes: frames are missing",
            remedy="Record these episodes again, or split them at the gaps.",
        )
    ], numbers
