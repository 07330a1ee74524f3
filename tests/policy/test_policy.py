"""A policy from its folder alone: the same numbers as in training, nothing guessed."""

import dataclasses
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from vla_jax import plugin, trees
from vla_jax.data import images
from vla_jax.data.sources import rlds

PROJECT = pathlib.Path(__file__).resolve().parents[2]
ASK = ["touch the cat"]

WITHOUT_TENSORFLOW = """
import sys
import numpy as np
from vla_jax.policy import policy
robot = policy.Policy.load({folder!r})
robot.observe(0, {{"images": {{"primary": np.zeros((24, 24, 3), np.uint8)}},
                  "proprio": {{"hand": np.zeros(3)}}}})
actions, answers = robot.act(["touch the cat"])
assert actions.shape == (1, 3, 4) and np.all(np.isfinite(actions)), actions
heavy = [name for name in ("tensorflow", "tensorflow_datasets", "grain") if name in sys.modules]
assert not heavy, heavy
"""


def test_loads_and_acts_without_tensorflow(run):
    code = WITHOUT_TENSORFLOW.format(folder=run.workdir)
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_rows_of_training_are_the_batches_of_acting(run, policy_lib):
    """Every sample, by the data road and by the policy: all arrays the same, bit for bit."""
    source = run.assembly.mixtures["robot"].sources["arm"]
    table, read = rlds.recorded(run.data)
    robot = policy_lib.Policy.load(run.workdir)
    starts = [tuple(map(int, pair)) for pair in source._samples]
    assert len(starts) == 4 * 5 and (0, 1) not in {(e, t) for e, t in starts}
    assert any(t == 0 for _, t in starts)  # half of the window is padding
    for index, (episode, t) in enumerate(starts):
        robot.reset()
        first = int(table.start[episode])
        for step in range(max(0, t - 1), t + 1):
            (data,) = read("primary", episode, [first + step])
            seen = images.resize(images.decode(data), (24, 24)) if data else None
            hand = table.proprio["hand"][first + step]
            robot.observe(0, {"images": {"primary": seen}, "proprio": {"hand": hand}})
        batch = robot.batch([table.language[table.language_index[first + t]]])
        row = source.sample(index, np.random.default_rng(0))
        found = {
            "observation": dataclasses.asdict(batch.observation),
            "task": dataclasses.asdict(batch.task),
            "action_space": batch.action_space,
            "dataset_key": batch.dataset_key,
        }
        expected = dict(trees.items({name: row[name] for name in found}))
        got = dict(trees.items(found))
        assert list(got) == list(expected)
        for path, value in expected.items():
            assert got[path].dtype == value.dtype, path
            np.testing.assert_array_equal(got[path][0], value, err_msg=path)


def test_actions_are_in_the_units_of_the_data(run, one, recorded):
    one.reset()
    one.observe(0, recorded.observation())
    actions, answers = one.act(ASK)
    normal = answers["action"]["action"]
    expected = run.assembly.normalizer.inverse("arm_data", "action", normal)
    assert actions.shape == (1, 3, 4) and actions.dtype == np.float32
    np.testing.assert_array_equal(actions, expected)


def test_the_window_is_padded_in_front_and_forgotten_on_reset(one, recorded):
    one.reset()
    first, second, third = (recorded.observation(seed) for seed in range(3))
    one.observe(0, first)
    batch = one.batch(ASK)
    np.testing.assert_array_equal(batch.observation.timestep_mask, [[False, True]])
    image = batch.observation.images["primary"]
    np.testing.assert_array_equal(image[0, 0], image[0, 1])  # the first tick repeated
    alone = one.act(ASK)[0]
    one.observe(0, second)
    one.observe(0, third)  # the window is two ticks: the first is forgotten
    batch = one.batch(ASK)
    np.testing.assert_array_equal(batch.observation.timestep_mask, [[True, True]])
    np.testing.assert_array_equal(
        batch.observation.images["primary"][0],
        [second["images"]["primary"], third["images"]["primary"]],
    )
    one.reset(0)
    one.observe(0, first)
    np.testing.assert_array_equal(one.act(ASK)[0], alone)


def test_masked_views_change_the_answer(one, recorded):
    one.reset()
    one.observe(0, recorded.observation())
    seeing, blind = one.act(ASK)[0], one.act(ASK, masked_views=("primary",))[0]
    assert np.abs(seeing - blind).max() > 1e-6
    one.reset()
    one.observe(0, recorded.observation() | {"images": {"primary": None}})
    np.testing.assert_array_equal(one.act(ASK, masked_views=("primary",))[0], blind)
    batch = one.batch(ASK, masked_views=("primary",))
    assert not batch.observation.image_masks["primary"].any()
    with pytest.raises(plugin.UserError, match="did you mean 'primary'"):
        one.act(ASK, masked_views=("primry",))


def test_a_sensor_that_dropped_out_is_said_to_be_missing(one, recorded):
    one.reset()
    one.observe(0, recorded.observation(images={"primary": None}, proprio={"hand": None}))
    seen = one.batch(ASK).observation
    assert not seen.image_masks["primary"].any() and not seen.images["primary"].any()
    assert not seen.proprio_masks["hand"].any()
    assert np.all(np.isfinite(one.act(ASK)[0]))


def test_no_instruction_is_all_padding(one, recorded):
    one.reset()
    one.observe(0, recorded.observation())
    assert not one.batch([""]).task.masks["language"].any()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(images={"primry": np.zeros((24, 24, 3), np.uint8)}), "missing: unknown 'primary'"),
        (
            dict(images={"primary": np.zeros((24, 24), np.uint8)}),
            "expected uint8 .height, width, 3",
        ),
        (dict(images={"primary": b"no picture"}), "no readable image"),
        (dict(images={"primary": np.zeros((24, 24, 3), np.float32)}), "got float32"),
        (dict(proprio={"ee": np.zeros(3)}), "missing: unknown 'hand'"),
        (dict(proprio={"hand": np.zeros(4)}), "another embodiment"),
        (dict(proprio={"hand": np.full(3, np.nan)}), "finite"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(one, recorded, change, message):
    one.reset()
    with pytest.raises(plugin.UserError, match=message):
        one.observe(0, recorded.observation(**change))
    assert not one._history[0]


def test_a_query_that_does_not_fit_is_refused(one, recorded):
    one.reset()
    with pytest.raises(plugin.UserError, match=r"never observed: \[0\]"):
        one.act(ASK)
    one.observe(0, recorded.observation())
    for instructions in ([], ASK * 2, "touch the cat"):
        with pytest.raises(plugin.UserError, match="expected a list of 1"):
            one.act(instructions)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(stream="robots"), "did you mean 'robot'"),
        (dict(dataset="arm_dat"), "did you mean 'arm_data'"),
        (dict(action_space="xyz"), "unknown 'xyz'"),
        (dict(dataset=("arm_data",), rows=2), "1 names for 2 rows"),
        (dict(step=99), "99"),
    ],
)
def test_unknown_names_are_refused(policy_lib, run, arguments, message):
    with pytest.raises(plugin.UserError, match=message):
        policy_lib.Policy.load(run.workdir, **arguments)


def test_a_folder_without_a_checkpoint_is_refused(policy_lib, tmp_path):
    with pytest.raises(plugin.UserError, match="holds no complete checkpoint"):
        policy_lib.Policy.load(str(tmp_path))


def test_a_checkpoint_that_saw_no_robot_is_refused(policy_lib, run):
    from vla_jax.codecs import normalizer
    from vla_jax.train import checkpoint

    loaded = checkpoint.load(run.workdir)
    assets = dataclasses.replace(loaded.meta.assets, normalizer=normalizer.Normalizer({}).to_json())
    loaded = dataclasses.replace(loaded, meta=dataclasses.replace(loaded.meta, assets=assets))
    with pytest.raises(plugin.UserError, match="no statistics of any robot"):
        policy_lib.Policy(loaded)


def test_a_checkpoint_that_was_trained_by_a_kernel_acts_here(policy_lib, run):
    from vla_jax.train import checkpoint

    loaded = checkpoint.load(run.workdir)
    model = loaded.config.model
    model = dataclasses.replace(model, trunk={**model.trunk, "attention": "cudnn"})
    config = dataclasses.replace(loaded.config, model=model)
    loaded = dataclasses.replace(loaded, meta=dataclasses.replace(loaded.meta, config=config))
    policy = policy_lib.Policy(loaded)
    assert policy.model.module.model.trunk["attention"] == "chunked"
    assert policy.config.model.trunk["attention"] == "cudnn"


def test_rows_of_several_robots_have_each_their_head_and_statistics(policy_lib, recorded, run, one):
    from vla_jax.train import checkpoint

    loaded = recorded.two_robots(checkpoint.load(run.workdir))
    with pytest.raises(plugin.UserError, match="dataset key: unknown 'None'"):
        policy_lib.Policy(loaded)
    both = policy_lib.Policy(loaded, dataset=("arm_data", "other"), rows=2)
    assert [space.name for space in both.row_spaces] == ["xyz_gripper", "xy"]
    seen = recorded.observation()
    both.observe(0, seen)
    both.observe(1, {"images": seen["images"]})  # it has no hand
    batch = both.batch(ASK * 2)
    assert batch.action_space.tolist() == [0, 1] and batch.dataset_key.tolist() == [0, 1]
    np.testing.assert_array_equal(
        batch.observation.proprio_masks["hand"], [[False, True], [False, False]]
    )
    actions, _ = both.act(ASK * 2)
    assert actions.shape == (2, 3, 4)
    one.reset()
    one.observe(0, seen)
    np.testing.assert_allclose(actions[0], one.act(ASK)[0][0], rtol=1e-5, atol=1e-6)
    # The narrow head answers 0…5; the other robot's actions have mean 7 and deviation 1.
    np.testing.assert_allclose(actions[1, :, :2], 7.0 + np.arange(6.0).reshape(3, 2), rtol=1e-6)
    assert not actions[1, :, 2:].any()
    assert jax.tree.leaves(both._variables)
