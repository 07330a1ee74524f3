"""WidowX 250 6-DoF as recorded in BridgeData V2 (Walke et al. 2023): end-effector deltas at 5 Hz.

Bridge stores what was commanded: a displacement of the measured end effector, xyz in metres and
roll-pitch-yaw in radians, both in the base frame, and the wished gripper opening (1 = open). The
first action of an episode is zero. Octo relabels xyz and rpy as the difference of two measured
readings (`label="reached"`); that relabelling is the standardizer's business.
"""

from vla_jax.types import ActionGroup, ActionSpace, Embodiment, ProprioGroup

CONTROL_HZ = 5.0

EMBODIMENT = Embodiment(
    name="widowx",
    joints=("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"),
    joint_limits=(
        (-3.1416, 3.1416),
        (-1.885, 1.9897),
        (-2.1468, 1.6057),
        (-3.1416, 3.1416),
        (-1.7453, 2.1468),
        (-3.1416, 3.1416),
    ),
    control_hz=CONTROL_HZ,
    views=("primary", "secondary", "wrist"),
    proprio=(
        ProprioGroup(
            name="ee",
            size=7,
            unit="m, rad, 1",
            meaning="x, y, z, roll, pitch, yaw in the base frame; gripper opening (1 = open)",
            pose="euler_xyz",
        ),
    ),
    action_spaces=(
        ActionSpace(
            name="ee_delta_gripper",
            control_hz=CONTROL_HZ,
            groups=(
                ActionGroup(
                    name="xyz",
                    size=3,
                    quantity="position",
                    representation="delta",
                    reference="measured_now",
                    unit="m",
                ),
                ActionGroup(
                    name="rpy",
                    size=3,
                    quantity="rotation",
                    representation="delta",
                    reference="measured_now",
                    rotation="euler_xyz",
                    composition="left",
                    unit="rad",
                ),
                ActionGroup(
                    name="gripper",
                    size=1,
                    quantity="gripper",
                    representation="absolute",
                    unit="1",
                    gripper="1=open,0=closed",
                    limits=(0.0, 1.0),
                ),
            ),
        ),
    ),
)
