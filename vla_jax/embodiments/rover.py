"""Wheeled robots of the General Navigation Models (Shah et al. 2023): the next waypoint in the
robot's own frame. Data sets of several robots are brought to one spacing, so that the unit is that
of the recorded actions, not the metre.
"""

from vla_jax.types import ActionGroup, ActionSpace, Embodiment, ProprioGroup


def _waypoints(name: str, control_hz: float) -> ActionSpace:
    return ActionSpace(
        name=name,
        control_hz=control_hz,
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
    )


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
        _waypoints("rover_waypoint", 4.0),
        # RECON, Cory Hall and SACSoN as they were recorded
        _waypoints("rover_waypoint_3hz", 3.0),
        _waypoints("rover_waypoint_5hz", 5.0),
        _waypoints("rover_waypoint_10hz", 10.0),
    ),
)
