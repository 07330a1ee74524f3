import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.heads import pointing

GRID = (3, 4)
SPEC = dict(type="pointing", readout="main", image="primary", dim=8)


def bilinear(x, y, rows, columns):
    """The same target by a loop over the four cells."""
    u = min(max(x * columns - 0.5, 0.0), columns - 1.0)
    v = min(max(y * rows - 0.5, 0.0), rows - 1.0)
    out = np.zeros((rows, columns))
    for r in (int(v), int(v) + 1):
        for c in (int(u), int(u) + 1):
            if r < rows and c < columns:
                out[r, c] += (1 - abs(v - r)) * (1 - abs(u - c))
    return out


def test_bilinear_target_against_a_loop():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.random((40, 2)), [[0, 0], [1, 1], [0.125, 0.5]]]).astype("float32")
    got = np.asarray(pointing.bilinear_target(jnp.asarray(points), GRID))
    expected = np.stack([bilinear(x, y, *GRID).ravel() for x, y in points])
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(got.sum(-1), 1.0, atol=1e-5)


def test_the_mean_of_a_target_is_its_point():
    rng = np.random.default_rng(1)
    low, high = 0.5 / np.array([4, 3]), 1 - 0.5 / np.array([4, 3])
    points = jnp.asarray(low + rng.random((50, 2)) * (high - low), jnp.float32)
    mean = pointing.mean_point(pointing.bilinear_target(points, GRID), GRID)
    np.testing.assert_allclose(mean, points, atol=1e-5)


def test_cell_centres_are_row_major():
    centres = np.asarray(pointing.cell_centres(GRID))
    np.testing.assert_allclose(centres[0], [0.125, 1 / 6], rtol=1e-6)
    np.testing.assert_allclose(centres[1], [0.375, 1 / 6], rtol=1e-6)
    np.testing.assert_allclose(centres[4], [0.125, 0.5], rtol=1e-6)


def test_two_candidates_are_not_averaged():
    probs = np.zeros((5, 5), np.float32)
    probs[0, 0], probs[4, 4], probs[4, 3] = 0.4, 0.45, 0.15
    got = pointing.mean_point(pointing.around_peak(jnp.asarray(probs.ravel()), (5, 5)), (5, 5))
    np.testing.assert_allclose(got, [0.75 * 0.9 + 0.25 * 0.7, 0.9], atol=1e-6)


def test_around_peak_against_a_loop():
    rng = np.random.default_rng(2)
    for probs in rng.dirichlet(np.ones(12), size=20).astype(np.float32):
        r, c = divmod(int(probs.argmax()), GRID[1])
        kept = np.zeros(12)
        for i in range(12):
            if abs(i // GRID[1] - r) <= 1 and abs(i % GRID[1] - c) <= 1:
                kept[i] = probs[i]
        got = pointing.around_peak(jnp.asarray(probs), GRID)
        np.testing.assert_allclose(got, kept / kept.sum(), rtol=1e-5, atol=1e-7)


def test_answer_and_errors_against_numpy(case):
    harness, variables = case.build(**SPEC)
    answer, errors = case.apply(harness, variables, case.outputs, {}, case.batch, case.keys)
    params = jax.tree.map(np.asarray, variables["params"]["head"])
    readout = case.outputs["readout_main"].final.mean(2)
    query = readout @ params["query"]["kernel"] + params["query"]["bias"]
    key = case.outputs["primary"].final @ params["key"]["kernel"] + params["key"]["bias"]
    scores = np.einsum("bwd,bwnd->bwn", query, key) / np.sqrt(8)
    probs = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(answer["probs"], probs.reshape(3, 2, *GRID), rtol=1e-4, atol=1e-6)
    y, x = np.meshgrid((np.arange(3) + 0.5) / 3, (np.arange(4) + 0.5) / 4, indexing="ij")
    point = np.stack([(probs * x.ravel()).sum(-1), (probs * y.ravel()).sum(-1)], -1)
    np.testing.assert_allclose(answer["point"], point, rtol=1e-4, atol=1e-6)
    for row, step in np.argwhere(case.batch.target_masks["point"]):
        goal = case.batch.targets["point"][row, step]
        wanted = bilinear(*goal, *GRID).ravel()
        expected = -(wanted * np.log(probs[row, step])).sum()
        np.testing.assert_allclose(errors["cross_entropy"][row, step], expected, rtol=1e-4)
        expected = np.abs(point[row, step] - goal).sum()
        np.testing.assert_allclose(errors["l1"][row, step], expected, rtol=1e-4, atol=1e-6)


def test_cross_entropy_is_least_at_the_target():
    """Gradient descent on free scores ends at the bilinear target, its mean at the point."""
    goal = jnp.array([0.6, 0.4])
    target = pointing.bilinear_target(goal, GRID)

    def loss(scores):
        return -jnp.sum(target * jax.nn.log_softmax(scores))

    scores = jnp.zeros(12)
    step = jax.jit(lambda s: s - 2.0 * jax.grad(loss)(s))
    for _ in range(500):
        scores = step(scores)
    probs = jax.nn.softmax(scores)
    np.testing.assert_allclose(probs, target, atol=0.01)
    np.testing.assert_allclose(pointing.mean_point(probs, GRID), goal, atol=0.01)


def blinded(case, valid):
    image = dataclasses.replace(case.outputs["primary"], valid=valid)
    return case.outputs | {"primary": image}


def test_invalid_cells_get_nothing_and_a_blind_head_is_uniform(case):
    harness, variables = case.build(**SPEC)
    valid = np.ones((3, 2, 12), bool)
    valid[0], valid[1, :, :5] = False, False
    outputs = blinded(case, valid)
    answer, errors = case.apply(harness, variables, outputs, {}, case.batch, case.keys)
    probs = np.asarray(answer["probs"]).reshape(3, 2, 12)
    np.testing.assert_allclose(probs[0], 1 / 12, rtol=1e-6)
    assert (probs[1, :, :5] == 0).all()
    np.testing.assert_allclose(probs.sum(-1), 1.0, rtol=1e-5)
    for name in ("point", "peak"):
        np.testing.assert_allclose(answer[name][0], 0.5, rtol=1e-6)
    assert np.isfinite(errors["cross_entropy"]).all() and errors["cross_entropy"].max() < 100
    sampled, _ = case.apply(harness, variables, outputs, {}, case.batch, case.keys, method="sample")
    np.testing.assert_allclose(sampled["point"][0], 0.5, rtol=1e-6)


def test_sample_points_at_the_peak(case):
    harness, variables = case.build(**SPEC)
    answer, _ = case.apply(harness, variables, case.outputs, {}, case.batch, case.keys)
    sampled, _ = case.apply(
        harness, variables, case.outputs, {}, case.batch, case.keys, method="sample"
    )
    np.testing.assert_allclose(sampled["probs"], answer["probs"][:, -1], rtol=1e-5)
    np.testing.assert_allclose(sampled["point"], answer["peak"][:, -1], rtol=1e-5)


@pytest.mark.parametrize("wrong", [dict(image="prmary"), dict(image="readout_main")])
def test_bad_image(case, wrong):
    with pytest.raises(plugin.UserError, match="primary|no image group"):
        case.build(**(SPEC | wrong))
