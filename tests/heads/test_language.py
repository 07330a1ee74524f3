import dataclasses

import numpy as np
import pytest

from vla_jax import plugin

SPEC = dict(type="language", group="text")


def test_each_token_predicts_the_next(case):
    harness, variables = case.build(**SPEC)
    answer, errors = harness.apply(variables, case.outputs, {}, case.batch, case.keys)
    table = np.asarray(variables["params"]["shared_text_embedding"]["table"])
    logits = case.outputs["text"].final @ table.T
    np.testing.assert_allclose(answer["logits"], logits, rtol=1e-4, atol=1e-4)
    assert errors["cross_entropy"].shape == (case.B, case.T - 1)
    for row, t in np.argwhere(case.batch.target_masks["text"][:, 1:]):
        scores = logits[row, t]
        expected = np.log(np.exp(scores).sum()) - scores[case.batch.targets["text"][row, t + 1]]
        np.testing.assert_allclose(errors["cross_entropy"][row, t], expected, rtol=1e-4)


def test_no_parameters_of_its_own(case):
    _, variables = case.build(**SPEC)
    assert "head" not in variables["params"]


def test_lengths_must_agree(case):
    harness, variables = case.build(**SPEC)
    text = dataclasses.replace(case.outputs["text"], final=case.outputs["text"].final[:, :4])
    with pytest.raises(plugin.UserError, match="max_tokens"):
        harness.apply(variables, case.outputs | {"text": text}, {}, case.batch, case.keys)
