"""ALOHA, two ViperX arms with six joints and a gripper each (Zhao et al. 2023), and Mobile ALOHA,
the same on wheels (Fu et al. 2024): absolute joint positions, here at 10 Hz of the recorded 50.
"""

from vla_jax.types import ActionGroup, ActionSpace, Embodiment, ProprioGroup

SIDES = ("left", "right")
ARMS = tuple(
    group
    for side in SIDES
    for group in (
        ActionGroup(
            name=f"{side}_joints",
            size=6,
            quantity="position",
            representation="absolute",
            unit="rad",
        ),
        ActionGroup(
            name=f"{side}_gripper",
            size=1,
            quantity="gripper",
            representation="absolute",
            unit="1",
            gripper="1=open,0=closed",
        ),
    )
)
BASE = ActionGroup(
    name="base",
    size=2,
    quantity="base_twist",
    representation="velocity",
    unit="m/s, rad/s",
)
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")

EMBODIMENT = Embodiment(
    name="aloha",
    joints=tuple(f"{side}_{joint}" for side in SIDES for joint in JOINTS),
    joint_limits=(),
    control_hz=10.0,
    views=("primary", "secondary", "left_wrist", "right_wrist"),
    proprio=(
        ProprioGroup(
            name="arms",
            size=14,
            unit="rad, 1",
            meaning="left: 6 joints, gripper (1 = open); right: the same",
        ),
    ),
    action_spaces=(
        ActionSpace(name="aloha_joints", groups=ARMS, control_hz=10.0),
        ActionSpace(name="aloha_joints_base", groups=(*ARMS, BASE), control_hz=10.0),
    ),
)
