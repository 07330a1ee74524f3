"""UFACTORY xArm in several hands.

xarm_table      Language Table's pusher: displacements in the plane (Lynch et al. 2022)
xarm_pose       UCSD's kitchen: absolute poses in mm and degrees (Yan et al. 2023)
xarm_twist      UCSD's pick and place: velocities (Feng et al. 2023)
xarm_rot        NYU's ROT: displacements (Haldar et al. 2023)
xarm_weblab     Tokyo's two arms (Matsushima et al. 2023): not documented
xarm_joints     Berkeley's MVP: joint displacements (Radosavovic et al. 2022)
"""

import math

from vla_jax.embodiments import _end_effector
from vla_jax.types import Embodiment, ProprioGroup

UNSTATED = _end_effector.UNSTATED
space = _end_effector.space

EMBODIMENT = Embodiment(
    name="xarm",
    joints=tuple(f"joint{i}" for i in range(1, 8)),
    joint_limits=(),
    control_hz=10.0,
    views=("primary", "secondary", "wrist"),
    proprio=(
        _end_effector.joints(7),
        ProprioGroup(name="effector", size=2, unit="m", meaning="x, y of the pusher on the table"),
        _end_effector.EE,
        _end_effector.RECORDED_POSE,
        _end_effector.GRIPPER,
        ProprioGroup(
            name="ee_ypr",
            size=6,
            unit=UNSTATED,
            meaning="x, y, z, yaw, pitch, roll",
        ),
    ),
    action_spaces=(
        space("xarm_table", 10.0),
        space(
            "xarm_pose",
            2.0,
            representation="absolute",
            units=("mm", "deg"),
            scales=(1e-3, math.pi / 180),
        ),
        space("xarm_twist", 3.0, representation="velocity", units=(UNSTATED, UNSTATED)),
        space("xarm_rot", 3.0),
        _end_effector.unstated("xarm_weblab", 10.0),
        _end_effector.joint_space("xarm_joints", 5.0, 7),
    ),
)
