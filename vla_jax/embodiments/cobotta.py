"""DENSO Cobotta of Tokyo's LSMO (Osa 2022): 10 Hz, not documented."""

from vla_jax.embodiments import _end_effector
from vla_jax.types import Embodiment

EMBODIMENT = Embodiment(
    name="cobotta",
    joints=tuple(f"joint_{i}" for i in range(1, 7)),
    joint_limits=(),
    control_hz=10.0,
    views=("primary",),
    proprio=(_end_effector.EE, _end_effector.joints(6)),
    action_spaces=(_end_effector.unstated("cobotta_ee", 10.0),),
)
