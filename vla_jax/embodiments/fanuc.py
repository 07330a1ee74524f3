"""FANUC LR Mate 200iD of Berkeley (Zhu et al. 2023): end-effector displacements at 10 Hz."""

from vla_jax.embodiments import _end_effector
from vla_jax.types import Embodiment

EMBODIMENT = Embodiment(
    name="fanuc",
    joints=tuple(f"joint_{i}" for i in range(1, 7)),
    joint_limits=(),
    control_hz=10.0,
    views=("primary", "wrist"),
    proprio=(_end_effector.joints(6), _end_effector.GRIPPER),
    action_spaces=(_end_effector.space("fanuc_ee", 10.0),),
)
