"""Open-loop error against a policy whose mistakes are known."""

import dataclasses

import numpy as np
import pytest

from tests.data.conftest import ARM, episode, write_folder
from vla_jax import plugin
from vla_jax.data import images


@pytest.fixture
def open_loop(monkeypatch):
    """The module, with a policy that knows the recording and adds 0.5 to dim 1."""
    from types import SimpleNamespace

    from vla_jax.evals import open_loop

    class Knowing:
        def __init__(self, **arguments):
            self.asked = arguments
            self.row_spaces = ARM.action_spaces * arguments["rows"]
            self.stream = SimpleNamespace(
                window=2, action_horizon=3, resize="area", image_sizes={"primary": (16, 16)}
            )
            self.seen = [[] for _ in range(arguments["rows"])]

        def reset(self, row):
            self.seen[row] = []

        def observe(self, row, observation):
            assert images.decode(observation["images"]["primary"]).shape == (16, 16, 3)
            self.seen[row].append(observation["proprio"]["hand"])

        def act(self, instructions):
            assert all(text.startswith("touch the") for text in instructions)
            chunks = []
            for history in self.seen:
                number, t = (int(round(float(history[-1][i] * 10))) for i in (2, 1))
                assert len(history) == min(t + 1, 2)
                steps = t + np.arange(3)
                chunk = np.stack([np.full(3, number), steps + 0.5, -steps, steps % 2], axis=-1)
                chunks.append(chunk)
            return np.stack(chunks).astype(np.float32), {}

    load = staticmethod(lambda folder, **arguments: Knowing(**arguments))
    monkeypatch.setattr(open_loop.policy_lib, "Policy", SimpleNamespace(load=load))
    return open_loop


def test_errors_per_dim_in_raw_units_and_percent(open_loop, tmp_path):
    folder = str(write_folder(tmp_path / "arm_data", [episode(i) for i in range(3)]))
    found = open_loop.open_loop("run", folder)
    assert found.dims == ("xyz.0", "xyz.1", "xyz.2", "grip")
    np.testing.assert_allclose(found.error, [0.0, 0.5, 0.0, 0.0], atol=1e-6)
    assert found.range == (2.0, 6.0, 6.0, 1.0)
    assert found.percent == pytest.approx((0.0, 100 * 0.5 / 6, 0.0, 0.0), abs=1e-6)
    assert found.worst == pytest.approx(100 * 0.5 / 6)
    assert (found.episodes, found.steps) == (3, 21)
    assert "8.33" in found.table() and found.summary()["worst"] == found.worst


def test_data_in_another_action_space_of_the_body_are_converted(open_loop, tmp_path, monkeypatch):
    (space,) = ARM.action_spaces
    xyz, grip = space.groups
    xyz = dataclasses.replace(xyz, representation="absolute")
    closing, opening = (
        dataclasses.replace(
            space, name=name, groups=(xyz, dataclasses.replace(grip, gripper=convention))
        )
        for name, convention in ((space.name, "1=closed,0=open"), ("opening", "1=open,0=closed"))
    )
    body = dataclasses.replace(ARM, action_spaces=(closing, opening))
    folder = str(write_folder(tmp_path / "arm_data", [episode(i) for i in range(3)]))
    load = open_loop.policy_lib.Policy.load

    def loaded(folder, **arguments):
        policy = load(folder, **arguments)
        policy.row_spaces = (opening,) * arguments["rows"]
        return policy

    monkeypatch.setattr(open_loop.policy_lib.Policy, "load", loaded)
    # The policy knows the recording, and so is wrong wherever it is turned over.
    found = open_loop.open_loop("run", folder, body=body)
    np.testing.assert_allclose(found.error, [0.0, 0.5, 0.0, 1.0], atol=1e-6)


def test_a_policy_sees_what_training_by_the_row_saw(open_loop, tmp_path, monkeypatch):
    folder = str(write_folder(tmp_path / "arm_data", [episode(i) for i in range(2)]))
    row = dict(
        embodiment="arm",
        action_space="xyz_gripper",
        views={"primary": "observation/images/primary"},
        action="action",
        proprio={"hand": "observation/proprio/hand"},
        language="language_instruction",
        turned=True,
    )
    load, shown = open_loop.policy_lib.Policy.load, []

    def loaded(folder, **arguments):
        policy = load(folder, **arguments)
        observe = policy.observe

        def see(number, observation):
            image = observation["images"]["primary"]
            shown.append(image)
            observe(number, observation | {"images": {"primary": images.png(image)}})

        policy.observe = see
        return policy

    monkeypatch.setattr(open_loop.policy_lib.Policy, "load", loaded)
    open_loop.open_loop("run", folder, standardizer=dict(type="rows", row=row))
    _, stored = open_loop.recordings.recorded(folder)
    (first,) = stored("primary", 0, [0])
    np.testing.assert_array_equal(shown[0], np.rot90(images.decode(first), 2))
    assert np.any(shown[0] != images.decode(first))


def test_one_episode_and_a_dim_that_never_changes(open_loop, tmp_path):
    folder = str(write_folder(tmp_path / "arm_data", [episode(i) for i in range(3)]))
    found = open_loop.open_loop("run", folder, episodes=1)
    assert found.percent[0] is None and found.episodes == 1
    assert "constant" in found.table()


def test_held_out_episodes_are_the_others(open_loop, tmp_path):
    folder = str(write_folder(tmp_path / "arm_data", [episode(i) for i in range(5)]))
    parts = [
        open_loop.open_loop("run", folder, holdout=0.2, train=t).episodes for t in (True, False)
    ]
    assert parts == [4, 1]


def test_data_of_another_robot_are_refused(open_loop, tmp_path):
    folder = str(write_folder(tmp_path / "arm_data", [episode(0)]))
    table, read = open_loop.recordings.recorded(folder)
    policy = open_loop.policy_lib.Policy.load("run", rows=1)
    policy.stream.image_sizes["wrist"] = (16, 16)
    with pytest.raises(plugin.UserError, match="unknown 'wrist'"):
        open_loop._Replay(policy, table, read)
