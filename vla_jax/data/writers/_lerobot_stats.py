"""Statistics of a LeRobot data set as its readers expect them, with quantiles that are quantiles.

LeRobot's own writer aggregates quantiles over episodes by their mean or envelope; these are of all
steps. Pictures: of the frames that `sampled` names, as a reader decodes them, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
LARGE = 300  # pixels from which a picture is thinned out, to about
THINNED = 150


def sampled(length: int) -> np.ndarray:
    """int64: which of an episode's frames count, evenly, as many as LeRobot takes."""
    count = max(min(length, 100), min(int(length**0.75), 10_000))
    return np.round(np.linspace(0, length - 1, count)).astype(np.int64)


class Statistics:
    """Of all episodes that were added, and of each as it is added."""

    def __init__(self):
        self._vectors: dict[str, list[np.ndarray]] = {}
        self._levels: dict[str, list] = {}

    def add(self, columns: Mapping[str, np.ndarray], pictures: Mapping[str, np.ndarray]) -> dict:
        """Feature -> its statistics in one episode.

        `columns`: name -> [T] or [T, n] numbers. `pictures`: name -> uint8 [frames, height, width,
        3], those of `sampled`.
        """
        found = {}
        for name, values in columns.items():
            values = np.asarray(values).reshape(len(values), -1)
            self._vectors.setdefault(name, []).append(values)
            found[name] = _of_numbers(values)
        for name, frames in pictures.items():
            levels = _levels(frames)
            count, total = self._levels.get(name, (0, np.zeros_like(levels)))
            self._levels[name] = (count + len(frames), total + levels)
            found[name] = _of_levels(len(frames), levels)
        return found

    def join(self, other: Statistics) -> None:
        """Takes over what another has counted, in order."""
        for name, parts in other._vectors.items():
            self._vectors.setdefault(name, []).extend(parts)
        for name, (more, levels) in other._levels.items():
            count, total = self._levels.get(name, (0, np.zeros_like(levels)))
            self._levels[name] = (count + more, total + levels)

    def total(self) -> dict:
        """Feature -> its statistics in all episodes."""
        found = {name: _of_numbers(np.concatenate(all_)) for name, all_ in self._vectors.items()}
        return found | {name: _of_levels(*levels) for name, levels in self._levels.items()}


def _of_numbers(values: np.ndarray) -> dict[str, list]:
    wide = values.astype(np.float64)
    made = {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": wide.mean(axis=0),
        "std": wide.std(axis=0),
        "count": np.array([len(values)]),
    }
    at = np.quantile(wide, list(QUANTILES.values()), axis=0)
    return {k: v.tolist() for k, v in (made | dict(zip(QUANTILES, at, strict=True))).items()}


def _levels(frames: np.ndarray) -> np.ndarray:
    """int64 [3, 256]: how often each level stands in each channel."""
    height, width = frames.shape[1:3]
    step = max(height, width) // THINNED if max(height, width) >= LARGE else 1
    thin = frames[:, ::step, ::step]
    return np.stack([np.bincount(thin[..., c].ravel(), minlength=256) for c in range(3)])


def _of_levels(frames: int, counts: np.ndarray) -> dict[str, list]:
    """What numpy would say of the pixels / 255, from how often each level stands there."""
    level, number = np.arange(256) / 255.0, counts.sum(axis=1)
    mean = counts @ level / number
    made = {
        "min": level[[np.flatnonzero(c)[0] for c in counts]],
        "max": level[[np.flatnonzero(c)[-1] for c in counts]],
        "mean": mean,
        "std": np.sqrt(np.sum(counts * (level - mean[:, None]) ** 2, axis=1) / number),
        "count": np.array([frames]),
    }
    ends = np.cumsum(counts, axis=1)
    for name, share in QUANTILES.items():
        place = share * (number - 1)
        low = np.floor(place).astype(np.int64)
        high = np.minimum(low + 1, number - 1)
        a, b = (
            level[[np.searchsorted(e, rank, side="right") for e, rank in zip(ends, ranks)]]
            for ranks in (low, high)
        )
        made[name] = a + (place - low) * (b - a)
    return {k: (v if k == "count" else v.reshape(3, 1, 1)).tolist() for k, v in made.items()}
