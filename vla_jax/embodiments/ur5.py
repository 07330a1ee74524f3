"""Universal Robots UR5 of Berkeley's AUTOLab (Chen, Adebola & Goldberg): displacements at 5 Hz."""

from vla_jax.embodiments import _end_effector
from vla_jax.types import Embodiment

EMBODIMENT = Embodiment(
    name="ur5",
    joints=("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3"),
    joint_limits=((-6.2832, 6.2832),) * 6,
    control_hz=5.0,
    views=("primary", "wrist"),
    proprio=(_end_effector.EE_QUAT,),
    action_spaces=(_end_effector.space("ur5_ee", 5.0),),
)
