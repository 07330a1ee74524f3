"""Willow Garage PR2 of Tokyo's fridge and table top (Oh et al. 2023): 10 Hz, not documented."""

from vla_jax.embodiments import _end_effector
from vla_jax.types import Embodiment

EMBODIMENT = Embodiment(
    name="pr2",
    joints=(),
    joint_limits=(),
    control_hz=10.0,
    views=("primary",),
    proprio=(_end_effector.EE,),
    action_spaces=(_end_effector.unstated("pr2_ee", 10.0),),
)
