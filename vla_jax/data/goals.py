"""A later step of the episode as the picture of what is asked (hindsight relabeling).

goals=dict(views=("primary",), strategy="uniform", max_distance=50)

    strategy          the goal of a sample at step t of an episode of T steps
    uniform           uniform in t+1 … T-1, or up to t+max_distance (Octo, goal_relabeling.py)
    last              T-1
    last_upweighted   t + uniform in 1 … T-1, at most T-1 (Bridge, tf_goal_relabeling.py)
    geometric         t+k with a probability that falls as discount**k (the same file)
    delta             t + uniform in low … high, at most T-1

Steps without a picture of the goal's views are no goals. At the last step the goal is that step. An
action counts up to the goal: those taken at it or later lead away from what the picture asks for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from vla_jax import plugin
from vla_jax.data.episodes import Episodes

STRATEGIES = {
    "uniform": ("max_distance",),
    "last": (),
    "last_upweighted": (),
    "geometric": ("discount",),
    "delta": ("low", "high"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goals:
    """Which pictures are goals, and how far ahead; see the module."""

    views: tuple[str, ...]
    strategy: str = "uniform"
    max_distance: int | None = None
    discount: float = 0.98
    low: int = 1
    high: int = 1

    @classmethod
    def make(cls, where: str, given: Mapping, views) -> Goals:
        """From a config's dict; `views` are the stream's. UserError for what does not fit."""
        given = dict(given)
        strategy = given.get("strategy", "uniform")
        if strategy not in STRATEGIES:
            raise plugin.UserError(plugin.unknown(f"{where}: goals", strategy, STRATEGIES))
        for name in given:
            known = ("views", "strategy", *STRATEGIES[strategy])
            if name not in known:
                raise plugin.UserError(plugin.unknown(f"{where}: goals {strategy}", name, known))
        if not given.get("views"):
            raise plugin.UserError(f"{where}: goals: no views; name some of {tuple(views)}")
        made = cls(**{**given, "views": tuple(given["views"])})
        for view in made.views:
            if view not in views:
                raise plugin.UserError(plugin.unknown(f"{where}: goals: view", view, views))
        fits = made.max_distance is None or made.max_distance >= 1
        if not (fits and 0 < made.discount <= 1 and 1 <= made.low <= made.high):
            raise plugin.UserError(
                f"{where}: goals={given}: expected max_distance >= 1, 0 < discount <= 1 and "
                "1 <= low <= high"
            )
        return made

    def seen(self, episodes: Episodes, optional_views) -> np.ndarray:
        """Which steps can be goals, bool [N]: each view that is not optional has a picture.

        Where all are optional, one is enough.
        """
        held = [view for view in self.views if view in episodes.frames]
        needed = [view for view in held if view not in optional_views]
        masks = [episodes.frames[view].length > 0 for view in needed or held]
        if not masks:
            return np.zeros(len(episodes.action), bool)
        return np.all(masks, axis=0) if needed else np.any(masks, axis=0)

    def draw(self, t: int, candidates: np.ndarray, last: int, draw: float) -> int:
        """The step of the goal: one of `candidates` (increasing) after `t`, else `t` itself.

        Args:
          t: step of the sample.
          candidates: steps with the goal's pictures.
          last: T-1.
          draw: uniform in [0, 1).
        """
        future = candidates[np.searchsorted(candidates, t, side="right") :]
        if len(future) == 0:
            return t
        if self.strategy == "last":
            return int(future[-1])
        if self.strategy == "uniform":
            if self.max_distance is not None:
                near = future[: np.searchsorted(future, t + self.max_distance, side="right")]
                future = near if len(near) else future[:1]
            return int(future[int(draw * len(future))])
        if self.strategy == "geometric":
            return int(future[self._geometric(draw, len(future))])
        low, high = (1, last) if self.strategy == "last_upweighted" else (self.low, self.high)
        wanted = t + low + int(draw * (high - low + 1))
        return int(future[min(np.searchsorted(future, wanted), len(future) - 1)])

    def _geometric(self, draw: float, count: int) -> int:
        """k-1 of 1 … count with probability discount**k / sum: the inverse of its distribution."""
        if self.discount == 1:
            return int(draw * count)
        whole = 1 - self.discount**count
        return min(int(math.log1p(-draw * whole) / math.log(self.discount)), count - 1)
