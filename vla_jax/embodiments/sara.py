"""DLR's SARA arm pouring and clamping (Padalkar et al. 2023): displacements at 10 Hz.

Orientations are scipy's Rotation.as_euler("zxy"): about the fixed axes, z first.
"""

from vla_jax.embodiments import _end_effector
from vla_jax.types import Embodiment, ProprioGroup

EMBODIMENT = Embodiment(
    name="sara",
    joints=(),
    joint_limits=(),
    control_hz=10.0,
    views=("primary",),
    proprio=(
        ProprioGroup(
            name="ee_zxy_pose",
            size=6,
            unit="m, rad",
            meaning="x, y, z, Euler angles zxy in the base frame",
            pose="euler_zxy",
        ),
    ),
    action_spaces=(_end_effector.space("sara_ee", 10.0, rotation="euler_zxy"),),
)
