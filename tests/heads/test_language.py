import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.nn import embedding

SPEC = dict(type="language", max_tokens=6)


@pytest.fixture(scope="module")
def case():
    from tests.heads import case as cases

    return cases.make(window=1)


def embedded(case, variables):
    """The head's tokens [B, T, D]: pieces and places."""
    table = np.asarray(variables["params"]["shared_text_embedding"]["table"])
    text = np.where(case.batch.target_masks["text"], case.batch.targets["text"], 0)
    return table[text] * np.sqrt(case.D) + np.asarray(variables["params"]["head"]["position"])


def test_each_token_predicts_the_next(case):
    """By loops; the harness' trunk leaves tokens as they are."""
    harness, variables = case.build(**SPEC)
    answer, errors = case.apply(harness, variables, case.outputs, {}, case.batch, case.keys)
    table = np.asarray(variables["params"]["shared_text_embedding"]["table"])
    logits = embedded(case, variables) @ table.T
    np.testing.assert_allclose(answer["logits"], logits, rtol=1e-4, atol=1e-4)
    assert errors["cross_entropy"].shape == (case.B, case.T - 1)
    for row, t in np.argwhere(case.batch.target_masks["text"][:, 1:]):
        scores = logits[row, t]
        expected = np.log(np.exp(scores).sum()) - scores[case.batch.targets["text"][row, t + 1]]
        np.testing.assert_allclose(errors["cross_entropy"][row, t], expected, rtol=1e-4)


def test_it_brings_its_text(case):
    shared = {"text_embedding": None}
    head = plugin.build("heads", SPEC, dataclasses.replace(case.context, shared=shared))
    assert head.token_groups == {"it_text": case.T} and head.decodes


def test_sample_follows_the_likeliest_until_eos(case):
    """A trunk that turns piece i into piece i + 1: text counts up from BOS, ends after EOS."""
    shared = {"text_embedding": embedding.TextEmbedding(vocabulary_size=30, width=case.D)}
    head = plugin.build("heads", SPEC, dataclasses.replace(case.context, shared=shared))
    head = head.clone(bos_id=1, eos_id=4)  # pieces 0 … 15 are the axes of the embedding
    table = jnp.eye(30, case.D)
    params = {"text_embedding": {"table": table}, "position": jnp.zeros((case.T, case.D))}
    caches = []

    def decode(groups, cond, cache):
        caches.append(cache)
        return {name: jnp.roll(made, 1, axis=-1) for name, made in groups.items()}, cache + 1

    answer, cache = head.apply(
        {"params": params}, {}, {}, case.batch, 0, decode, None, method="sample"
    )
    np.testing.assert_array_equal(answer["text"], [[1, 2, 3, 4, 0, 0]] * case.B)
    assert caches == [0] * (case.T - 1) and cache == 0
    assert answer["logits"].shape == (case.B, case.T, 30)


@pytest.mark.parametrize(
    ("change", "message"), [(dict(max_tokens=1), "BOS"), (dict(max_tokens=4), "max_tokens")]
)
def test_bad_lengths(case, change, message):
    with pytest.raises(plugin.UserError, match=message):
        case.build(**(SPEC | change))


def test_needs_a_text_tokenizer(case):
    with pytest.raises(plugin.UserError, match="config.text_tokenizer"):
        plugin.build("heads", SPEC, dataclasses.replace(case.context, text_tokenizer=None))


def test_a_longer_window_is_refused():
    from tests.heads import case as cases

    with pytest.raises(plugin.UserError, match="window of 2"):
        cases.make(window=2).build(**SPEC)
