import dataclasses

import jax
import numpy as np
import pytest

from tests.heads import octo
from vla_jax import plugin

pytestmark = pytest.mark.slow  # golden arrays; contract tests run by default


SPEC = dict(type="bins", readout="main", action_space="narrow", action_horizon=3, bins=4)


def test_answer_and_errors_against_numpy(case):
    harness, variables = case.build(**SPEC)
    answer, errors = case.apply(harness, variables, case.outputs, {}, case.batch, case.keys)
    params = jax.tree.map(np.asarray, variables["params"]["head"]["project"])
    readout = case.outputs["readout_main"].final.mean(2)
    logits = (readout @ params["kernel"] + params["bias"]).reshape(case.B, case.W, 3, 2, 4)
    np.testing.assert_allclose(answer["logits"], logits, rtol=1e-4, atol=1e-5)
    middles = np.array([-0.75, -0.25, 0.25, 0.75])
    np.testing.assert_allclose(answer["action"], middles[logits.argmax(-1)], rtol=1e-6)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    mask = case.batch.target_masks["action"][:, :, :3, :2]
    for place in np.argwhere(mask):
        goal = case.batch.targets["action"][tuple(place)]
        right = int(np.clip(np.floor((goal + 1) * 2), 0, 3))
        expected = -np.log(probs[(*place, right)])
        np.testing.assert_allclose(errors["action"][tuple(place)], expected, rtol=1e-3)


def test_masked_and_padded_actions_change_nothing(case):
    harness, variables = case.build(**SPEC)
    run = jax.jit(harness.apply)
    _, errors = run(variables, case.outputs, {}, case.batch, case.keys)
    mask, action = case.batch.target_masks["action"], case.batch.targets["action"].copy()
    action[..., 2:], action[:, :, 3:] = 50.0, 50.0
    action = np.where(mask, action, np.nan).astype(np.float32)
    batch = dataclasses.replace(case.batch, targets=case.batch.targets | {"action": action})
    _, again = run(variables, case.outputs, {}, batch, case.keys)
    np.testing.assert_array_equal(errors["action"], again["action"])


def test_tokens_per(case):
    """A readout of two tokens: one for each step of a chunk of two, or pooled to any number."""
    two = SPEC | dict(action_horizon=2, tokens_per="step")
    harness, variables = case.build(**two)
    assert variables["params"]["head"]["project"]["kernel"].shape == (case.D, 2 * 4)
    first = case.outputs["readout_main"]
    changed = first.final.copy()
    changed[:, :, 1] += 1.0
    outputs = case.outputs | {"readout_main": dataclasses.replace(first, final=changed)}
    before = case.apply(harness, variables, case.outputs, {}, case.batch, case.keys)[0]["logits"]
    after = case.apply(harness, variables, outputs, {}, case.batch, case.keys)[0]["logits"]
    same = np.isclose(before, after).all(axis=(0, 1, 3, 4))
    np.testing.assert_array_equal(same, [True, False])
    for tokens_per, size in (("chunk", 24), ("step", 8), ("dimension", 4)):
        spec = SPEC | dict(tokens_per=tokens_per, pool="map")
        harness, variables = case.build(**spec)
        head = variables["params"]["head"]
        assert head["project"]["kernel"].shape == (case.D, size)
        assert head["pool"]["map"]["probe"].shape == (24 // size, case.D)
        answer, _ = case.apply(harness, variables, case.outputs, {}, case.batch, case.keys)
        assert answer["logits"].shape == (case.B, case.W, 3, 2, 4)


def test_a_temperature_draws_by_the_logits(case):
    harness, variables = case.build(**SPEC, temperature=0.5)
    answer, _ = case.apply(harness, variables, case.outputs, {}, case.batch, case.keys)
    run = jax.jit(
        jax.vmap(
            lambda seed: harness.apply(
                variables, case.outputs, {}, case.batch,
                jax.vmap(jax.random.fold_in, (0, None))(case.keys, seed), method="sample",
            )[0]["action"]
        )
    )  # fmt: skip
    drawn = np.asarray(run(np.arange(4000)))  # [draws, B, C, A]
    middles = np.array([-0.75, -0.25, 0.25, 0.75])
    share = (drawn[..., None] == middles.astype(np.float32)).mean(0)
    wanted = np.asarray(jax.nn.softmax(answer["logits"][:, -1] / 0.5))
    np.testing.assert_allclose(share, wanted, atol=0.04)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (dict(tokens_per="stap"), "step"),
        (dict(tokens_per="step", pool="mean"), "map"),
        (dict(spacing="even"), "uniform"),
        (dict(bins=0), "at least 1"),
        (dict(temperature=-1.0), "0 or more"),
        (dict(readout=None), "nothing to predict from"),
        (dict(groups=("primary",)), "give one of them"),
    ],
)
def test_bad_arguments(case, spec, message):
    with pytest.raises(plugin.UserError, match=message):
        plugin.build("heads", SPEC | spec, case.context)


def test_a_wrong_number_of_tokens(case):
    with pytest.raises(plugin.UserError, match="has 2 tokens, expected 3"):
        case.build(**SPEC, tokens_per="step")


@pytest.fixture(scope="module")
def golden(fixtures_dir):
    return octo.load(fixtures_dir / "octo_golden" / "variant2")


@pytest.mark.parametrize("name", ["discrete", "discrete_map"])
def test_octo_s_discrete_heads(golden, name):
    spec = dict(type="bins", bins=32, beyond="first")
    if name == "discrete":
        spec |= dict(groups=("readout_discrete",), tokens_per="dimension", spacing="normal")
    else:
        spec |= dict(groups=golden.observed, tokens_per="step", pool="map", low=0.0, high=1.0)
    tree = golden.heads[name]
    params = {"project": tree["vocab_proj"]}
    if "map_head" in tree:
        params["pool"] = octo.pool(tree["map_head"])
    arrays = {
        key: golden.arrays[f"heads/{name}/{key}"]
        for key in ("output", "loss", "predict_argmax", "predict_sample_key4_shape3")
    }
    answer, errors = octo.run(golden, params, spec)
    octo.close(answer["logits"], arrays["output"])
    np.testing.assert_allclose(octo.loss(golden, errors["action"]), arrays["loss"], rtol=1e-5)
    sampled = octo.run(golden, params, spec, "sample")[0]["action"]
    octo.close(sampled, arrays["predict_argmax"])
    # Octo's own draws: jax's Gumbel noise as it was by default in jax 0.4.20.
    with jax.threefry_partitionable(False):
        noise = jax.random.gumbel(jax.random.PRNGKey(4), (3, *answer["logits"][:, -1].shape))
    for wanted, gumbel in zip(arrays["predict_sample_key4_shape3"], noise, strict=True):
        got = octo.run(golden, params, spec | dict(temperature=0.7), "sample", key=gumbel)[0]
        octo.close(got["action"], wanted)
