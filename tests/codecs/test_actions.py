import dataclasses
import itertools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vla_jax.codecs import actions, rotations
from vla_jax.embodiments import franka, sawyer_cards, widowx, widowx_reached
from vla_jax.plugin import UserError
from vla_jax.types import ActionGroup, ActionSpace

C = 6
RNG = np.random.default_rng(0)
MEASURED = {
    "xyz": RNG.uniform(-0.3, 0.3, (C, 3)),
    "rpy": RNG.uniform(-1, 1, (C, 3)),
    "gripper": RNG.uniform(0, 1, (C, 1)),
}
ORIENTATION = np.linalg.qr(RNG.standard_normal((C, 3, 3)))[0]
REFERENCES = {
    name: actions.Reference(command=values[0] + 0.01, measured=values, orientation=ORIENTATION)
    for name, values in MEASURED.items()
}


def space(reference, frame="base", composition="left"):
    """WidowX's action space with another reference; None = absolute."""
    changes = dict(representation="delta" if reference else "absolute", reference=reference)
    groups = [
        dataclasses.replace(g, **changes, **extra) if g.name != "gripper" else g
        for g, extra in zip(
            widowx.EMBODIMENT.action_spaces[0].groups,
            (dict(frame=frame, scale=0.01), dict(composition=composition), {}),
        )
    ]
    return ActionSpace(name=f"{reference}", groups=tuple(groups), control_hz=5.0)


SPACES = [
    space(None),
    space("previous_command"),
    space("measured_now", composition="right"),
    space("measured_now", frame="tool"),
    space("chunk_start"),
]


@pytest.mark.parametrize("source, target", list(itertools.permutations(range(len(SPACES)), 2)))
def test_conversion_round_trip(source, target):
    chunk = RNG.uniform(-0.5, 0.5, (C, 7))
    there = actions.convert(chunk, SPACES[source], SPACES[target], REFERENCES, REFERENCES)
    back = actions.convert(there, SPACES[target], SPACES[source], REFERENCES, REFERENCES)
    np.testing.assert_allclose(back, chunk, atol=1e-8)


def test_absolute_values_by_hand():
    chunk = np.zeros((3, 4))
    chunk[:, 0], chunk[:, 3] = (1.0, 1.0, -0.5), 1.0
    sawyer = sawyer_cards.EMBODIMENT.action_spaces[0]
    start = actions.Reference(command=np.array([0.1, 0.6, 0.2]))
    values = actions.absolute(chunk, sawyer, {"xyz": start})
    np.testing.assert_allclose(values["xyz"][:, 0], [0.11, 0.12, 0.115])
    np.testing.assert_allclose(values["xyz"][:, 1:], [[0.6, 0.2]] * 3)
    from_start = dataclasses.replace(
        sawyer, groups=(dataclasses.replace(sawyer.groups[0], reference="chunk_start"),)
    )
    start = actions.Reference(measured=np.array([0.1, 0.6, 0.2]))
    values = actions.absolute(chunk[:, :3], from_start, {"xyz": start})
    np.testing.assert_allclose(values["xyz"][:, 0], [0.11, 0.11, 0.095])


def test_rotation_side():
    quarter_z, quarter_x = (0, 0, np.pi / 2), (np.pi / 2, 0, 0)
    group = ActionGroup(
        name="rpy", size=3, quantity="rotation", representation="delta", rotation="euler_xyz",
        reference="chunk_start", composition="left", unit="rad",
    )  # fmt: skip
    reference = {"rpy": actions.Reference(measured=np.array(quarter_x))}
    for side, image_of_y in (("left", (0, 0, 1)), ("right", (-1, 0, 0))):
        turned = dataclasses.replace(group, composition=side)
        one = ActionSpace(name="turn", groups=(turned,), control_hz=5.0)
        matrix = actions.absolute(np.array([quarter_z]), one, reference)["rpy"][0]
        np.testing.assert_allclose(matrix @ (0, 1, 0), image_of_y, atol=1e-12)


def test_gripper_conventions():
    opened = actions.gripper([1.0, 0.0, 0.5], "1=open,0=closed", "1=closed,-1=open")
    np.testing.assert_allclose(opened, [-1.0, 1.0, 0.0])
    with pytest.raises(UserError, match="expected two points"):
        actions.gripper([1.0], "1=open", "1=closed,-1=open")


def test_errors():
    sawyer = sawyer_cards.EMBODIMENT.action_spaces[0]
    with pytest.raises(UserError, match=r"expected \[C, 4\]"):
        actions.absolute(np.zeros((2, 3)), sawyer, {})
    with pytest.raises(UserError, match=r"needs Reference\(command="):
        actions.absolute(np.zeros((2, 4)), sawyer, {})
    short = {name: actions.Reference(measured=value[:2]) for name, value in MEASURED.items()}
    with pytest.raises(UserError, match="2 readings for 6 actions"):
        actions.absolute(np.zeros((C, 7)), space("measured_now"), short)
    with pytest.raises(UserError, match="unknown 'rpy'"):
        actions.convert(np.zeros((2, 4)), sawyer, space(None), {
            "xyz": actions.Reference(command=np.zeros(3))}, {})  # fmt: skip


# Episodes in another action space of their body.

FRANKA = franka.EMBODIMENT
SPACE = {space.name: space for space in FRANKA.action_spaces}
T = 9


def recorded(seed=0):
    """(actions [T, 7], raw proprio, orientations) of a random episode."""
    rng = np.random.default_rng(seed)
    turns = Rotation.from_euler("xyz", rng.uniform(-1, 1, (T, 3)))
    pose = np.concatenate([rng.uniform(-0.5, 0.5, (T, 3)), turns.as_quat(), np.ones((T, 1))], 1)
    return rng.uniform(-0.6, 0.6, (T, 7)), {"ee_quat": pose}, turns


@pytest.mark.parametrize("target", ["franka_pose_20hz", "franka_droid", "franka_ee_10hz"])
@pytest.mark.parametrize("source", ["franka_osc", "franka_taco", "franka_pose_30hz"])
def test_recorded_actions_round_trip(source, target):
    chunk, proprio, _ = recorded()
    there = actions.convert_recorded(chunk, proprio, FRANKA, SPACE[source], SPACE[target])
    assert there.shape == (T, 7) and there.dtype == np.float32
    back = actions.convert_recorded(there, proprio, FRANKA, SPACE[target], SPACE[source])
    np.testing.assert_allclose(back, chunk, atol=2e-5)


def test_recorded_poses_agree_with_scipy():
    chunk, proprio, turns = recorded(1)
    osc = actions.convert_recorded(
        chunk, proprio, FRANKA, SPACE["franka_osc"], SPACE["franka_pose_20hz"]
    )
    position = proprio["ee_quat"][:, :3]
    np.testing.assert_allclose(osc[:, :3], position + 0.05 * chunk[:, :3], atol=1e-6)
    turned = Rotation.from_rotvec(0.5 * chunk[:, 3:6]) * turns
    np.testing.assert_allclose(osc[:, 3:6], turned.as_euler("xyz"), atol=1e-6)
    np.testing.assert_allclose(osc[:, 6], chunk[:, 6], atol=1e-6)
    taco = actions.convert_recorded(
        chunk, proprio, FRANKA, SPACE["franka_taco"], SPACE["franka_pose_20hz"]
    )
    added = turns.as_euler("xyz") + 0.05 * chunk[:, 3:6]
    np.testing.assert_allclose(taco[:, 3:6], added, atol=1e-6)


def test_tool_frame_and_previous_command_of_an_episode():
    """Displacements in the tool's axes, from the command before: summed up by hand."""
    chunk, proprio, turns = recorded(2)
    xyz, rotation, grip = SPACE["franka_ee_10hz"].groups
    stepwise = dict(reference="previous_command", frame="tool")
    tool = ActionSpace(
        name="tool",
        control_hz=10.0,
        groups=(
            dataclasses.replace(xyz, **stepwise),
            dataclasses.replace(rotation, reference="previous_command", composition="right"),
            grip,
        ),
    )
    pose = actions.convert_recorded(chunk, proprio, FRANKA, tool, SPACE["franka_pose_20hz"])
    place, turn = proprio["ee_quat"][0, :3], turns[0]
    for step in range(T):
        place = place + turns[step].apply(chunk[step, :3])
        turn = turn * Rotation.from_euler("xyz", chunk[step, 3:6])
        np.testing.assert_allclose(pose[step, :3], place, atol=1e-6)
        np.testing.assert_allclose(
            Rotation.from_euler("xyz", pose[step, 3:6]).as_matrix(), turn.as_matrix(), atol=1e-6
        )


def test_joints_are_measured_by_the_group_of_their_name():
    joints = ActionGroup(
        name="joints", size=7, quantity="position", representation="absolute", unit="rad"
    )
    delta = dataclasses.replace(joints, representation="delta", reference="measured_now")
    spaces = [
        ActionSpace(name=n, groups=(g,), control_hz=5.0)
        for n, g in (("pose", joints), ("delta", delta))
    ]
    wished = RNG.uniform(-1, 1, (T, 7))
    proprio = {"joints": RNG.uniform(-1, 1, (T, 7)), "ee_quat": recorded()[1]["ee_quat"]}
    made = actions.convert_recorded(wished, proprio, FRANKA, *spaces)
    np.testing.assert_allclose(made, wished - proprio["joints"], atol=1e-6)


def test_recorded_errors():
    chunk, proprio, _ = recorded()
    pose, osc = SPACE["franka_pose_20hz"], SPACE["franka_osc"]
    with pytest.raises(UserError, match=r"recorded proprio: \['joints'\]; poses of franka: \['ee'"):
        actions.convert_recorded(chunk, {"joints": np.zeros((T, 7))}, FRANKA, osc, pose)
    with pytest.raises(UserError, match="only deltas and absolute values of one frame|velocity"):
        actions.convert_recorded(chunk, proprio, FRANKA, SPACE["franka_twist"], pose)
    start = dataclasses.replace(
        osc, groups=tuple(dataclasses.replace(g, reference="chunk_start") for g in osc.groups[:2])
    )
    with pytest.raises(UserError, match="counts xyz from a chunk's start; an episode has none"):
        actions.convert_recorded(chunk, proprio, FRANKA, pose, start)
    (commanded,) = widowx.EMBODIMENT.action_spaces
    (reached,) = widowx_reached.EMBODIMENT.action_spaces
    with pytest.raises(UserError, match="xyz was commanded, expected reached"):
        actions.convert_recorded(chunk, {}, widowx.EMBODIMENT, commanded, reached)
    assert actions.convert_recorded(chunk, {}, FRANKA, osc, osc).dtype == np.float32


def test_added_angles():
    """A delta that is added angle by angle: Octo's relabelled Bridge; the short way round."""
    (reached,) = widowx_reached.EMBODIMENT.action_spaces
    now = np.array([[0.0, 0.2, 3.1]])
    found = {"rpy": actions.Reference(measured=now), "xyz": actions.Reference(measured=now)}
    values = actions.absolute(np.array([[0, 0, 0, 0.1, 0.1, 0.1, 1.0]]), reached, found)
    expected = Rotation.from_euler("xyz", [0.1, 0.3, 3.2]).as_matrix()
    np.testing.assert_allclose(values["rpy"][0], expected, atol=1e-12)
    back = actions.relative(values, reached, found)
    np.testing.assert_allclose(back[0, 3:6], [0.1, 0.1, 0.1], atol=1e-9)
    wrong = dataclasses.replace(reached.groups[1], size=4, rotation="quat_xyzw")
    space = ActionSpace(name="wrong", groups=(wrong,), control_hz=5.0)
    with pytest.raises(UserError, match="only Euler angles and rotation vectors add"):
        actions.absolute(np.ones((1, 4)), space, {})


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", list(rotations.SIZES))
def test_rotation_deltas_of_every_kind_compose_as_scipys(kind, side):
    """From the command before, the reading now and the chunk's start, there and back."""
    rng = np.random.default_rng(0)
    steps, readings = Rotation.random(C, random_state=1), Rotation.random(C, random_state=2)
    first = Rotation.random(random_state=3)
    group = ActionGroup(
        name="turn", size=rotations.SIZES[kind], quantity="rotation", representation="delta",
        rotation=kind, composition=side, unit="rad",
    )  # fmt: skip
    given = actions.Reference(
        command=rotations.from_matrix(first.as_matrix(), kind),
        measured=rotations.from_matrix(readings.as_matrix(), kind),
    )
    chunk = rotations.from_matrix(steps.as_matrix(), kind)
    if "quat" in kind or kind == "6d":  # neither need be normalised
        chunk = chunk * rng.uniform(0.5, 2.0, (C, 1))

    def turned(step, base):
        return step * base if side == "left" else base * step

    before, bases = first, {name: [] for name in actions.REFERENCES}
    for step in range(C):
        bases["previous_command"].append(before)
        before = turned(steps[step], before)
        bases["measured_now"].append(readings[step])
        bases["chunk_start"].append(readings[0])
    for reference, base in bases.items():
        one = dataclasses.replace(group, reference=reference)
        space = ActionSpace(name="turns", groups=(one,), control_hz=5.0)
        expected = [turned(steps[i], base[i]).as_matrix() for i in range(C)]
        values = actions.absolute(chunk, space, {"turn": given})
        np.testing.assert_allclose(values["turn"], expected, atol=1e-9)
        back = actions.relative(values, space, {"turn": given})
        np.testing.assert_allclose(rotations.to_matrix(back, kind), steps.as_matrix(), atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_gripper_conventions_round_trip(seed):
    rng = np.random.default_rng(seed)
    names = ["1=open,0=closed", "0=open,1=closed", "1=closed,-1=open", "0.08=open,0=closed"]
    values = rng.uniform(-1, 2, 20)
    for source, target in itertools.permutations(names, 2):
        there = actions.gripper(values, source, target)
        np.testing.assert_allclose(actions.gripper(there, target, source), values, atol=1e-9)
        for through in names:  # whichever way round
            twice = actions.gripper(actions.gripper(values, source, through), through, target)
            np.testing.assert_allclose(twice, there, atol=1e-9)
