"""UFACTORY xArm: Language Table's pusher (Lynch et al. 2022, displacements in the plane at 10 Hz)
and UCSD's kitchen (Yan et al. 2023, absolute poses at 2 Hz in mm and degrees).
"""

import math

from vla_jax.embodiments import _end_effector
from vla_jax.types import Embodiment, ProprioGroup

EMBODIMENT = Embodiment(
    name="xarm",
    joints=tuple(f"joint{i}" for i in range(1, 8)),
    joint_limits=(),
    control_hz=10.0,
    views=("primary", "secondary", "wrist"),
    proprio=(
        _end_effector.joints(7),
        ProprioGroup(name="effector", size=2, unit="m", meaning="x, y of the pusher on the table"),
    ),
    action_spaces=(
        _end_effector.space("xarm_table", 10.0),
        _end_effector.space(
            "xarm_pose",
            2.0,
            representation="absolute",
            units=("mm", "deg"),
            scales=(1e-3, math.pi / 180),
        ),
    ),
)
