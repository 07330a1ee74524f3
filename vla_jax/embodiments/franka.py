"""Franka Emika Panda, as many labs recorded it: one body, an action space per kind of control.

franka_osc      robosuite's OSC_POSE commands in [-1, 1] at 20 Hz: 0.05 m and 0.5 rad about the
                measured pose (robosuite/controllers/config/osc_pose.json); LIBERO
franka_deoxys   the same of a real arm, 0.05 m and 1 rad (UT-Austin-RPL/deoxys_control,
                deoxys/config/osc-pose-controller.yml); VIOLA, BUDS, SAILOR, Sirius, MUTEX
franka_droid    DROID's Cartesian velocity in [-1, 1] at 15 Hz: the share of 0.075 m and 0.15 rad
                that the arm moves in one step (droid/robot_ik/robot_ik_solver.py)
franka_taco     relative actions over 0.02 m and 0.05 rad, clipped to [-1, 1] (TACO-RL's README)
franka_twist    velocities (Berkeley's cable routing)
franka_ee_*     displacements in m and rad        franka_pose_*   absolute poses
"""

from vla_jax.embodiments import _end_effector
from vla_jax.types import Embodiment, ProprioGroup

UNSTATED = _end_effector.UNSTATED
space = _end_effector.space

EMBODIMENT = Embodiment(
    name="franka",
    joints=tuple(f"panda_joint{i}" for i in range(1, 8)),
    joint_limits=(
        (-2.8973, 2.8973),
        (-1.7628, 1.7628),
        (-2.8973, 2.8973),
        (-3.0718, -0.0698),
        (-2.8973, 2.8973),
        (-0.0175, 3.7525),
        (-2.8973, 2.8973),
    ),
    control_hz=20.0,
    views=("primary", "secondary", "wrist"),
    proprio=(
        _end_effector.joints(7),
        _end_effector.GRIPPER,
        _end_effector.EE,
        _end_effector.EE_QUAT,
        ProprioGroup(
            name="ee_euler",
            size=6,
            unit="m, rad",
            meaning="x, y, z, roll, pitch, yaw in the base frame",
            pose="euler_xyz",
        ),
        ProprioGroup(
            name="ee_fingers",
            size=8,
            unit="m, rad, m",
            meaning="x, y, z, axis-angle in the base frame; both fingers",
            pose="rotvec",
        ),
    ),
    action_spaces=(
        space("franka_osc", 20.0, rotation="rotvec", units=("1", "1"), scales=(0.05, 0.5)),
        space("franka_deoxys", 20.0, rotation="rotvec", units=("1", "1"), scales=(0.05, 1.0)),
        space("franka_droid", 15.0, units=("1", "1"), scales=(0.075, 0.15)),
        space("franka_taco", 15.0, composition="add", units=("1", "1"), scales=(0.02, 0.05)),
        space("franka_twist", 10.0, representation="velocity", units=(UNSTATED, UNSTATED)),
        space("franka_ee_3hz", 3.0),
        space("franka_ee_10hz", 10.0),
        space("franka_pose_20hz", 20.0, representation="absolute"),
        space("franka_pose_30hz", 30.0, representation="absolute"),
    ),
)
