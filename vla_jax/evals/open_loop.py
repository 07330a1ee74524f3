"""Open-loop error: recorded observations in, predicted chunks against the recorded actions.

At every step t of an episode that has an image of each view, the policy (reloaded from its folder
alone) sees what was recorded and predicts actions t … t+C−1; those that the episode still holds are
compared. Nothing is executed, so errors do not add up as they do on a robot: a small open-loop
error is needed for a good policy, and not enough.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.data import action_space as action_space_lib
from vla_jax.data import episodes as episodes_lib
from vla_jax.data import fit, looks, recordings, selection, window
from vla_jax.policy import policy as policy_lib
from vla_jax.types import ActionSpace, Embodiment

ROWS = 16  # steps asked of the network at once


@dataclasses.dataclass(frozen=True)
class OpenLoop:
    """Mean errors per action dim; `range` is that of the recorded actions of the same episodes.

    `percent` is None where a dim never changes.
    """

    dims: tuple[str, ...]
    error: tuple[float, ...]  # mean |predicted − recorded|, raw units
    range: tuple[float, ...]  # largest − smallest recorded value
    percent: tuple[float | None, ...]  # 100 · error / range
    episodes: int
    steps: int  # chunks compared

    @property
    def worst(self) -> float | None:
        """The largest `percent`."""
        return max((p for p in self.percent if p is not None), default=None)

    def summary(self) -> dict:
        """The same as JSON can say it."""
        return {**dataclasses.asdict(self), "worst": self.worst}

    def table(self) -> str:
        """One line per dim."""
        width = max(len("dim"), *map(len, self.dims))
        lines = [f"{'dim':<{width}}  {'mean |error|':>12}  {'range':>10}  {'% of range':>10}"]
        for dim, error, spread, percent in zip(self.dims, self.error, self.range, self.percent):
            share = "constant" if percent is None else f"{percent:.2f}"
            lines.append(f"{dim:<{width}}  {error:>12.5g}  {spread:>10.5g}  {share:>10}")
        return "\n".join([*lines, f"{self.episodes} episodes, {self.steps} chunks"])


def open_loop(
    checkpoint: str,
    data: str,
    *,
    standardizer: str | Mapping = "native",
    stream: str = "robot",
    dataset: str | None = None,
    action_space: str | None = None,
    body: Embodiment | None = None,
    holdout: float = 0.0,
    holdout_seed: int = 0,
    train: bool = True,
    episodes: int | None = None,
) -> OpenLoop:
    """The open-loop error of a run's folder on recorded episodes.

    Args:
      checkpoint: the folder.
      data, standardizer: recorded episodes of any format, see data/recordings.py.
      stream, dataset, action_space: of the policy, see policy.Policy.
      body: whose action spaces the data's and the policy's are, where the former are to be
        converted (`convert` of a source).
      holdout, holdout_seed, train: which part of the episodes, as it was split for training.
      episodes: only the first so many of that part.

    Raises:
      UserError: what loading either raises; data without a view or reading that the policy needs;
        actions of another size.
    """
    table, read = recordings.recorded(data, standardizer=standardizer)
    part = selection.split(table.where, table.ids, holdout, holdout_seed, train)[:episodes]
    policy = policy_lib.Policy.load(
        checkpoint, stream=stream, dataset=dataset, action_space=action_space, rows=ROWS
    )
    if body is not None:
        where, wanted = f"{table.where}: convert", policy.row_spaces[0].name
        space = fit.named(where, table.action_space, body.action_spaces)
        table, _ = action_space_lib.converted(where, table, body, space, wanted)
    replay = _Replay(policy, table, looks.decoded(read, policy.stream.resize))
    space, total, count, steps = policy.row_spaces[0], 0.0, 0, 0
    for predicted, recorded, real in replay.chunks(part):
        gap = np.abs(predicted[..., : space.size] - recorded) * real[..., None]
        total, count = total + gap.sum(axis=(0, 1)), count + int(real.sum())
        steps += len(predicted)
    actions = table.action[selection.rows(table, part)].astype(np.float64)
    error, spread = total / count, actions.max(axis=0) - actions.min(axis=0)
    return OpenLoop(
        dims=_dims(space),
        error=tuple(map(float, error)),
        range=tuple(map(float, spread)),
        percent=tuple(float(100 * e / s) if s > 0 else None for e, s in zip(error, spread)),
        episodes=len(part),
        steps=steps,
    )


class _Replay:
    """Asks a policy of ROWS rows at recorded steps."""

    def __init__(self, policy: policy_lib.Policy, table: episodes_lib.Episodes, read):
        self.policy, self.table, self.read = policy, table, read
        size, space = table.action.shape[1], policy.row_spaces[0]
        if size != space.size:
            raise plugin.UserError(
                f"{table.where}: actions of {size} numbers, the policy's action space "
                f"{space.name!r} has {space.size}"
            )
        for view in policy.stream.image_sizes:
            if view not in table.frames:
                raise plugin.UserError(plugin.unknown(f"{table.where}: view", view, table.frames))

    def chunks(self, part: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(predicted [n, C, A], recorded [n, C, A], real bool [n, C]), n up to ROWS at a time."""
        views = list(self.policy.stream.image_sizes)
        starts = selection.starts(self.table.where, self.table, np.asarray(part), views)
        for begin in range(0, len(starts), ROWS):
            some = starts[begin : begin + ROWS]
            full = np.concatenate([some, np.repeat(some[-1:], ROWS - len(some), axis=0)])
            texts = []
            for row, (episode, t) in enumerate(full.tolist()):
                self.policy.reset(row)
                slots, real = window.steps(t, self.policy.stream.window)
                for step in slots[real].tolist():
                    self.policy.observe(row, self.observation(episode, step))
                texts.append(self.instruction(episode, t))
            predicted = self.policy.act(texts)[0][: len(some)]
            pairs = [self._recorded(*place, predicted.shape[1]) for place in some.tolist()]
            yield predicted, np.stack([p for p, _ in pairs]), np.stack([r for _, r in pairs])

    def observation(self, episode: int, step: int) -> dict:
        """What the robot sensed, as `Policy.observe` takes it; None for an image not taken."""
        row = int(self.table.start[episode]) + step
        seen = {}
        for view in self.policy.stream.image_sizes:
            (image,) = self.read(view, episode, [row])
            seen[view] = image if len(image) else None
        proprio = {group: values[row] for group, values in self.table.proprio.items()}
        return {"images": seen, "proprio": proprio}

    def instruction(self, episode: int, step: int) -> str:
        """What was asked at that step; "" where the data do not say."""
        index = int(self.table.language_index[int(self.table.start[episode]) + step])
        return self.table.language[index] if index >= 0 else ""

    def _recorded(self, episode: int, t: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        first, last = (int(i) for i in self.table.start[episode : episode + 2])
        wanted = first + t + np.arange(horizon)
        return self.table.action[np.minimum(wanted, last - 1)], wanted < last


def _dims(space: ActionSpace) -> tuple[str, ...]:
    """xyz.0, xyz.1, …; a group of one number is its name."""
    return tuple(
        group.name if group.size == 1 else f"{group.name}.{i}"
        for group in space.groups
        for i in range(group.size)
    )
