import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.nn import embedding, grounding

IDS = np.array([[7, 8, 3, 4, 0], [3, 4, 0, 0, 0], [7, 8, 0, 0, 0], [0, 0, 0, 0, 0]], np.int32)
MASK = IDS != 0
TEMPLATES = ((7,), (7, 8), (9, 9, 9, 9, 9, 9))


def build(**changes):
    net = embedding.TextEmbedding(**dict(vocabulary_size=12, width=8) | changes)
    return net, jax.jit(net.init)(jax.random.key(0), IDS)


def pooled_by(net, p, ids=IDS, mask=MASK):
    return jax.jit(lambda p: net.apply(p, ids, mask, method="pooled"))(p)


@pytest.mark.parametrize("pool", ["mean", "query"])
def test_a_template_pools_like_the_bare_name(pool):
    net, p = build(pool=pool, templates=TEMPLATES)
    if pool == "query":
        p["params"]["query"] = jax.random.normal(jax.random.key(1), (8,))
    pooled = pooled_by(net, p)
    np.testing.assert_allclose(pooled[0], pooled[1], atol=1e-6)
    assert (np.asarray(pooled[3]) == 0).all()  # no text
    assert np.abs(pooled[2]).max() > 0  # nothing but a template: pooled whole
    row = pooled_by(net, p, IDS[0], MASK[0])  # no batch axis
    np.testing.assert_allclose(row, pooled[0], atol=1e-6)


def test_mean_and_query_at_the_start_are_the_mean_of_the_pieces():
    for pool in ("mean", "query"):
        net, p = build(pool=pool)
        expected = net.apply(p, IDS)[1, :2].mean(0)
        got = pooled_by(net, p)[1]
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_query_learns_salience_and_padding_has_no_gradient():
    net, p = build(pool="query")

    def loss(p):
        return jnp.sum(jnp.square(net.apply(p, IDS, MASK, method="pooled")))

    gradient = jax.jit(jax.grad(loss))(p)["params"]
    assert np.isfinite(gradient["query"]).all() and np.abs(gradient["query"]).max() > 0
    assert (np.asarray(gradient["table"][0]) == 0).all()


def test_read_out_is_tied_and_float32():
    net, p = build(dtype=jnp.bfloat16)
    pieces = net.apply(p, IDS)
    logits = net.apply(p, pieces, method="logits")
    assert pieces.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    assert logits.shape == (4, 5, 12)
    np.testing.assert_array_equal(logits[MASK].argmax(-1), IDS[MASK])


def test_unknown_pool():
    with pytest.raises(plugin.UserError, match="did you mean 'mean'"):
        build(pool="meen")


def test_grounding_returns_unit_vectors_and_finite_gradients_at_zero():
    net = grounding.Grounding(4)
    stem, word = jnp.ones((2, 3, 6)), jnp.zeros((2, 5))
    run = jax.jit(lambda key: net.init_with_output(key, stem, word, method=both))
    (patches, words), p = run(jax.random.key(0))
    np.testing.assert_allclose(jnp.linalg.norm(patches, axis=-1), 1.0, atol=1e-4)
    assert (np.asarray(words) == 0).all()
    gradient = jax.jit(jax.grad(lambda w: net.apply(p, stem, w, method=both)[1].sum()))(word)
    assert np.isfinite(gradient).all()


def both(net, stem, word):
    return net.patches(stem), net.words(word)
