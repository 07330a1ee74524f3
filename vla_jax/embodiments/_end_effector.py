"""What the arms of Open X-Embodiment share: an action of 7 numbers (position, rotation, gripper)
or of joints and a gripper, and the usual readings of the body.

Gripper readings count the opening (1 = open), or metres between the fingers where a data set has
them: what is meant stands in the data set's row.
"""

from vla_jax.types import ActionGroup, ActionSpace, ProprioGroup

UNSTATED = "unstated"  # the data set does not say; numbers are taken as they are, and not converted
EE = ProprioGroup(
    name="ee",
    size=7,
    unit="m, rad, 1",
    meaning="x, y, z, roll, pitch, yaw in the base frame; gripper",
    pose="euler_xyz",
)
EE_QUAT = ProprioGroup(
    name="ee_quat",
    size=8,
    unit="m, 1, 1",
    meaning="x, y, z, quaternion (x, y, z, w) in the base frame; gripper",
    pose="quat_xyzw",
)
EE_POSE = ProprioGroup(
    name="ee_pose",
    size=7,
    unit="m, 1",
    meaning="x, y, z, quaternion (x, y, z, w) in the base frame",
    pose="quat_xyzw",
)
RECORDED_POSE = ProprioGroup(
    name="ee_recorded",
    size=7,
    unit=UNSTATED,
    meaning="x, y, z and an orientation of 4 numbers, whose order is not documented",
)
EE_EULER = ProprioGroup(
    name="ee_euler",
    size=6,
    unit="m, rad",
    meaning="x, y, z, roll, pitch, yaw in the base frame",
    pose="euler_xyz",
)
GRIPPER = ProprioGroup(name="gripper", size=1, unit="1", meaning="gripper opening")
OPENING = ActionGroup(
    name="gripper",
    size=1,
    quantity="gripper",
    representation="absolute",
    unit="1",
    gripper="1=open,0=closed",
    limits=(0.0, 1.0),
)


def joints(count: int) -> ProprioGroup:
    """The reading of an arm's joint angles, rad."""
    return ProprioGroup(name="joints", size=count, unit="rad", meaning="joint angles")


def space(
    name: str,
    control_hz: float,
    *,
    representation: str = "delta",
    reference: str | None = "measured_now",
    rotation: str = "euler_xyz",
    composition: str | None = "left",
    units: tuple[str, str] = ("m", "rad"),
    scales: tuple[float, float] = (1.0, 1.0),
    frame: str = "base",
) -> ActionSpace:
    """An action space of 7 numbers: `xyz`, `rotation`, `gripper` (absolute).

    Args:
      name, control_hz: of the space.
      representation: "delta", "absolute" or "velocity" of position and rotation.
      reference, composition: of a delta.
      rotation: its kind; None of velocities, which are about x, y, z.
      units, scales: of position and rotation, see ActionGroup.
      frame: of a delta: base or tool.
    """
    delta, moves = representation == "delta", representation == "velocity"
    shared = dict(representation=representation, reference=reference if delta else None)
    shared["frame"] = frame
    return ActionSpace(
        name=name,
        control_hz=control_hz,
        groups=(
            ActionGroup(
                name="xyz",
                size=3,
                quantity="velocity" if moves else "position",
                unit=units[0],
                scale=scales[0],
                **shared,
            ),
            ActionGroup(
                name="rotation",
                size=3,
                quantity="velocity" if moves else "rotation",
                rotation=None if moves else rotation,
                composition=composition if delta else None,
                unit=units[1],
                scale=scales[1],
                **shared,
            ),
            OPENING,
        ),
    )


def unstated(name: str, control_hz: float) -> ActionSpace:
    """7 numbers that Octo takes for displacements; from where, in what unit, is not documented."""
    return space(name, control_hz, reference=UNSTATED, units=(UNSTATED, UNSTATED), frame=UNSTATED)


def joint_space(
    name: str,
    control_hz: float,
    count: int,
    *,
    representation: str = "delta",
    reference: str | None = "measured_now",
    label: str = "commanded",
) -> ActionSpace:
    """An action space of `count` joint positions in rad and a gripper (absolute)."""
    arm = ActionGroup(
        name="joints",
        size=count,
        quantity="position",
        representation=representation,
        reference=reference if representation == "delta" else None,
        unit="rad",
        label=label,
    )
    return ActionSpace(name=name, control_hz=control_hz, groups=(arm, OPENING))
