"""What the actions are measured from: they are compared with the motion that was measured.

    a_t  action at step t (SI)        p_t  reading at step t (SI)        d_t = p_{t+1} - p_t

    fit                 1 means                                    R² of
    absolute            the action is where to be next             a_t = p_{t+k}, k = 0, 1
    reached_delta       the action is the measured displacement    a_t = d_t
    commanded_delta     the action drives the displacement         d_{t+k} = gain * a_t, k = 0 … 3

Which numbers of which reading belong to a group is not written anywhere: all runs of as many
numbers are tried and the best is taken. Bridge's relabelling (Octo's `relabel_actions`) turns
commanded deltas into next-state deltas; openpi's users applied the delta twice (openpi#1047).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from vla_jax.data import doctor

EXACT, GOOD, SOME = 0.98, 0.8, 0.25  # R² of a fit: identical, clear, more than chance
LAGS = (0, 1, 2, 3)
GAIN_LOW, GAIN_HIGH = 0.1, 3.0  # displacement per commanded delta, lag and all
NEAR = 0.8  # of the best fit: another run of numbers may be the one that is meant
ROWS = 30  # fewer steps of motion say nothing
ANGLES = ("euler", "rotvec")
UNSTATED = "unstated"  # units and frames that a data set does not document: judged all the same
NAMES = {
    "absolute": "absolute targets",
    "reached_delta": "next-state deltas (the measured displacement itself)",
    "commanded_delta": "commanded deltas (they drive the measured displacement)",
}


@dataclasses.dataclass(frozen=True)
class Fit:
    """How well each hypothesis explains a group by one run of a reading's numbers."""

    reading: str
    absolute: float
    reached_delta: float
    commanded_delta: float
    gain: float
    lag: int
    signs: tuple[float, ...]  # correlation of action and displacement, per dim

    @property
    def best(self) -> float:
        """The best of the three."""
        return max(self.absolute, self.reached_delta, self.commanded_delta)

    @property
    def verdict(self) -> str | None:
        """The hypothesis that the data bear out; None where none does."""
        if self.reached_delta >= EXACT:
            return "reached_delta"
        if self.absolute >= GOOD and self.absolute > self.commanded_delta:
            return "absolute"
        return "commanded_delta" if self.commanded_delta >= SOME else None


def check(case: doctor.Case):
    """(findings, numbers) of every group that a reading can be compared with."""
    findings, numbers = [], {}
    for group, part in case.groups:
        reason = _not_judged(group)
        fits = [] if reason else _fits(case, group, case.table.action[:, part])
        if not fits:
            if group.quantity in ("position", "rotation"):
                reason = reason or "no reading of as many numbers moves"
                numbers[group.name] = {"not_judged": reason}
            continue
        # Of runs that explain the group about as well, one that bears the action space out counts.
        near = [fit for fit in fits if fit.best >= NEAR * fits[0].best]
        fit = next((fit for fit in near if not _judge(group, fit)), fits[0])
        numbers[group.name] = {**dataclasses.asdict(fit), "verdict": fit.verdict}
        findings += _judge(group, fit)
    return findings, numbers


def _not_judged(group) -> str | None:
    if group.quantity not in ("position", "rotation"):
        return "no motion"
    if group.representation == "velocity":
        return "velocities are not compared"
    if group.quantity == "rotation" and not (group.rotation or "").startswith(ANGLES):
        return f"rotations as {group.rotation} are not compared"
    if group.frame not in ("base", UNSTATED) and group.representation == "delta":
        return f"deltas in the frame {group.frame!r} are not compared"
    return None if group.size > 1 else "one number matches any reading too easily"


def _fits(case: doctor.Case, group, action: np.ndarray) -> list[Fit]:
    """The fits of all runs of as many numbers in a reading, the best first."""
    found = []
    angle = group.quantity == "rotation"
    for reading in case.readings:
        values = case.table.proprio[reading.name].astype(np.float64)
        if not angle:  # angles are radians under whatever scale the positions beside them have
            values = values * reading.scale
        for start in range(reading.size - group.size + 1):
            name = f"{reading.name}[{start}:{start + group.size}]"
            part = values[:, start : start + group.size]
            fit = _fit(case, name, action.astype(np.float64) * group.scale, part, angle)
            found += [fit] if fit else []
    return sorted(found, key=lambda fit: -fit.best)


def _fit(case: doctor.Case, name: str, action, reading, angle: bool) -> Fit | None:
    wrap = _wrap if angle else (lambda difference: difference)
    rows = case.follows
    moves = np.zeros_like(reading)
    moves[rows] = wrap(reading[rows + 1] - reading[rows])
    rows = rows[np.isfinite(moves[rows]).all(axis=1)]
    if len(rows) < ROWS or not np.any(moves[rows]) or not np.any(action[rows]):
        return None
    a, d = action[rows], moves[rows]
    spread = np.square(a - a.mean(axis=0)).sum()
    absolute = max(
        1 - np.square(wrap(a - reading[rows + k])).sum() / spread if spread else -np.inf
        for k in (0, 1)
    )
    lagged = []
    there = np.zeros(len(reading), bool)
    there[rows] = True
    for lag in LAGS:
        chosen = rows[_all_there(there, rows, lag)]
        if len(chosen) >= ROWS:
            lagged.append((*_regress(action[chosen], moves[chosen + lag]), lag))
    if not lagged:
        return None
    commanded, gain, signs, lag = max(lagged, key=lambda entry: entry[0])
    return Fit(
        reading=name,
        absolute=float(absolute),
        reached_delta=float(1 - np.square(a - d).sum() / np.square(a).sum()),
        commanded_delta=commanded,
        gain=gain,
        lag=lag,
        signs=signs,
    )


def _all_there(there: np.ndarray, rows: np.ndarray, lag: int) -> np.ndarray:
    """bool: rows after which `lag` steps and the displacement of the last one were recorded."""
    inside = rows + lag < len(there)
    for step in range(1, lag + 1):
        inside &= there[np.minimum(rows + step, len(there) - 1)]
    return inside


def _regress(a: np.ndarray, d: np.ndarray) -> tuple[float, float, tuple[float, ...]]:
    """(R², gain, correlation per dim) of d = gain * a through the origin."""
    product, aa, dd = (a * d).sum(axis=0), np.square(a).sum(axis=0), np.square(d).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        signs = np.nan_to_num(product / np.sqrt(aa * dd))
    total = aa.sum() * dd.sum()
    share = float(product.sum() ** 2 / total) if total else 0.0
    gain = float(product.sum() / aa.sum()) if aa.sum() else 0.0
    return (share if gain > 0 else 0.0), gain, tuple(float(s) for s in signs)


def _wrap(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _judge(group, fit: Fit) -> list[doctor.Finding]:
    """What speaks against the action space's description of a group; at most one finding."""
    shares = {name: getattr(fit, name) for name in NAMES}
    fits = ", ".join(f"{n} {s:.2f}" if s > 0 else f"{n} none" for n, s in shares.items())
    told = f"action {group.name} against {fit.reading}: R² of {fits}"
    verdict, absolute = fit.verdict, group.representation == "absolute"
    flipped = [i for i, sign in enumerate(fit.signs) if sign < -GOOD]
    these = f"{told}: these are {NAMES.get(verdict, '')}, the action space says"
    if flipped and not absolute and fit.absolute < GOOD:
        found = (
            "error" if group.frame == "base" else "warning",
            f"{told}; dims {flipped} move against their actions",
            "Correct the frame, or the sign of these dims in the standardizer.",
        )
    elif verdict is None:
        found = (
            "warning",
            f"{told}: the actions explain no measured motion",
            "Check that actions and readings belong together, and their order in time.",
        )
    elif (verdict == "absolute") != absolute:
        found = (
            "error",
            f"{these} {group.representation}",
            "Correct representation and reference in the action space, or convert the column.",
        )
    elif verdict == "reached_delta" and group.label != "reached":
        found = (
            "warning",
            f"{these} {group.label}",
            "Set label='reached', or take the column with the commands if there is one.",
        )
    elif verdict == "commanded_delta" and group.label == "reached":
        found = ("warning", f"{these} reached", "Set label='commanded' for that group.")
    elif verdict == "commanded_delta" and not GAIN_LOW <= fit.gain <= GAIN_HIGH:
        found = (
            "note" if group.unit == UNSTATED else "error",
            f"{told}; the robot moves {fit.gain:.3g} times as far as the actions say",
            "Correct unit and scale of the group, or of the reading, in the embodiment's file.",
        )
    else:
        return []
    return [doctor.Finding(severity=found[0], message=found[1], remedy=found[2])]
