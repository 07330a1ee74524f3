"""Data sets of several arms under one name: RoboNet's seven (Dasari et al. 2019, 1 Hz) and RH20T's
four (Fang et al. 2023, 10 Hz). What their actions are measured from is not documented.
"""

from vla_jax.embodiments import _end_effector
from vla_jax.types import Embodiment

EMBODIMENT = Embodiment(
    name="several_arms",
    joints=(),
    joint_limits=(),
    control_hz=10.0,
    views=("primary", "secondary", "wrist"),
    proprio=(_end_effector.EE,),
    action_spaces=(
        _end_effector.unstated("robonet_ee", 1.0),
        _end_effector.unstated("rh20t_ee", 10.0),
    ),
)
