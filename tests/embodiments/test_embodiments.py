"""Every file of embodiments/ keeps the contract; files are found by listing the folder."""

import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.codecs import actions, rotations
from vla_jax.embodiments._end_effector import UNSTATED
from vla_jax.plugin import UserError
from vla_jax.types import VIEWS, Embodiment

QUANTITIES = {"position", "velocity", "torque", "gripper", "base_twist", "terminate", "rotation"}


@pytest.fixture(params=plugin.names("embodiments"))
def embodiment(request):
    found = plugin.module("embodiments", request.param).EMBODIMENT
    assert isinstance(found, Embodiment) and found.name == request.param
    return found


def test_body(embodiment):
    assert embodiment.views and set(embodiment.views) <= set(VIEWS)
    assert embodiment.control_hz > 0 and hash(embodiment)
    assert len(embodiment.joint_limits) in (0, len(embodiment.joints))
    assert all(low < high for low, high in embodiment.joint_limits)
    names = [group.name for group in embodiment.proprio]
    assert names and len(set(names)) == len(names)
    assert all(group.size > 0 and group.unit and group.meaning for group in embodiment.proprio)
    for group in embodiment.proprio:
        sizes = {None: 0, "position": 3, **{k: 3 + n for k, n in rotations.SIZES.items()}}
        assert sizes[group.pose] <= group.size


def test_action_spaces(embodiment):
    names = [space.name for space in embodiment.action_spaces]
    assert names and len(set(names)) == len(names)
    for space in embodiment.action_spaces:
        assert space.control_hz > 0
        for group in space.groups:
            assert group.quantity in QUANTITIES and group.size > 0 and group.scale > 0
            assert group.representation in ("absolute", "delta", "velocity")
            if group.representation == "delta":
                assert group.reference in (*actions.REFERENCES, UNSTATED)
            if group.quantity == "rotation":
                assert rotations.SIZES[group.rotation] == group.size
                assert group.representation != "delta" or group.composition in (
                    "left",
                    "right",
                    "add",
                )
            if group.quantity == "gripper":
                assert actions.gripper(0.5, group.gripper, group.gripper) == 0.5


def test_names_of_action_spaces_are_distinct():
    """A config may name any bodies together."""
    bodies = [plugin.module("embodiments", n).EMBODIMENT for n in plugin.names("embodiments")]
    names = [space.name for body in bodies for space in body.action_spaces]
    assert len(set(names)) == len(names)


def test_action_spaces_convert_to_absolute_and_back(embodiment):
    for space in embodiment.action_spaces:
        known = (*actions.REFERENCES, "base", "tool", None)
        odd = any({g.reference, g.frame} - set(known) for g in space.groups if g.padding == "zero")
        chunk = np.random.default_rng(0).uniform(-0.5, 0.5, (4, space.size))
        references = {
            group.name: actions.Reference(
                command=np.full(group.size, 0.1),
                measured=np.full((4, group.size), 0.2),
                orientation=np.eye(3)[[1, 2, 0]],
            )
            for group in space.groups
        }
        if odd:  # never guessed
            with pytest.raises(UserError, match="unstated|in the frame"):
                actions.absolute(chunk, space, references)
            continue
        values = actions.absolute(chunk, space, references)
        np.testing.assert_allclose(actions.relative(values, space, references), chunk, atol=1e-9)
