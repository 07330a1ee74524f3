"""KUKA LBR iiwa: QT-Opt's bins (Kalashnikov et al. 2018, displacements at 10 Hz) and Stanford's
peg insertion by vision and touch (Lee et al. 2019, 20 Hz, not documented).
"""

from vla_jax.embodiments import _end_effector
from vla_jax.types import Embodiment

EMBODIMENT = Embodiment(
    name="kuka_iiwa",
    joints=tuple(f"joint_a{i}" for i in range(1, 8)),
    joint_limits=tuple((-a, a) for a in (2.967, 2.094, 2.967, 2.094, 2.967, 2.094, 3.054)),
    control_hz=10.0,
    views=("primary",),
    proprio=(
        _end_effector.EE_QUAT,
        _end_effector.RECORDED_POSE,
        _end_effector.joints(7),
        _end_effector.GRIPPER,
    ),
    action_spaces=(
        _end_effector.space("kuka_iiwa_ee", 10.0),
        _end_effector.unstated("kuka_iiwa_touch", 20.0),
    ),
)
