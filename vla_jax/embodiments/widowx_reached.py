"""Bridge's WidowX with the actions that Octo trains on: what was reached, not what was commanded.

Position and Euler angles are the difference of two measured readings, angle by angle (Octo:
data_utils.py, relabel_actions).
"""

import dataclasses

from vla_jax.embodiments import widowx

(_COMMANDED,) = widowx.EMBODIMENT.action_spaces
_XYZ, _RPY, _GRIPPER = _COMMANDED.groups

EMBODIMENT = dataclasses.replace(
    widowx.EMBODIMENT,
    name="widowx_reached",
    action_spaces=(
        dataclasses.replace(
            _COMMANDED,
            name="ee_reached_gripper",
            groups=(
                dataclasses.replace(_XYZ, label="reached"),
                dataclasses.replace(_RPY, label="reached", composition="add"),
                _GRIPPER,
            ),
        ),
    ),
)
