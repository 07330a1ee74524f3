"""Kinova Gen3 of D3Fields (Wang et al. 2023): displacements since the last frame at 1 Hz."""

from vla_jax.embodiments import _end_effector
from vla_jax.types import Embodiment

EMBODIMENT = Embodiment(
    name="kinova_gen3",
    joints=tuple(f"joint_{i}" for i in range(1, 8)),
    joint_limits=(),
    control_hz=1.0,
    views=("primary", "secondary"),
    proprio=(_end_effector.EE,),
    action_spaces=(_end_effector.unstated("kinova_gen3_ee", 1.0),),
)
