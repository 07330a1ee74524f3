"""Universal Robots UR5: Berkeley's AUTOLab (Chen, Adebola & Goldberg, displacements at 5 Hz),
Columbia's Push-T (Chi et al. 2023, displacements at 10 Hz), ASU's table top (Zhou et al. 2022, the
pose at the next step, 12.5 Hz).
"""

from vla_jax.embodiments import _end_effector
from vla_jax.types import Embodiment, ProprioGroup

EMBODIMENT = Embodiment(
    name="ur5",
    joints=("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3"),
    joint_limits=((-6.2832, 6.2832),) * 6,
    control_hz=5.0,
    views=("primary", "wrist"),
    proprio=(
        _end_effector.EE_QUAT,
        _end_effector.EE,
        _end_effector.joints(6),
        ProprioGroup(name="effector", size=2, unit="m", meaning="x, y of the pusher on the table"),
    ),
    action_spaces=(
        _end_effector.space("ur5_ee", 5.0),
        _end_effector.space("ur5_pusht", 10.0),
        _end_effector.space("ur5_asu", 12.5, representation="absolute"),
    ),
)
