"""Which recorded steps a sample at step t is made of.

    window W = 3, chunk C = 2, an episode of 5 steps, t = 1:

      slot              0      1      2          (slot W-1 is t itself)
      step             -1      0      1
      observation       0*     0      1          * the first frame repeated, timestep_mask False
      actions         0*,1*   0,1    1,2         masked False where the slot is before the start

    Past the end an action is padded (delta: zero, absolute: the last one held) and masked False.

With a goal (data/goals.py) an action counts if it is taken before the goal's step.

Octo marks the end two steps late (traj_transforms.py:chunk_act_obs writes t-(W+1)+w+h for the step
t-(W-1)+w+h), so that up to two padded actions count in its loss: `octo_mask`, for comparisons only.

`reference` says it in plain loops; `steps` and `chunk` are what runs, and are tested against it.
"""

from __future__ import annotations

import numpy as np


def steps(t: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [W] steps to read, bool [W] timestep_mask) for a sample at step `t`."""
    wanted = np.arange(t - window + 1, t + 1)
    return np.maximum(wanted, 0), wanted >= 0


def chunk(
    action: np.ndarray,
    t: int,
    window: int,
    action_horizon: int,
    hold: np.ndarray,
    pad: np.ndarray,
    goal: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(actions [W, C, A], bool mask [W, C]) of a sample at step `t` of an episode.

    Args:
      action: [T, A], the episode's.
      t: step of the sample, 0 <= t < T.
      window: W.
      action_horizon: C.
      hold: bool [A], True where the last value is held past the end (absolute representations).
      pad: [A], what stands past the end elsewhere (the zero of a delta, normalized).
      goal: step of the goal picture, if one is shown; actions at it or later are masked False.
    """
    slots, real = steps(t, window)
    wanted = slots[:, None] + np.arange(action_horizon)[None, :]  # [W, C]
    inside = wanted < len(action)
    actions = action[np.minimum(wanted, len(action) - 1)]  # [W, C, A]
    if not inside.all():
        actions = np.where(inside[..., None] | hold[None, None, :], actions, pad[None, None, :])
    counted = inside if goal is None else inside & (wanted < goal)
    return actions, counted & real[:, None]


def octo_mask(t: int, window: int, action_horizon: int, end: int) -> np.ndarray:
    """Octo's action_pad_mask, bool [W, C], False two steps late; `end` is the goal, else T-1.

    It does not look at where the episode begins: the repeated first frame's actions count.
    """
    slot, ahead = np.arange(window)[:, None], np.arange(action_horizon)[None, :]
    return end - (t - (window + 1) + slot + ahead) > 0


def reference(action, t: int, window: int, action_horizon: int, hold, pad, goal=None):
    """`steps` and `chunk`, one number at a time: (steps, timestep_mask, actions, mask)."""
    length, size = action.shape
    read, timestep_mask, actions, mask = [], [], [], []
    for slot in range(window):
        step = t - (window - 1) + slot
        timestep_mask.append(step >= 0)
        step = max(step, 0)
        read.append(step)
        for c in range(action_horizon):
            inside = step + c < length
            row = action[step + c] if inside else action[length - 1]
            actions.append([row[d] if inside or hold[d] else pad[d] for d in range(size)])
            before = goal is None or step + c < goal
            mask.append(inside and before and timestep_mask[-1])
    shape = (window, action_horizon)
    return (
        np.asarray(read),
        np.asarray(timestep_mask),
        np.asarray(actions, action.dtype).reshape(*shape, size),
        np.asarray(mask).reshape(shape),
    )
