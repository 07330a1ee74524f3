"""What the arms of Open X-Embodiment share: an action of 7 numbers (position, rotation, gripper)
and the usual readings of the body. `space` states how the 7 are meant.

Gripper readings count the opening (1 = open), or metres between the fingers where a data set has
them: what is meant stands in the data set's row.
"""

from vla_jax.types import ActionGroup, ActionSpace, ProprioGroup

UNSTATED = "unstated"  # the data set does not say; numbers are taken as they are
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
GRIPPER = ProprioGroup(name="gripper", size=1, unit="1", meaning="gripper opening")


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
    gripper: str = "1=open,0=closed",
) -> ActionSpace:
    """An action space of 7 numbers: `xyz`, `rotation`, `gripper` (absolute).

    Args:
      name, control_hz: of the space.
      representation: "delta", "absolute" or "velocity" of position and rotation.
      reference, composition: of a delta.
      rotation: its kind; None of velocities, which are about x, y, z.
      units, scales: of position and rotation, see ActionGroup.
      gripper: convention of the last number.
    """
    delta, moves = representation == "delta", representation == "velocity"
    shared = dict(representation=representation, reference=reference if delta else None)
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
            ActionGroup(
                name="gripper",
                size=1,
                quantity="gripper",
                representation="absolute",
                unit="1",
                gripper=gripper,
                limits=(0.0, 1.0),
            ),
        ),
    )
