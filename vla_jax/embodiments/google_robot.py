"""Everyday Robots' mobile manipulator as recorded for RT-1 (Brohan et al. 2022, 3 Hz) and BC-Z
(Jang et al. 2021, 10 Hz): end-effector displacements in the robot's base frame.

RT-1 states (TFDS, fractal20220817_data) position and roll-pitch-yaw commanded, relative to the
base. BC-Z's rotation is a difference of axis-angle vectors, to be added to the current one.
"""

from vla_jax.embodiments import _end_effector
from vla_jax.types import Embodiment, ProprioGroup

EMBODIMENT = Embodiment(
    name="google_robot",
    joints=(),
    joint_limits=(),
    control_hz=3.0,
    views=("primary",),
    proprio=(
        _end_effector.EE_QUAT,
        ProprioGroup(
            name="ee_rotvec",
            size=7,
            unit="m, rad, 1",
            meaning="x, y, z, axis-angle in the robot frame; gripper opening (1 = open)",
            pose="rotvec",
        ),
    ),
    action_spaces=(
        _end_effector.space("google_robot_ee", 3.0),
        _end_effector.space("google_robot_bc_z", 10.0, rotation="rotvec", composition="add"),
    ),
)
