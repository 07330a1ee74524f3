"""Meta-World's Sawyer before the card table: one camera, position deltas and a closed gripper."""

from vla_jax.types import ActionGroup, ActionSpace, Embodiment, ProprioGroup

CONTROL_HZ = 80.0  # 5 simulator steps of 2.5 ms per control tick

JOINTS = ("right_j0", "right_j1", "right_j2", "right_j3", "right_j4", "right_j5", "right_j6")
JOINT_LIMITS = (
    (-3.0503, 3.0503),
    (-3.8, -0.5),
    (-3.0426, 3.0426),
    (-3.0439, 3.0439),
    (-2.9761, 2.9761),
    (-2.9761, 2.9761),
    (-4.7124, 4.7124),
)

# Meta-World's own action: the commanded hand position moves by up to 1 cm per tick and axis.
XYZ = ActionGroup(
    name="xyz",
    size=3,
    quantity="position",
    representation="delta",
    reference="previous_command",
    frame="base",
    unit="cm",
    scale=0.01,
    label="commanded",
    limits=(-1.0, 1.0),
)
GRIPPER = ActionGroup(
    name="gripper",
    size=1,
    quantity="gripper",
    representation="absolute",
    unit="1",
    gripper="1=closed,-1=open",
    label="commanded",
    limits=(-1.0, 1.0),
)
HAND = ProprioGroup(
    name="hand",
    size=3,
    unit="m",
    meaning="x, y, z of the fingertip (tcp) in the base frame",
    pose="position",
)

EMBODIMENT = Embodiment(
    name="sawyer_cards",
    joints=JOINTS,
    joint_limits=JOINT_LIMITS,
    control_hz=CONTROL_HZ,
    views=("primary",),
    proprio=(HAND,),
    action_spaces=(
        ActionSpace(name="sawyer_xyz_gripper", groups=(XYZ, GRIPPER), control_hz=CONTROL_HZ),
    ),
)
