"""Wheeled robots of the General Navigation Models (Shah et al. 2023): the next waypoint in the
robot's own frame. Data sets of several robots are brought to one spacing, so that the unit is that
of the recorded actions, not the metre.
"""

from vla_jax.types import ActionGroup, ActionSpace, Embodiment, ProprioGroup

EMBODIMENT = Embodiment(
    name="rover",
    joints=(),
    joint_limits=(),
    control_hz=4.0,
    views=("primary", "wrist"),
    proprio=(
        ProprioGroup(name="base_pose", size=3, unit="m, rad", meaning="x, y, yaw on the ground"),
    ),
    action_spaces=(
        ActionSpace(
            name="rover_waypoint",
            control_hz=4.0,
            groups=(
                ActionGroup(
                    name="xy",
                    size=2,
                    quantity="position",
                    representation="delta",
                    reference="measured_now",
                    frame="robot",
                    unit="1",
                    label="reached",
                ),
            ),
        ),
    ),
)
