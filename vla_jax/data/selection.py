"""Which episodes are held out, which steps do nothing, and at which steps samples start."""

from __future__ import annotations

import dataclasses
import hashlib
import re

import numpy as np

from vla_jax import plugin
from vla_jax.data.episodes import Episodes, Frames
from vla_jax.types import ActionSpace

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
    parts = [np.arange(*episodes.start[e : e + 2]) for e in selected.tolist()]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def noops(episodes: Episodes, space: ActionSpace, threshold: float) -> np.ndarray:
    """Which steps do nothing, bool [N], as OpenVLA leaves them out of LIBERO.

    Motion (deltas and velocities; of absolute groups the change since the step before) has a norm
    below `threshold`, in raw units, and grippers stay as in the last step that was kept
    (experiments/robot/libero/regenerate_libero_dataset.py:is_noop).
    """
    moving = [g for g in space.groups if g.quantity not in ("gripper", "terminate")]
    slices, action = space.slices(), episodes.action.astype(np.float64)
    before = action[np.maximum(np.arange(len(action)) - 1, 0)]
    motion = np.zeros(len(action))
    for group in moving:
        part = action[:, slices[group.name]]
        if group.representation == "absolute":
            part = part - before[:, slices[group.name]]
        motion += np.square(part).sum(axis=1)
    held = [g.name for g in space.groups if g not in moving]
    grip = np.concatenate([action[:, slices[name]] for name in held] or [action[:, :0]], axis=1)
    still, idle = np.sqrt(motion) < threshold, np.zeros(len(action), bool)
    absolute = any(g.representation == "absolute" for g in moving)
    for first, last in zip(episodes.start.tolist(), episodes.start[1:].tolist()):
        kept = None
        for row in range(first, last):
            same = kept is None or np.array_equal(grip[row], grip[kept])
            # The first step of an absolute command has no step before it to be the same as.
            idle[row] = still[row] and same and not (absolute and row == first)
            if not idle[row]:
                kept = row
    return idle


def without(episodes: Episodes, dropped: np.ndarray) -> tuple[Episodes, np.ndarray]:
    """(the table without the rows where `dropped`, bool [N], is True; int64, the rows that stay).

    Episodes keep their numbers; one may be left with no step at all.
    """
    kept = np.flatnonzero(~dropped)
    ends = np.concatenate([[0], np.cumsum(~dropped)])
    made = dataclasses.replace(
        episodes,
        start=ends[episodes.start].astype(np.int64),
        step=episodes.step[kept],
        action=episodes.action[kept],
        proprio={name: values[kept] for name, values in episodes.proprio.items()},
        language_index=episodes.language_index[kept],
        frames={
            view: Frames(offset=f.offset[kept], length=f.length[kept])
            for view, f in episodes.frames.items()
        },
    )
    return made, kept


def starts(
    where: str,
    episodes: Episodes,
    selected: np.ndarray,
    views: list[str],
    stride: int = 1,
    steps: str | None = None,
    most: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """int32 [S, 2]: (episode, step) of each sample, in order of storage.

    Of the steps that have an image of each of `views`, every `stride`-th; of those the slice
    `steps` ("[:3]": the first three of each episode); of those at most `most` per episode, drawn by
    (seed, episode id). Raises UserError where nothing is left.
    """
    if stride < 1:
        raise plugin.UserError(f"{where}: stride={stride}, expected at least 1")
    if most is not None and most < 1:
        raise plugin.UserError(f"{where}: samples_per_episode={most}, expected at least 1")
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
        if most is not None and len(chosen) > most:
            digest = hashlib.blake2b(f"{seed}/{episodes.ids[episode]}".encode(), digest_size=16)
            rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest.digest())))
            chosen = np.sort(rng.permutation(chosen)[:most])
        parts.append(np.stack([np.full(len(chosen), episode), chosen], axis=1))
    samples = np.concatenate(parts or [np.zeros((0, 2))]).astype(np.int32)
    if len(samples) == 0:
        raise plugin.UserError(f"{where}: steps={steps!r}, stride={stride} leave no sample")
    return samples
