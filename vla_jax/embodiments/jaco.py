"""Kinova JACO 2 of jaco_play (Dass et al. 2023): end-effector displacements at 10 Hz, no rotation.

The three rotation numbers are zero, so that the gripper stands where other arms have it.
"""

from vla_jax.embodiments import _end_effector
from vla_jax.types import Embodiment, ProprioGroup

EMBODIMENT = Embodiment(
    name="jaco",
    joints=tuple(f"joint_{i}" for i in range(1, 7)),
    joint_limits=(),
    control_hz=10.0,
    views=("primary", "wrist"),
    proprio=(
        ProprioGroup(
            name="ee_pose",
            size=7,
            unit=_end_effector.UNSTATED,
            meaning="end_effector_cartesian_pos as recorded: x, y, z and an orientation",
        ),
    ),
    action_spaces=(_end_effector.space("jaco_ee", 10.0, units=(_end_effector.UNSTATED, "rad")),),
)
