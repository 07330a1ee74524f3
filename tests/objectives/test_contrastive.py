import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.objectives import contrastive

MASK = np.array([True, False, True, True, True])


def logits():
    return np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)


def test_sigmoid_against_a_loop():
    """Zhai et al. 2023, equation 1, over the real pairs."""
    z, total = logits(), 0.0
    for i in np.flatnonzero(MASK):
        for j in np.flatnonzero(MASK):
            sign = 1 if i == j else -1
            total += np.log1p(np.exp(-sign * z[i, j]))
    got = contrastive.sigmoid(jnp.asarray(z), jnp.asarray(MASK))
    np.testing.assert_allclose(np.asarray(got)[MASK].sum(), total, rtol=1e-5)


def test_softmax_against_a_loop():
    z, real, total = logits(), np.flatnonzero(MASK), 0.0
    for i in real:
        to_text = np.log(np.exp(z[i, real]).sum()) - z[i, i]
        to_image = np.log(np.exp(z[real, i]).sum()) - z[i, i]
        total += (to_text + to_image) / 2
    got = contrastive.softmax(jnp.asarray(z), jnp.asarray(MASK))
    np.testing.assert_allclose(np.asarray(got)[MASK].sum(), total, rtol=1e-5)


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_masked_rows_do_not_count_for_others(case, loss):
    objective = plugin.build(
        "objectives", dict(type="contrastive", head="it", loss=loss), case.context
    )
    masks = case.batch.task.masks["language"].copy()
    masks[1] = False
    task = dataclasses.replace(case.batch.task, masks={"language": masks})
    batch = dataclasses.replace(case.batch, task=task)
    np.testing.assert_array_equal(objective.mask(batch)["contrastive"], [True, False, True])

    def total(vectors):
        answer = dict(image=vectors[0], text=vectors[1], scale=jnp.array(5.0), bias=jnp.array(-1.0))
        return objective({"it": answer}, {}, batch)[0]

    vectors = jnp.asarray(case.rng.normal(size=(2, case.B, 4)), jnp.float32)
    gradient = np.asarray(jax.grad(total)(vectors))
    assert np.isfinite(gradient).all() and (gradient[:, 1] == 0).all()
    assert (np.abs(gradient[:, [0, 2]]).max(-1) > 0).all()
    spoilt = vectors.at[:, 1].set(100.0)
    np.testing.assert_allclose(total(spoilt), total(vectors), rtol=1e-5)


def test_matched_counts_images_that_find_their_text(case):
    objective = plugin.build("objectives", dict(type="contrastive", head="it"), case.context)
    image, text = jnp.eye(3), jnp.eye(3)[jnp.array([0, 2, 1])]
    answer = dict(image=image, text=text, scale=jnp.array(1.0), bias=jnp.array(0.0))
    _, figures = objective({"it": answer}, {}, case.batch)
    assert [float(value) for value in figures["matched"]] == [1.0, 3.0]


@pytest.mark.parametrize("leak", [("language", "readout_image"), ("primary", "readout_text"), None])
def test_readouts_that_have_seen_the_other_side_are_refused(case, leak):
    objective = plugin.build("objectives", dict(type="contrastive", head="it"), case.context)

    def reaches(source, target):
        return (source, target) == leak

    if leak is None:
        objective.check(reaches)
    else:
        with pytest.raises(plugin.UserError, match=leak[1]):
            objective.check(reaches)


def test_unknown_loss_and_view(case):
    with pytest.raises(plugin.UserError, match="softmax"):
        plugin.build("objectives", dict(type="contrastive", head="it", loss="softmx"), case.context)
    objective = plugin.build(
        "objectives", dict(type="contrastive", head="it", view="wrist"), case.context
    )
    with pytest.raises(plugin.UserError, match="primary"):
        objective.mask(case.batch)
