import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tokenizers.test_contract import B, Host, T, batch, spec, tokenize
from vla_jax import plugin, trees, types
from vla_jax.tokenizers import encoded_language

ENCODER = {**encoded_language.DEBUG["encoder"], "vocabulary_size": 20}
NAME = "encoded_language"
F = 6


class Words:
    vocabulary_size, pad_id = 21, 0


def made(**changes):
    return spec(NAME, **{"encoder": ENCODER, "finetune": False, **changes})


def given(embedding, mask):
    """The batch with a precomputed embedding beside (or without) its ids."""
    data, name = batch(), "language_embedding"
    values, masks = {**data.task.values, name: embedding}, {**data.task.masks, name: mask}
    return dataclasses.replace(data, task=types.Task.make(values=values, masks=masks))


def test_the_encoder_is_frozen_and_lies_where_the_row_of_freeze_says():
    data = batch()
    p, group, _ = tokenize(made(), width=24)
    assert {path.split("/")[2] for path in trees.paths(p) if "/tested/" in path} == {
        "encoder",
        "project",
    }

    def gradient(spec):
        net = Host(spec, width=24)
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(net.apply(p, data).tokens))))(p)

    for finetune in (False, True):
        leaves = trees.items(gradient(made(finetune=finetune))["params"]["tested"])
        moved = {path.split("/")[0] for path, leaf in leaves if np.abs(leaf).max() > 0}
        assert moved == ({"encoder", "project"} if finetune else {"project"})
    np.testing.assert_array_equal(group.valid, data.task.masks["language"])


def test_padding_is_attended_as_octo_does_only_when_asked():
    silent = batch()
    mask = silent.task.masks["language"].copy()
    mask[0] = False
    task = dataclasses.replace(silent.task, masks={"language": mask})
    silent = dataclasses.replace(silent, task=task)
    for attend in (False, True):
        _, group, _ = tokenize(made(attend_padding=attend), silent)
        wanted = np.repeat(mask.any(-1, keepdims=True), T, -1) if attend else mask
        np.testing.assert_array_equal(group.valid, wanted)
        assert np.isfinite(group.tokens).all() and not np.asarray(group.valid)[0].any()


def test_without_an_instruction_the_encoder_reads_what_is_written():
    data = batch()
    ids = np.zeros((B, T), np.int32)
    ids[:, 0] = 1  # the end of an empty text
    stems = []
    for real in (True, False):
        mask = np.zeros((B, T), bool)
        mask[:, 0] = real
        task = types.Task.make(values={"language": ids}, masks={"language": mask})
        _, group, _ = tokenize(made(), dataclasses.replace(data, task=task))
        assert group.valid.any() == real
        stems.append(group.stem)
    np.testing.assert_array_equal(*stems)


def test_what_the_encoder_said_before_is_believed():
    data = batch()
    p, group, _ = tokenize(made())
    net = Host(made())
    say = jax.jit(lambda p, ids, mask: net.apply(p, ids, mask, method=lambda host, *given: (
        host.tested.embed(*given))))  # fmt: skip
    ids, mask = data.task.values["language"], data.task.masks["language"]
    embedding = np.asarray(say(p, ids, mask))
    run = jax.jit(net.apply)
    again = run(p, given(embedding, mask))
    np.testing.assert_allclose(again.tokens, group.tokens, atol=1e-6)
    np.testing.assert_array_equal(again.valid, group.valid)
    other = run(p, given(embedding + 1, mask))
    assert np.abs(other.tokens - group.tokens).max() > 0.1
    with pytest.raises(plugin.UserError, match="fine-tuned"):
        Host(made(finetune=True)).apply(p, given(embedding, mask))


def test_embeddings_made_elsewhere():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(B, F)).astype(np.float32)
    alone = dict(encoder=None, embedding_size=F)
    p, group, facts = tokenize(made(**alone, max_tokens=1), given(one, np.array([True, False])))
    assert facts.num_tokens == 1 and np.asarray(group.valid).tolist() == [[True], [False]]
    np.testing.assert_array_equal(group.stem[:, 0], one)
    assert {path.split("/")[2] for path in trees.paths(p) if "/tested/" in path} == {"project"}
    many = rng.normal(size=(B, T, F)).astype(np.float32)
    mask = np.arange(T)[None] < np.array([[2], [0]])
    _, group, _ = tokenize(made(**alone, attend_padding=True), given(many, mask))
    assert np.asarray(group.valid).tolist() == [[True] * T, [False] * T]
    with pytest.raises(plugin.UserError, match=r"got shape \(2, 1, 6\), expected .* \(5, 6\)"):
        tokenize(made(**alone), given(one, mask[:, 0]))
    with pytest.raises(plugin.UserError, match="unknown 'language_embedding'"):
        tokenize(made(**alone))


def test_errors():
    context = types.Context(name="language", width=8)
    build = encoded_language.make
    with pytest.raises(plugin.UserError, match="table of 20 pieces, but the text tokenizer has 21"):
        build(dataclasses.replace(context, text_tokenizer=Words()), encoder=ENCODER, max_tokens=T)
    image = next(n for n in plugin.names("backbones") if n != "t5")
    with pytest.raises(plugin.UserError, match=f"'{image}' encodes no text"):
        build(context, encoder=dict(type=image), max_tokens=T)
    with pytest.raises(plugin.UserError, match="needs its type"):
        build(context, encoder={}, max_tokens=T)
    with pytest.raises(plugin.UserError, match=r"max_tokens\): got shape \(2, 5\)"):
        tokenize(made(max_tokens=T + 1))
    with pytest.raises(plugin.UserError, match="no encoder; give 'language_embedding'"):
        build(context, encoder=None, max_tokens=T).embed(None, None)


@pytest.mark.parametrize(
    "values, masks, message",
    [
        (np.zeros((2, 3)), np.zeros(2, bool), "float64, expected float32"),
        (np.zeros(3, np.float32), np.zeros(3, bool), "expected 2 axes"),
        (np.zeros((2, 3), np.float32), np.zeros((2, 3), bool), "mask: got shape"),
        (np.zeros((2, 4, 3), np.float32), np.zeros((2, 3), bool), "mask: got shape"),
        (np.zeros((2, 4, 3), np.float32), np.zeros((2, 4), int), "mask: got dtype"),
    ],
)
def test_the_contract_page_checks_embeddings(values, masks, message):
    with pytest.raises(plugin.UserError, match=f"task.language_embedding.*{message}"):
        types.Task.make(values={"language_embedding": values}, masks={"language_embedding": masks})


def test_a_sentence_that_other_tokenizers_read_and_the_trunk_does_not():
    """No token, no parameter; without a sentence a row is read as it stands, if it learnt so."""
    embedding = np.random.default_rng(1).normal(size=(B, F)).astype(np.float32)
    data, mask = given(embedding, np.array([True, False])), [[True], [False]]
    told = dict(encoder=None, embedding_size=F, max_tokens=1, in_trunk=False)
    for masked in (True, False):
        p, group, facts = tokenize(made(**told, masked=masked), data)
        assert facts.num_tokens == 0 and group.tokens.shape[1] == 0
        assert not [path for path in trees.paths(p) if "/tested/" in path]
        np.testing.assert_array_equal(group.stem[:, 0], embedding)
        assert np.asarray(group.valid).tolist() == (mask if masked else [[True], [True]])
