"""Rethink Sawyer: RoboTurk (Mandlekar et al. 2019, displacements at 10 Hz), MaskViT (Gupta et al.
2022, bounded displacements and yaw), Imperial College (displacements in the tool's frame, 10 Hz).
"""

from vla_jax.embodiments import _end_effector, sawyer_cards
from vla_jax.types import Embodiment

EMBODIMENT = Embodiment(
    name="sawyer",
    joints=sawyer_cards.JOINTS,
    joint_limits=sawyer_cards.JOINT_LIMITS,
    control_hz=10.0,
    views=("primary", "wrist"),
    proprio=(_end_effector.EE, _end_effector.joints(7), _end_effector.GRIPPER),
    action_spaces=(
        _end_effector.space("sawyer_ee", 10.0),
        _end_effector.unstated("sawyer_maskvit", 10.0),
        _end_effector.space("sawyer_tool", 10.0, frame="tool", composition="right"),
    ),
)
