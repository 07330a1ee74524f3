import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.nn import attention, layout, visibility

G = layout.Group
ROWS = layout.Layout.make([G("language", 2), G("image", 3, 2), G("readout", 1, 2)], 2)
RULES = (
    ("readout", "readout", "never"),
    ("*", "readout", "never"),
    ("language", "image", "never"),
    ("*", "*", "past_or_now"),
)


def inputs(heads=4, kv_heads=4, dim=8, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = [(2, ROWS.length, n, dim) for n in (heads, kv_heads, kv_heads)]
    q, k, v = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    valid = np.ones((2, ROWS.length), bool)
    valid[0, [1, 3]] = False
    return q, k, v, jnp.asarray(valid)


@jax.jit
def compiled(q, k, v, valid):
    return attention.attention(q, k, v, ROWS, RULES, valid)


def by_loop(q, k, v, mask, valid):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b, i, n in np.ndindex(q.shape[:3]):
        kv = n * k.shape[2] // q.shape[2]
        keys = np.flatnonzero(mask[i] & valid[b])
        if keys.size:
            scores = k[b, keys, kv] @ q[b, i, n] / np.sqrt(q.shape[3])
            weights = np.exp(scores - scores.max())
            out[b, i, n] = weights @ v[b, keys, kv] / weights.sum()
    return out


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_equals_a_numpy_loop(kv_heads):
    q, k, v, valid = inputs(kv_heads=kv_heads)
    expected = by_loop(q, k, v, visibility.mask(ROWS, RULES), np.asarray(valid))
    np.testing.assert_allclose(compiled(q, k, v, valid), expected, atol=1e-5)


def test_fully_masked_query_is_exactly_zero_with_finite_gradients():
    q, k, v, valid = inputs()
    valid = valid.at[1].set(False)

    def total(q, k, v):
        return jnp.sum(jnp.square(attention.attention(q, k, v, ROWS, RULES, valid)))

    out = compiled(q, k, v, valid)
    assert (np.asarray(out[1]) == 0).all() and np.abs(out[0]).max() > 0
    for gradient in jax.jit(jax.grad(total, (0, 1, 2)))(q * 100, k * 100, v):
        assert np.isfinite(gradient).all() and (np.asarray(gradient[1]) == 0).all()


@pytest.mark.parametrize("unseeing", ["zeros", "mean"])
@pytest.mark.parametrize("kv_heads, slots", [(4, None), (2, None), (4, np.arange(1, 10))])
def test_blocks_of_queries_change_neither_values_nor_gradients(
    unseeing, kv_heads, slots, monkeypatch
):
    q, k, v, valid = inputs(kv_heads=kv_heads)
    valid = valid.at[1, 2:].set(False).at[1, :2].set(unseeing == "zeros")
    q = q if slots is None else q[:, slots]

    def total(q, k, v):
        out = attention.attention(q, k, v, ROWS, RULES, valid, slots, unseeing)
        return jnp.sum(jnp.sin(out)), out

    found = []
    for size in (384, 3, 4):
        monkeypatch.setattr(attention, "BLOCK", size)
        found.append(jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(q, k, v))
    for other in found[1:]:
        for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_blocks_end_with_timesteps_and_leave_out_what_nobody_sees(monkeypatch):
    seen = visibility.mask(ROWS, visibility.make(RULES))  # language 2, then twice image 3 readout 1
    for size, wanted in [
        (9, ((0, 6, ((0, 5),)), (6, 10, ((0, 9),)))),
        (4, ((0, 2, ((0, 2),)), (2, 6, ((0, 5),)), (6, 10, ((0, 9),)))),
        (3, (
            (0, 2, ((0, 2),)),
            (2, 4, ((0, 5),)), (4, 6, ((0, 5),)), (6, 8, ((0, 9),)), (8, 10, ((0, 9),)),
        )),
    ]:  # fmt: skip
        monkeypatch.setattr(attention, "BLOCK", size)
        assert attention._blocks(seen, ROWS.time, whole=False) == wanted
        whole = attention._blocks(seen, ROWS.time, whole=True)
        assert [block[:2] for block in whole] == [block[:2] for block in wanted]
        assert {block[2] for block in whole} == {((0, 10),)}


def test_a_block_leaves_out_what_lies_between_seen_keys(monkeypatch):
    now = (("*", "language", "all"), ("*", "*", "now"))
    seen = visibility.mask(ROWS, now)
    monkeypatch.setattr(attention, "BLOCK", 4)
    for gap, last in [(64, ((0, 10),)), (3, ((0, 2), (6, 10)))]:
        monkeypatch.setattr(attention, "GAP", gap)
        assert attention._blocks(seen, ROWS.time, whole=False)[-1] == (6, 10, last)


def test_rows_of_the_mask_by_static_or_traced_slots():
    q, k, v, valid = inputs()
    whole = compiled(q, k, v, valid)
    slots = np.array([4, 5, 9])
    static = jax.jit(lambda q: attention.attention(q, k, v, ROWS, RULES, valid, slots))(q[:, slots])
    traced = jax.jit(lambda q, slots: attention.attention(q, k, v, ROWS, RULES, valid, slots))(
        q[:, slots], jnp.asarray(slots)
    )
    np.testing.assert_allclose(static, whole[:, slots], atol=1e-6)
    np.testing.assert_allclose(traced, whole[:, slots], atol=1e-6)


def test_bfloat16_softmax_is_float32():
    q, k, v, valid = inputs(dtype=jnp.bfloat16)
    out = compiled(q, k, v, valid)
    assert out.dtype == jnp.bfloat16
    expected = by_loop(
        *(x.astype(jnp.float32) for x in (q, k, v)), visibility.mask(ROWS, RULES), np.asarray(valid)
    )
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.03)
