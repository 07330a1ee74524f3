"""A standardizer of Bridge as Octo reads it, for comparisons: octo/data/oxe's bridge transform.

Actions are the differences of measured poses (so that the last step has none) and the gripper's
command, binarized backwards in time; no step is dropped at the start.
"""

import numpy as np

from vla_jax.data import episodes

STATE, ACTION = "steps/observation/state", "steps/action"


def binarized(gripper):
    """1 above .95, 0 below .05, between them what comes next; the last is as recorded."""
    made, after = np.zeros(len(gripper), np.float32), gripper[-1]
    for i in reversed(range(len(gripper))):
        after = 1.0 if gripper[i] > 0.95 else 0.0 if gripper[i] < 0.05 else after
        made[i] = after
    return made


class Bridge:
    """See data/standardizers/_table.py:TableStandardizer."""

    def views(self, features):
        return {"primary": "steps/observation/image_0"}

    def columns(self, features):
        return {STATE, ACTION, "steps/language_instruction"}

    def episode(self, columns, length, where):
        state, last = columns[STATE], length - 1
        motion = state[1:, :6] - state[:-1, :6]
        gripper = binarized(columns[ACTION][:, 6])[:last, None]
        return episodes.Episode(
            id=where,
            steps=np.arange(last),
            action=np.concatenate([motion, gripper], axis=1).astype(np.float32),
            proprio={"ee": state[:last]},
            language=columns["steps/language_instruction"][:last],
            embodiment="widowx",
            action_space="ee_delta_gripper",
        )


def make(context):
    """The standardizer."""
    return Bridge()
