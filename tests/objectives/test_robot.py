"""The objectives of robot data: action, waypoint, pointing."""

import dataclasses

import numpy as np
import pytest

from vla_jax import plugin


def build(case, **spec):
    return plugin.build("objectives", dict(head="it", **spec), case.context)


def test_action_counts_its_own_space_and_slice(case):
    """By loops: rows of the space, its dimensions, its chunk steps, real steps."""
    objective = build(case, type="action", action_space="narrow", action_horizon=3)
    steps = np.array([[True, True], [False, True], [True, True]])
    seen = dataclasses.replace(case.batch.observation, timestep_mask=steps)
    batch = dataclasses.replace(
        case.batch, observation=seen, action_space=np.array([0, 1, 1], np.int32)
    )
    errors = case.rng.random((case.B, case.W, 3, 2)).astype(np.float32)
    total, count = 0.0, 0
    for b in (1, 2):
        for w in range(case.W):
            for c in range(3):
                for a in range(2):
                    if steps[b, w] and case.batch.target_masks["action"][b, w, c, a]:
                        total, count = total + errors[b, w, c, a], count + 1
    got, _ = objective({}, {"it": {"action": errors}}, batch)
    np.testing.assert_allclose(got, total, rtol=1e-5)
    assert objective.mask(batch)["action"].sum() == count > 0


def test_action_weighs_what_its_rows_do(case):
    """sum / count is the mean over real numbers, times the share of rows of the action space."""
    spaces = np.array([0, 1, 1], np.int32)
    spec = dict(type="action", action_space="narrow", action_horizon=3)
    errors = {"it": {"action": case.rng.random((case.B, case.W, 3, 2)).astype(np.float32)}}
    for own, share in ((spaces, 2 / 3), (spaces * 0 + 1, 1.0), (spaces * 0 - 1, 0.0)):
        batch = dataclasses.replace(case.batch, action_space=own)
        plain, weighed = build(case, **spec), build(case, **spec, by_rows=True)
        total, _ = weighed({}, errors, batch)
        mean = total / max(plain.count(batch), 1.0)
        assert plain.count(batch) == plain.mask(batch)["action"].sum()
        np.testing.assert_allclose(total / max(weighed.count(batch), 1.0), share * mean, rtol=1e-5)


def test_action_without_a_space_counts_all_rows(case):
    mask = build(case, type="action").mask(case.batch)["action"]
    np.testing.assert_array_equal(mask, case.batch.target_masks["action"])


def test_unknown_action_space(case):
    with pytest.raises(plugin.UserError, match="narrow"):
        build(case, type="action", action_space="narow")


def test_pointing_weighs_its_parts(case):
    shape = (case.B, case.W)
    parts = {name: case.rng.random(shape).astype(np.float32) for name in ("cross_entropy", "l1")}
    peak = case.rng.random((*shape, 2)).astype(np.float32)
    mask = case.batch.target_masks["point"]
    total, figures = build(case, type="pointing")({"it": {"peak": peak}}, {"it": parts}, case.batch)
    np.testing.assert_allclose(
        total, (parts["cross_entropy"] + 2 * parts["l1"])[mask].sum(), rtol=1e-5
    )
    apart = np.linalg.norm(peak - case.batch.targets["point"], axis=-1)
    np.testing.assert_allclose(figures["distance"][0], apart[mask].sum(), rtol=1e-5)
    total, _ = build(case, type="pointing", l1=0.0)(
        {"it": {"peak": peak}}, {"it": parts}, case.batch
    )
    np.testing.assert_allclose(total, parts["cross_entropy"][mask].sum(), rtol=1e-5)


def test_waypoint_counts_numbers(case):
    mask = build(case, type="waypoint").mask(case.batch)["waypoint"]
    assert mask.sum() == 3 * case.batch.target_masks["waypoint"].sum()
