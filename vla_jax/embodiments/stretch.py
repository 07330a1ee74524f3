"""Hello Robot Stretch: door opening with a hand-held gripper's velocities (Pari et al. 2021, 3 Hz),
kitchen tasks with end-effector displacements (Mendonca et al. 2023, 10 Hz), Dobb-E's homes with
those of its stick (Shafiullah et al. 2023, 30 Hz).
"""

from vla_jax.embodiments import _end_effector
from vla_jax.types import Embodiment

UNSTATED = _end_effector.UNSTATED

EMBODIMENT = Embodiment(
    name="stretch",
    joints=("base", "lift", "arm", "wrist"),
    joint_limits=(),
    control_hz=10.0,
    views=("primary", "wrist"),
    proprio=(_end_effector.EE,),
    action_spaces=(
        _end_effector.space(
            "stretch_twist", 3.0, representation="velocity", units=(UNSTATED, UNSTATED)
        ),
        _end_effector.space("stretch_ee", 10.0),
        _end_effector.unstated("stretch_dobbe", 30.0),
    ),
)
