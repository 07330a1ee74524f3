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

import dataclasses

from vla_jax.embodiments import _end_effector
from vla_jax.types import ActionGroup, Embodiment, ProprioGroup

UNSTATED = _end_effector.UNSTATED
space = _end_effector.space

FINGERS = ActionGroup(
    name="gripper", size=1, quantity="velocity", representation="velocity", unit=UNSTATED
)

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
        _end_effector.EE_EULER,
        _end_effector.EE_POSE,
        _end_effector.RECORDED_POSE,
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
        space("franka_ee_5hz", 5.0),
        # ManiSkill2: the frame of its displacements is not documented
        space(
            "franka_maniskill",
            20.0,
            rotation="rotvec",
            frame=UNSTATED,
            units=("1", "1"),
            scales=(0.1, 0.1),
        ),
        space("franka_kaist", 10.0, rotation="rotvec"),  # "multiplied on the left-hand side"
        dataclasses.replace(
            space("franka_robocook", 5.0, representation="velocity", units=("m/s", "rad/s")),
            groups=(
                *space("", 5.0, representation="velocity", units=("m/s", "rad/s")).groups[:2],
                FINGERS,
            ),
        ),
        _end_effector.unstated("franka_fmb", 10.0),
        _end_effector.joint_space("franka_joints_reached", 10.0, 7, label="reached"),
        _end_effector.joint_space("franka_roboset", 5.0, 7, representation="absolute"),
        space("franka_pose_20hz", 20.0, representation="absolute"),
        space("franka_pose_30hz", 30.0, representation="absolute"),
    ),
)
