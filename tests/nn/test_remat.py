"""What a layer keeps for the backward pass: fewer bytes, the same gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax import trees
from vla_jax.nn import layout, trunk

ROWS = layout.Layout.make([layout.Group("image", 88, 2)], 2)
RULES = (("*", "*", "past_or_now"),)


@functools.cache
def gradient(remat: str, dtype: str = "float32"):
    """(gradients by path, XLA's bytes of temporaries) of a trunk of four layers."""
    net = trunk.Trunk(
        width=32, depth=4, heads=4, mlp=64, rules=RULES, remat=remat, dtype=jnp.dtype(dtype)
    )
    x = jax.random.normal(jax.random.key(0), (4, ROWS.length, 32))
    valid = jnp.ones((4, ROWS.length), bool).at[0, 5:20].set(False)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(1), {"trunk": x}, ROWS, valid))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes)

    def loss(variables):
        return jnp.sum(jnp.sin(net.apply(variables, {"trunk": x}, ROWS, valid)[0]["trunk"]))

    kept = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, kept)
    jax.config.update(kept, 1e9)  # never written: a kept program has no memory analysis
    try:
        compiled = jax.jit(jax.grad(loss)).lower(variables).compile()
    finally:
        jax.config.update(kept, before)
    return dict(trees.items(compiled(variables))), compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_gradients_are_the_same(remat):
    plain, other = gradient("none")[0], gradient(remat)[0]
    assert all(np.any(leaf) for path, leaf in plain.items() if "key/bias" not in path)
    for path, leaf in plain.items():
        scale = np.abs(leaf).max()
        np.testing.assert_allclose(other[path], leaf, atol=1e-5 * scale + 1e-5, err_msg=path)


def test_dots_keeps_less_than_none_and_full_less_than_dots():
    none, dots, full = (gradient(remat)[1] for remat in ("none", "dots", "full"))
    assert full < dots < none
    # 4 layers' weights of attention [4, 4, 176, 176] in float32 are not among what dots keeps.
    assert none - dots > 4 * 4 * 4 * 176 * 176 * 4 / 2
