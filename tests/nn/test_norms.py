import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.nn import mlp, norms, positions

X = jax.random.normal(jax.random.key(0), (2, 5, 8)) * 3 + 1


def test_norms_normalise_in_float32_and_return_the_dtype():
    layer, rms = norms.make("layer", jnp.float32), norms.make("rms", jnp.float32)
    y = layer.apply(layer.init(jax.random.key(0), X), X)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-3)
    y = rms.apply(rms.init(jax.random.key(0), X), X)
    np.testing.assert_allclose(jnp.square(y).mean(-1), 1, atol=1e-3)
    half = norms.make("layer", jnp.bfloat16)
    big = (X * 1e3).astype(jnp.bfloat16)
    assert half.apply(half.init(jax.random.key(0), big), big).dtype == jnp.bfloat16


def test_modulation_of_zero_is_identity():
    np.testing.assert_array_equal(norms.modulate(X, jnp.zeros((2, 16))), X)
    np.testing.assert_array_equal(norms.modulate(X, jnp.zeros((2, 5, 16))), X)


def test_mlp_names_its_layers_and_refuses_unknown_activations():
    net = mlp.Mlp((16, 12), 3)
    p = net.init(jax.random.key(0), X)
    assert set(p["params"]) == {"hidden_0", "hidden_1", "out"}
    assert net.apply(p, X).shape == (2, 5, 3)
    with pytest.raises(plugin.UserError, match="did you mean 'gelu'"):
        mlp.Mlp((4,), 3, "gelo").init(jax.random.key(0), X)


def test_learned_positions_take_the_newest_rows():
    table = positions.Learned(3, 8, steps=4)
    p = table.init(jax.random.key(0), 4)
    np.testing.assert_array_equal(table.apply(p, 2), table.apply(p, 4)[2:])
    timeless = positions.Learned(3, 8)
    assert timeless.apply(timeless.init(jax.random.key(0))).shape == (3, 8)
    with pytest.raises(plugin.UserError, match="window 5 does not fit"):
        table.apply(p, 5)


def test_rope_depends_on_differences_only():
    q, k = X[:, :1, None], X[:, 1:2, None]

    def score(a, b):
        at = lambda p: jnp.full((2, 1), p)  # noqa: E731
        return jnp.sum(positions.rotate(q, at(a)) * positions.rotate(k, at(b)))

    np.testing.assert_allclose(score(3, 1), score(10, 8), rtol=1e-4)
    assert abs(score(3, 1) - score(3, 2)) > 1e-2
    with pytest.raises(ValueError, match="odd"):
        positions.rotate(X[..., None, :7], jnp.zeros((2, 5)))
