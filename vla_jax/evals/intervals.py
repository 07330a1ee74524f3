"""How sure a fraction of successes is: Wilson's score interval (Wilson 1927)."""

from __future__ import annotations

import math

from vla_jax import plugin

Z95 = 1.959963984540054  # two-sided 95% of the normal distribution


def wilson(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """(low, high) of the true fraction, both in [0, 1]; (0, 1) without trials.

    Trials are taken as independent: names that an untrained policy always or never prefers make the
    truth wider. Raises UserError unless 0 <= successes <= trials.
    """
    if not 0 <= successes <= trials:
        raise plugin.UserError(f"wilson: got {successes} successes of {trials} trials")
    if trials == 0:
        return 0.0, 1.0
    fraction, shrink = successes / trials, 1 + z * z / trials
    centre = (fraction + z * z / (2 * trials)) / shrink
    spread = fraction * (1 - fraction) / trials + z * z / (4 * trials * trials)
    half = z * math.sqrt(spread) / shrink
    return max(0.0, centre - half), min(1.0, centre + half)
