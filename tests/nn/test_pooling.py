import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.backbones import golden
from vla_jax import plugin
from vla_jax.nn import film, linear, norms, pooling, token_learner

KEY = jax.random.key(0)


def randn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def loaded(net, module, arrays, *inputs):
    """(output, parameters) of the module with Octo's parameters."""
    p = golden.variables(module, golden.below(arrays, "params/"), net, *inputs)
    return jax.jit(net.apply)(p, *inputs), p


@pytest.fixture(scope="module")
def modules(fixtures_dir):
    return np.load(fixtures_dir / "octo_golden" / "variant2" / "modules.npz")


def test_attention_pool_as_octo(modules):
    arrays = golden.below(modules, "map_head_masked/")
    x, mask = arrays["in0/tokens"], arrays["in0/mask"]
    net = pooling.AttentionPool(2, unseeing="mean")
    out, p = loaded(net, "MAPHead", arrays, x, mask)
    golden.check("map_head_masked", out, arrays["out"])
    # Masked whole, the mean of all values is what is read, as if all scores were equal.
    empty = jax.jit(net.apply)(p, x, np.zeros_like(mask))
    p = {"params": {**p["params"], "probe": jnp.zeros_like(p["params"]["probe"])}}
    p["params"]["query"] = jax.tree.map(jnp.zeros_like, p["params"]["query"])
    np.testing.assert_allclose(empty, jax.jit(net.apply)(p, x), atol=1e-5)


def test_token_learner_as_octo(modules):
    arrays = golden.below(modules, "token_learner/")
    net = token_learner.TokenLearner(3)
    out, _ = loaded(net, "TokenLearner", arrays, arrays["in0/"])
    golden.check("token_learner", out, arrays["out"])


@pytest.mark.parametrize("unseeing", ["zeros", "mean"])
def test_rows_without_a_real_token(unseeing):
    net, x = pooling.AttentionPool(2, 4, hidden=8, unseeing=unseeing), randn(3, 5, 16)
    mask = np.array([[1, 1, 0, 0, 1], [0] * 5, [1] * 5], bool)
    p = jax.jit(net.init)(KEY, x, mask)
    p = jax.tree.map(lambda leaf: leaf + 0.1, p)  # no bias stays zero
    run = jax.jit(net.apply)
    out = np.asarray(run(p, x, mask))
    np.testing.assert_allclose(out[2], run(p, x)[2], atol=1e-6)
    np.testing.assert_allclose(out[0], run(p, x[:, [0, 1, 4]])[0], atol=1e-6)
    changed = np.asarray(run(p, np.where(mask[..., None], x, x + 1), mask))
    np.testing.assert_allclose(changed[[0, 2]], out[[0, 2]], atol=1e-6)
    assert (np.abs(changed[1] - out[1]).max() > 1e-3) == (unseeing == "mean")

    def total(x, p):
        return jnp.sum(jnp.square(net.apply(p, x, mask)))

    gradients = jax.jit(jax.grad(total, (0, 1)))(x * 100, p)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    read = np.abs(gradients[0]).max((2,)) > 0
    np.testing.assert_array_equal(read, mask | (unseeing == "mean") & ~mask.any(1, keepdims=True))


def test_pools_keep_leading_axes_and_the_compute_dtype():
    x = randn(2, 3, 5, 16)
    for net, n in ((pooling.AttentionPool(2), 2), (token_learner.TokenLearner(4), 4)):

        @jax.jit
        def run(x, net=net):
            p = net.init(KEY, x)
            return p, net.apply(p, x), net.apply(p, x[1])

        p, out, row = run(x)
        assert {leaf.dtype for leaf in jax.tree.leaves(p)} == {jnp.dtype("float32")}
        assert out.shape == (2, 3, n, 16)
        np.testing.assert_allclose(out[1], row, atol=1e-5)
        half = jax.eval_shape(net.clone(dtype=jnp.bfloat16).apply, p, x)
        assert half.dtype == jnp.bfloat16


def test_bad_pools_are_named():
    x = randn(2, 5, 16)
    for net, mask, message in (
        (pooling.AttentionPool(heads=3), None, "width 16 does not divide into 3 heads"),
        (pooling.AttentionPool(unseeing="zero"), None, "did you mean 'zeros'"),
        (pooling.AttentionPool(), np.ones((2, 4), bool), r"expected \(2, 5\), the tokens'"),
    ):
        with pytest.raises(plugin.UserError, match=message):
            jax.eval_shape(net.init, KEY, x, mask)


def test_film_scales_and_shifts_and_starts_at_nothing():
    x, vector, net = randn(2, 3, 4, 5), randn(2, 6, seed=1), film.Film()
    p = net.init(KEY, x, vector)
    np.testing.assert_array_equal(net.apply(p, x, vector), x)
    p = {"params": {name: {"kernel": randn(6, 5, seed=i), "bias": randn(5, seed=i)}
                    for i, name in enumerate(("scale", "shift"))}}  # fmt: skip
    scale, shift = (
        (vector @ p["params"][name]["kernel"] + p["params"][name]["bias"])[:, None, None]
        for name in ("scale", "shift")
    )
    np.testing.assert_allclose(net.apply(p, x, vector), x * (1 + scale) + shift, atol=1e-5)
    half = jax.eval_shape(net.clone(dtype=jnp.bfloat16).apply, p, x, vector)
    assert half.dtype == jnp.bfloat16


def test_group_norm_is_per_image_and_group():
    x, net = randn(2, 4, 5, 6) * 3 + 7, norms.GroupNorm(groups=2)
    p = net.init(KEY, x)
    y = np.asarray(net.apply(p, x)).reshape(2, 20, 2, 3)
    np.testing.assert_allclose(y.mean((1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((1, 3)), 1, atol=1e-4)
    p = {"params": {"scale": jnp.arange(6.0), "bias": jnp.ones(6)}}
    expected = y.reshape(x.shape) * np.arange(6) + 1
    np.testing.assert_allclose(net.apply(p, x), expected, atol=1e-5)
    with pytest.raises(plugin.UserError, match="6 features do not divide into 4 groups"):
        norms.GroupNorm(groups=4).init(KEY, x)


def test_a_standardized_convolution_forgets_scale_and_mean_of_its_kernel():
    x, net = randn(1, 5, 5, 3), linear.Conv(4, standardize=True)
    p = net.init(KEY, x)
    kernel = p["params"]["kernel"]
    moved = {"params": p["params"] | {"kernel": kernel * 5 + 2}}
    np.testing.assert_allclose(net.apply(p, x), net.apply(moved, x), atol=1e-2)
    kernel = kernel - kernel.mean((0, 1, 2), keepdims=True)
    kernel = kernel / (kernel.std((0, 1, 2), keepdims=True) + 1e-5)
    plain = linear.Conv(4).apply({"params": p["params"] | {"kernel": kernel}}, x)
    np.testing.assert_allclose(net.apply(p, x), plain, atol=1e-5)
