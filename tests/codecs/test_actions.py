import dataclasses
import itertools

import numpy as np
import pytest

from vla_jax.codecs import actions
from vla_jax.embodiments import sawyer_cards, widowx
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
