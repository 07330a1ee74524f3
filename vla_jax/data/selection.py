"""Which episodes are held out, and at which steps samples start."""

from __future__ import annotations

import hashlib
import re

import numpy as np

from vla_jax import plugin
from vla_jax.data.episodes import Episodes

STEPS = re.compile(r"\[(-?\d*):(-?\d*)(?::(\d*))?\]")


def split(where: str, ids, holdout: float, seed: int, train: bool) -> np.ndarray:
    """int64, the episodes of the training or the held-out part, in order of storage.

    Held out are the round(holdout * E) episodes, at least one, with the smallest hash of (seed,
    id), whatever the order of storage. Raises UserError where a part is empty.
    """
    if not 0 <= holdout <= 1:
        raise plugin.UserError(f"{where}: holdout={holdout}, expected 0 to 1")
    count = max(1, round(holdout * len(ids))) if holdout else 0
    ranks = [hashlib.blake2b(f"{seed}/{id_}".encode(), digest_size=8).digest() for id_ in ids]
    held = sorted(range(len(ids)), key=ranks.__getitem__)[:count]
    part = np.setdiff1d(np.arange(len(ids)), held) if train else np.sort(np.asarray(held, np.int64))
    if len(part) == 0:
        kind = "training" if train else "held-out"
        raise plugin.UserError(
            f"{where}: no {kind} episodes of {len(ids)} with holdout={holdout}; change it"
        )
    return part


def rows(episodes: Episodes, selected: np.ndarray) -> np.ndarray:
    """int64: the table's rows of the selected episodes, in order."""
    return np.concatenate([np.arange(*episodes.start[e : e + 2]) for e in selected.tolist()])


def starts(
    where: str,
    episodes: Episodes,
    selected: np.ndarray,
    views: list[str],
    stride: int = 1,
    steps: str | None = None,
) -> np.ndarray:
    """int32 [S, 2]: (episode, step) of each sample, in order of storage.

    Of the steps that have an image of each of `views`, every `stride`-th; of those the slice
    `steps` ("[:3]": the first three of each episode). Raises UserError where nothing is left.
    """
    if stride < 1:
        raise plugin.UserError(f"{where}: stride={stride}, expected at least 1")
    which = slice(None)
    if steps is not None:
        match = STEPS.fullmatch(steps.replace(" ", ""))
        if not match or match[3] == "0":
            raise plugin.UserError(
                f"{where}: steps={steps!r}, expected a slice such as '[:3]' or '[2:-1]'"
            )
        which = slice(*(int(g) if g else None for g in match.groups()))
    seen = np.ones(len(episodes.action), bool)
    for view in views:
        seen &= episodes.frames[view].length > 0
        if not seen.any():
            raise plugin.UserError(
                f"{where}: no step has an image of {view!r} and of all views before it in {views}; "
                "name the absent view in optional_views"
            )
    parts = []
    for episode in selected.tolist():
        first, last = episodes.start[episode : episode + 2]
        chosen = np.flatnonzero(seen[first:last])[::stride][which]
        parts.append(np.stack([np.full(len(chosen), episode), chosen], axis=1))
    samples = np.concatenate(parts).astype(np.int32)
    if len(samples) == 0:
        raise plugin.UserError(f"{where}: steps={steps!r}, stride={stride} leave no sample")
    return samples
