import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax import trees
from vla_jax.nn import layout, linear, trunk

KEY = jax.random.key(0)


def randn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_dense_and_einsum_agree_with_numpy():
    x = randn(2, 5, 6)
    dense, einsum = linear.Dense(8), linear.Einsum("BLD,DNH->BLNH", (6, 4, 2), bias_shape=(4, 2))
    p = dense.init(KEY, x)
    expected = np.asarray(x) @ np.asarray(p["params"]["kernel"]) + np.asarray(p["params"]["bias"])
    np.testing.assert_allclose(dense.apply(p, x), expected, atol=1e-5)
    q = einsum.init(KEY, x)
    expected = np.einsum("bld,dnh->blnh", x, q["params"]["kernel"])
    np.testing.assert_allclose(einsum.apply(q, x), expected, atol=1e-5)


def test_conv_folds_leading_axes_and_strides():
    x = randn(2, 3, 6, 6, 4)
    conv = linear.Conv(5, (3, 3), (3, 3))
    p = conv.init(KEY, x)
    y = conv.apply(p, x)
    assert y.shape == (2, 3, 2, 2, 5)
    np.testing.assert_allclose(y[1, 2], conv.apply(p, x[1, 2][None])[0], atol=1e-5)


def test_compute_dtype_is_the_argument_and_parameters_stay_float32():
    x = randn(2, 5, 6)
    for layer in (
        linear.Dense(8, dtype=jnp.bfloat16),
        linear.Einsum("BLD,DF->BLF", (6, 8), jnp.bfloat16),
        linear.Conv(8, dtype=jnp.bfloat16),
    ):
        inputs = x[:, None] if isinstance(layer, linear.Conv) else x
        p = layer.init(KEY, inputs)
        assert {leaf.dtype for leaf in jax.tree.leaves(p)} == {jnp.dtype("float32")}
        assert layer.apply(p, inputs).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "layer, inputs, a, b",
    [
        (linear.Dense(8), (2, 5, 6), (6, 3), (3, 8)),
        (linear.Einsum("BLD,DNH->BLNH", (6, 4, 2)), (2, 5, 6), (6, 3), (3, 4, 2)),
        (linear.Einsum("BLNH,NHD->BLD", (4, 2, 6)), (2, 5, 4, 2), (4, 2, 3), (3, 6)),
    ],
)
def test_low_rank_term_equals_a_merged_kernel(layer, inputs, a, b):
    x = randn(*inputs)
    p = layer.init(KEY, x)
    assert "lora" not in p
    a, b = randn(*a, seed=1), randn(*b, seed=2)
    merged = p["params"]["kernel"] + jnp.tensordot(a, b, 1)
    expected = layer.apply({"params": p["params"] | {"kernel": merged}}, x)
    got = layer.apply({**p, "lora": {"a": a, "b": b}}, x)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    unchanged = layer.apply({**p, "lora": {"a": a, "b": jnp.zeros_like(b)}}, x)
    np.testing.assert_array_equal(unchanged, layer.apply(p, x))


def test_low_rank_inside_the_scan_reaches_only_the_layers_it_names():
    rows = layout.Layout.make([layout.Group("a", 3)], 1)
    net = trunk.Trunk(width=8, depth=2, heads=2, mlp=16, rules=(("*", "*", "all"),))
    x, valid = {"trunk": randn(1, 3, 8)}, jnp.ones((1, 3), bool)
    p = jax.eval_shape(lambda x: net.init(KEY, x, rows, valid), x)
    p = jax.tree.map(lambda leaf: 0.3 * randn(*leaf.shape, seed=leaf.ndim), p)

    run = jax.jit(lambda p: net.apply(p, x, rows, valid)[0]["trunk"])
    term = {"a": randn(2, 8, 4), "b": jnp.zeros((2, 4, 2, 4))}
    lora = {"layers": {"trunk": {"query": term}}}
    plain = run(p)
    zero = run({**p, "lora": lora})
    np.testing.assert_array_equal(zero, plain)
    term["b"] = randn(2, 4, 2, 4, seed=3)
    kernel = p["params"]["layers"]["trunk"]["query"]["kernel"]
    merged = kernel + jnp.einsum("zDr,zrNH->zDNH", term["a"], term["b"])
    by_path = trees.map_with_path(
        lambda path, leaf: merged if path.endswith("query/kernel") else leaf, p
    )
    expected = run(by_path)
    got = run({**p, "lora": lora})
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(got - plain).max() > 1e-3


def test_einsum_refuses_a_batched_kernel():
    with pytest.raises(ValueError, match="keeps a kernel axis"):
        linear.Einsum("BLD,BDF->BLF", (2, 6, 8)).init(KEY, randn(2, 5, 6))


def test_fan_in_counts_every_contracted_axis():
    layer = linear.Einsum("BLNH,NHD->BLD", (16, 16, 64))
    kernel = layer.init(KEY, randn(1, 1, 16, 16))["params"]["kernel"]
    assert abs(float(kernel.std()) * 16 - 1) < 0.1
    assert isinstance(layer, nn.Module)
