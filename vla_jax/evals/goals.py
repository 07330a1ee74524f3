"""What the card demo must show, as a table that a report judges and prints.

A goal that was not measured, or on too few episodes, is never counted as reached.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

REACHED, MISSED, UNMEASURED = "reached", "missed", "not measured"
STATUSES = (MISSED, UNMEASURED, REACHED)  # as they are listed


@dataclasses.dataclass(frozen=True)
class Goal:
    """`measure` of (arm, set) in percent, less that of `minus`, between `low` and `high`."""

    arm: str
    set: str
    measure: str  # first_touch | successes
    low: float = 0.0
    high: float = 100.0
    minus: tuple[str, str] | None = None  # (arm, set) that is subtracted: points, not percent
    episodes: int = 100  # fewer do not count as measured

    @property
    def text(self) -> str:
        """The goal in words."""
        measure = {"first_touch": "first touch", "successes": "success"}[self.measure]
        unit = " points" if self.minus else "%"
        limit = {
            (True, True): f"{self.low:g} to {self.high:g}{unit}",
            (True, False): f"≥ {self.low:g}{unit}",
            (False, True): f"≤ {self.high:g}{unit}",
        }[self.low > 0, self.high < 100]
        beside = f", less {self.minus[0]} on {self.minus[1]}" if self.minus else ""
        return f"{self.arm} on {self.set}{beside}: {measure} {limit}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A goal and what was measured."""

    goal: Goal
    status: str
    value: float | None  # percent or points
    episodes: int


def demo(split: int) -> tuple[Goal, ...]:
    """Goals of `make demo`; the split on which the recipe was found asks for more."""
    return (
        Goal("cofinetuned", "A", "first_touch", low=90),
        Goal("cofinetuned", "B", "first_touch", low=80 if split == 0 else 70, episodes=200),
        Goal("cofinetuned", "B", "successes", low=70, episodes=200),
        Goal("cofinetuned", "C", "first_touch", low=10, high=45),
        Goal("cofinetuned", "B", "first_touch", low=35, minus=("cofinetuned", "C")),
        Goal("cofinetuned", "B", "first_touch", low=35, minus=("scratch", "B")),
        Goal("scratch", "A", "first_touch", low=75),
        Goal("blind", "B", "first_touch", high=20),
        Goal("expert", "A", "successes", low=95, episodes=40),
    )


def controls(split: int) -> tuple[Goal, ...]:
    """Goals of `make demo-arms`."""
    least = 80 if split == 0 else 70
    seeds = ("cofinetuned", "cofinetuned_2", "cofinetuned_3")
    return (
        *(Goal(arm, "B", "first_touch", low=least, episodes=200) for arm in seeds),
        Goal("web_without_B", "A", "first_touch", low=85),
        Goal("web_without_B", "B", "first_touch", low=10, high=45),
        Goal("same_artist", "B", "first_touch", low=90),
    )


def judge(sets: Mapping[str, Mapping[str, Mapping[str, int]]], split: int) -> list[Verdict]:
    """Verdicts on a run's counts ({set: {arm: counts}}), missed ones first.

    A run with an arm that only `make demo-arms` has is judged by `controls`, any other by `demo`.
    """
    arms = {arm for of_set in sets.values() for arm in of_set}
    chosen = demo(split) if not arms & {"web_without_B", "same_artist"} else controls(split)

    return sorted((_judge(sets, goal) for goal in chosen), key=lambda v: STATUSES.index(v.status))


def _judge(sets, goal: Goal) -> Verdict:
    rates, episodes = [], []
    for arm, name in filter(None, ((goal.arm, goal.set), goal.minus)):
        counts = sets.get(name, {}).get(arm)
        if counts is None:
            return Verdict(goal, UNMEASURED, None, 0)
        rates.append(100 * counts[goal.measure] / counts["episodes"])
        episodes.append(counts["episodes"])
    value = rates[0] - sum(rates[1:])
    if episodes[0] < goal.episodes or min(episodes) < min(goal.episodes, 100):
        return Verdict(goal, UNMEASURED, value, min(episodes))
    status = REACHED if goal.low <= value <= goal.high else MISSED
    return Verdict(goal, status, value, episodes[0])
