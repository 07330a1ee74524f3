"""The objectives of image-text data whose rows stand alone: region_text, next_token."""

import numpy as np

from vla_jax import plugin


def test_region_text_needs_place_and_name(case):
    objective = plugin.build("objectives", dict(type="region_text", head="it"), case.context)
    masks = case.batch.target_masks
    expected = masks["region_point"] & masks["region_name"]
    np.testing.assert_array_equal(objective.mask(case.batch)["region_text"], expected)
    errors = dict(
        cross_entropy=case.rng.random(expected.shape).astype(np.float32),
        wrong=np.ones(expected.shape, np.float32),
    )
    total, figures = objective({}, {"it": errors}, case.batch)
    np.testing.assert_allclose(total, errors["cross_entropy"][expected].sum(), rtol=1e-5)
    assert figures["wrong"][0] == figures["wrong"][1] == expected.sum()


def test_next_token_counts_predicted_tokens(case):
    """BOS is never predicted, EOS is; padding is not."""
    objective = plugin.build("objectives", dict(type="next_token", head="it"), case.context)
    mask = case.batch.target_masks["text"][:, 1:]
    np.testing.assert_array_equal(objective.mask(case.batch)["next_token"], mask)
    errors = case.rng.random(mask.shape).astype(np.float32)
    total, _ = objective({}, {"it": {"cross_entropy": errors}}, case.batch)
    np.testing.assert_allclose(total, errors[mask].sum(), rtol=1e-5)
