import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.heads import octo
from vla_jax import plugin
from vla_jax.heads import _condition

ACTION = dict(
    type="regression",
    readout="main",
    proprio=("hand",),
    reads=("waypoint",),
    relative_to="hand",
    action_space="narrow",
    action_horizon=3,
    hidden=(8,),
)


def waypoint(case):
    return {"waypoint": {"waypoint": case.rng.normal(size=(case.B, case.W, 3)).astype(np.float32)}}


def condition(case, **arguments):
    full = dict(readout="main", reads=("waypoint",), proprio=("hand",), relative_to="hand")
    return _condition.make(case.context, **(full | arguments))


def given(case, heads, batch, **arguments):
    """The vector that a head makes of its condition."""
    made = condition(case, **arguments)
    pool = made.pool(jnp.float32)
    return made(case.outputs, heads, batch, pool and (lambda outputs: pool.apply({}, outputs)))


def test_condition_against_loops(case):
    """Offset in 10 cm, tanh of twice that, proprio, mean of the readout, by the row's constants."""
    heads = waypoint(case)
    got = given(case, heads, case.batch)
    assert got.shape == (case.B, case.W, 3 + 3 + 3 + case.D)
    for row in range(case.B):
        key = max(int(case.batch.dataset_key[row]), 0)
        shift, scale = np.array(case.hand[0][key]), np.array(case.hand[1][key])
        for step in range(case.W):
            hand = case.batch.observation.proprio["hand"][row, step]
            goal = heads["waypoint"]["waypoint"][row, step]
            offset = ((goal * scale + shift) - (hand * scale + shift)) / 0.1
            readout = case.outputs["readout_main"].final[row, step].mean(0)
            expected = np.concatenate([offset, np.tanh(2 * offset), hand, readout])
            np.testing.assert_allclose(got[row, step], expected, rtol=1e-4, atol=1e-5)


def test_a_missing_reading_is_zero(case):
    seen = case.batch.observation
    missing = dataclasses.replace(
        seen,
        proprio={"hand": np.full_like(seen.proprio["hand"], np.nan)},
        proprio_masks={"hand": np.zeros((case.B, case.W), bool)},
    )
    batch = dataclasses.replace(case.batch, observation=missing)
    got = given(case, waypoint(case), batch, readout=None)
    np.testing.assert_array_equal(got, np.zeros((case.B, case.W, 9)))


def test_point_features():
    got = _condition.quadratic(jnp.array([[0.5, 0.2]]))
    np.testing.assert_allclose(got, [[0.5, 0.2, 0.25, 0.04, 0.1]], rtol=1e-6)


def test_errors_are_the_slice_of_the_padded_target(case):
    harness, variables = case.build(heads=waypoint(case), **ACTION)
    heads = waypoint(case)
    answer, errors = case.apply(harness, variables, case.outputs, heads, case.batch, case.keys)
    assert answer["action"].shape == (case.B, case.W, 3, 2)
    mask = case.batch.target_masks["action"][:, :, :3, :2]
    goal = case.batch.targets["action"][:, :, :3, :2]
    expected = np.abs(np.asarray(answer["action"]) - goal)
    np.testing.assert_allclose(np.asarray(errors["action"])[mask], expected[mask], rtol=1e-5)
    padded = case.batch.targets["action"].copy()
    padded[..., 2:] = 1e6
    padded[:, :, 3:] = 1e6
    batch = dataclasses.replace(case.batch, targets=case.batch.targets | {"action": padded})
    _, again = case.apply(harness, variables, case.outputs, heads, batch, case.keys)
    np.testing.assert_array_equal(errors["action"], again["action"])


def test_waypoint_head_reads_the_point(case):
    heads = {"point": {"point": case.rng.random((case.B, case.W, 2)).astype(np.float32)}}
    spec = dict(type="regression", target="waypoint", reads=("point",), hidden=(8,), loss="l2")
    harness, variables = case.build(heads=heads, **spec)
    answer, errors = case.apply(harness, variables, case.outputs, heads, case.batch, case.keys)
    assert answer["waypoint"].shape == (case.B, case.W, 3)
    mask = case.batch.target_masks["waypoint"]
    expected = np.square(answer["waypoint"] - case.batch.targets["waypoint"])
    np.testing.assert_allclose(errors["waypoint"][mask], expected[mask], rtol=1e-5)
    kernel = variables["params"]["head"]["mlp"]["hidden_0"]["kernel"]
    assert kernel.shape == (5, 8), "x, y, x², y², x·y and nothing else"


def test_sample_agrees_with_training_on_the_newest_step(case):
    heads = waypoint(case)
    harness, variables = case.build(heads=heads, **ACTION)
    answer, _ = case.apply(harness, variables, case.outputs, heads, case.batch, case.keys)
    batch = dataclasses.replace(case.batch, targets={}, target_masks={})
    sampled, _ = case.apply(
        harness, variables, case.outputs, case.newest(heads), batch, case.keys, method="sample"
    )
    np.testing.assert_allclose(sampled["action"], answer["action"][:, -1], rtol=1e-5, atol=1e-6)


def test_gradient_reaches_the_read_answer(case):
    """The head itself does not detach: models/vla.py does, per read."""
    heads = waypoint(case)
    harness, variables = case.build(heads=heads, **ACTION)

    def total(heads):
        answer, _ = case.apply(harness, variables, case.outputs, heads, case.batch, case.keys)
        return jnp.sum(answer["action"] ** 2)

    assert np.abs(jax.grad(total)(heads)["waypoint"]["waypoint"]).max() > 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (dict(readout="main", loss="l3"), "l1"),
        (dict(readout="main", tokens_per="steps"), "did you mean 'step'"),
        (dict(proprio=("hand",), tokens_per="step"), "no readout or groups"),
        (dict(readout="main", tokens_per="step", target="waypoint"), "target='waypoint'"),
        (dict(readout="main", tokens_per="step", pool="mean"), "none"),
        (dict(readout="main", target="acton"), "action"),
        (dict(readout="main", action_space="narow"), "narrow"),
        (dict(readout="main", action_horizon=9), "at most"),
        (dict(), "nothing to predict from"),
        (dict(readout="main", target="waypoint", group="hnd"), "hand"),
        (dict(reads=("waypoint",), relative_to="arm"), "hand"),
    ],
)
def test_bad_arguments(case, spec, message):
    with pytest.raises(plugin.UserError, match=message):
        plugin.build("heads", dict(type="regression", **spec), case.context)


def test_an_answer_it_cannot_read(case):
    with pytest.raises(plugin.UserError, match="expected waypoint or point"):
        given(case, {"waypoint": {"mood": jnp.zeros((1, 1, 1))}}, case.batch)


def test_a_token_per_action_of_the_chunk(case):
    """One layer for all tokens; the c-th token alone answers for the c-th action."""
    spec = dict(type="regression", groups=("readout_main",), hidden=(), tokens_per="step")
    count = case.outputs["readout_main"].final.shape[2]
    spec |= dict(action_space="narrow", action_horizon=count)
    harness, variables = case.build(**spec)
    layer = variables["params"]["head"]["mlp"]["out"]
    assert layer["kernel"].shape == (case.D, 2)
    answer, _ = case.apply(harness, variables, case.outputs, {}, case.batch, case.keys)
    read = np.asarray(case.outputs["readout_main"].final)
    wanted = read @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    np.testing.assert_allclose(answer["action"], wanted, rtol=1e-4, atol=1e-5)
    with_body, variables = case.build(**spec, proprio=("hand",))
    assert variables["params"]["head"]["mlp"]["out"]["kernel"].shape == (3 + case.D, 2)
    answer, _ = case.apply(with_body, variables, case.outputs, {}, case.batch, case.keys)
    assert answer["action"].shape == (case.B, case.W, count, 2)


def test_squashed_answers(case):
    """tanh(x / m)·m of what the head answers without."""
    plain = dict(type="regression", readout="main", hidden=())
    harness, variables = case.build(**plain)
    assert set(variables["params"]["head"]["mlp"]) == {"out"}, "one layer, and no parameters more"
    answer, _ = case.apply(harness, variables, case.outputs, {}, case.batch, case.keys)
    squashed, _ = case.build(**plain, max_action=0.5)
    got, _ = case.apply(squashed, variables, case.outputs, {}, case.batch, case.keys)
    expected = 0.5 * np.tanh(np.asarray(answer["action"]) / 0.5)
    np.testing.assert_allclose(got["action"], expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def golden(fixtures_dir):
    return octo.load(fixtures_dir / "octo_golden" / "variant2")


@pytest.mark.parametrize("name", ["action", "l1"])
def test_octo_s_continuous_heads(golden, name):
    """MSE with attention pooling over all observations, L1 over the mean of a readout."""
    tree, spec = golden.heads[name], dict(type="regression", hidden=(), max_action=5.0)
    params = {"mlp": {"out": tree["mean_proj"]}}
    if name == "action":
        spec |= dict(groups=golden.observed, pool="map", loss="l2")
        params["pool"] = octo.pool(tree["map_head"])
    else:
        spec |= dict(groups=("readout_l1",), loss="l1")
    answer, errors = octo.run(golden, params, spec)
    octo.close(answer["action"], golden.arrays[f"heads/{name}/output"])
    loss = 7 * octo.loss(golden, errors["action"])
    np.testing.assert_allclose(loss, golden.arrays[f"heads/{name}/loss"], rtol=1e-5)
    sampled = octo.run(golden, params, spec, "sample")[0]["action"]
    octo.close(sampled, golden.arrays[f"heads/{name}/predict_argmax"])
