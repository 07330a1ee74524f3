"""Numbers to bins and back, one integer per number (RT-1, Brohan et al. 2022; Octo). No jax.

    uniform   `count` bins of one width from `low` to `high`
    normal    `count` bins that a standard normal number falls into equally often

A value is worth the middle of its bin. The methods take numpy and jax arrays alike, by the array
API that both have.

Octo's BinTokenizer (tokenizers.py) differs where values lie outside: see `beyond`. Its thresholds
are computed in float32, and so are these: the outermost normal ones would move by 0.003 otherwise.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from typing import Any

import numpy as np

from vla_jax import plugin

SPACINGS = ("uniform", "normal")
BEYOND = ("last", "first")
TAIL = 1e-6  # share of a normal number's mass outside the outermost thresholds, on each side


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bins:
    """Bins of one scale; `tokenize` and `decode` convert.

    Attributes:
      count: number of bins.
      spacing: one of SPACINGS.
      low, high: ends of uniform bins; normal ones do not use them.
      beyond: the bin of values above all thresholds, "last" or "first". In Octo normal bins have
        the "first", which turns +5 into -3.7; imports need it. Values below all are in the first.
    """

    count: int
    spacing: str = "uniform"
    low: float = -1.0
    high: float = 1.0
    beyond: str = "last"

    @classmethod
    def make(cls, where: str, **arguments) -> Bins:
        """Checked Bins; UserError, beginning with `where`, for what cannot be."""
        bins = cls(**arguments)
        if bins.count < 1:
            raise plugin.UserError(f"{where}: got {bins.count} bins, expected at least 1.")
        for name, got, known in (
            ("spacing", bins.spacing, SPACINGS),
            ("beyond", bins.beyond, BEYOND),
        ):
            if got not in known:
                raise plugin.UserError(plugin.unknown(f"{where}: {name}", got, known))
        if not bins.low < bins.high:
            raise plugin.UserError(
                f"{where}: bins from low={bins.low} to high={bins.high}; expected low < high."
            )
        return bins

    @functools.cached_property
    def thresholds(self) -> np.ndarray:
        """float32 [count + 1], rising: bin i holds thresholds[i] <= value < thresholds[i + 1]."""
        if self.spacing == "uniform":
            return np.linspace(self.low, self.high, self.count + 1).astype(np.float32)
        levels = np.linspace(TAIL, 1.0 - TAIL, self.count + 1).astype(np.float32)
        inverse = statistics.NormalDist().inv_cdf
        return np.array([inverse(float(level)) for level in levels], np.float32)

    @functools.cached_property
    def middles(self) -> np.ndarray:
        """float32 [count]: what each bin is worth."""
        return (self.thresholds[1:] + self.thresholds[:-1]) / np.float32(2)

    def tokenize(self, values: Any) -> Any:
        """int32 [...], the bin of each value [...]; values outside get an end's (see `beyond`)."""
        xp = values.__array_namespace__()
        if self.spacing == "uniform" and self.beyond == "first":
            # Octo clips uniform values just inside the ends, in float32: beyond 32 in vain.
            ends = np.float32(self.low + TAIL), np.float32(self.high - TAIL)
            values = xp.clip(values, *ends)
        ids = xp.searchsorted(xp.asarray(self.thresholds), values, side="right") - 1
        top = self.count - 1
        above = xp.where(ids > top, 0, ids) if self.beyond == "first" else xp.minimum(ids, top)
        return xp.maximum(above, 0).astype(np.int32)

    def decode(self, ids: Any) -> Any:
        """float32 [...], the middle of each bin [...]."""
        xp = ids.__array_namespace__()
        return xp.take(xp.asarray(self.middles), ids, axis=0)
