"""KUKA LBR iiwa of QT-Opt's bins (Kalashnikov et al. 2018): end-effector displacements at 10 Hz."""

from vla_jax.embodiments import _end_effector
from vla_jax.types import Embodiment

EMBODIMENT = Embodiment(
    name="kuka_iiwa",
    joints=tuple(f"joint_a{i}" for i in range(1, 8)),
    joint_limits=tuple((-a, a) for a in (2.967, 2.094, 2.967, 2.094, 2.967, 2.094, 3.054)),
    control_hz=10.0,
    views=("primary",),
    proprio=(_end_effector.EE_QUAT,),
    action_spaces=(_end_effector.space("kuka_iiwa_ee", 10.0),),
)
