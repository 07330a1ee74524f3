"""DLR's EDAN, a light-weight robot arm on a wheelchair (Quere et al. 2020): displacements at 5 Hz.

Orientations are scipy's Rotation.as_euler("zxy"): about the fixed axes, z first.
"""

from vla_jax.embodiments import _end_effector
from vla_jax.types import Embodiment, ProprioGroup

EMBODIMENT = Embodiment(
    name="edan",
    joints=(),
    joint_limits=(),
    control_hz=5.0,
    views=("primary",),
    proprio=(
        ProprioGroup(
            name="ee_zxy",
            size=7,
            unit="m, rad, 1",
            meaning="x, y, z, Euler angles zxy in the base frame; gripper",
            pose="euler_zxy",
        ),
    ),
    action_spaces=(_end_effector.space("edan_ee", 5.0, rotation="euler_zxy"),),
)
