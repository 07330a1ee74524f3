"""Every implementation of attention against one plain reference: values, gradients, padding.

Kernels run as far as a CPU can: splash by Pallas's interpreter, and of cudnn all but the kernel,
in whose place jax's function of the same arguments stands.
"""

import dataclasses
import functools
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.nn import attention, layout, trunk, visibility
from vla_jax.nn import attention_kernels as kernels
from vla_jax.parallel import mesh as meshes

MADE = (*attention.PLAIN, *kernels.KERNELS)
OCTO = (
    layout.Layout.make(
        [layout.Group("language", 3), layout.Group("image", 5, 2), layout.Group("readout", 1, 2)], 2
    ),
    (("readout", "readout", "now"), ("*", "readout", "never"), ("*", "*", "past_or_now")),
)
# Four timesteps that see the task and themselves: what lies between is left out.
APART = (
    layout.Layout.make([layout.Group("language", 2), layout.Group("image", 6, 4)], 4),
    (("language", "image", "never"), ("*", "language", "all"), ("*", "*", "now")),
)

# 300 tokens of which the second 128 see nothing and the task sees all.
BLIND = (
    layout.Layout.make(
        [layout.Group("task", 128), layout.Group("a", 128), layout.Group("b", 44)], 1
    ),
    (("task", "*", "all"), ("a", "*", "never"), ("b", "a", "never"), ("*", "*", "all")),
)


def reference(q, k, v, seen, unseeing):
    """Softmax as it is written in textbooks, in float32; `seen` bool [B, L, S]."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    shared = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, shared, axis=2), jnp.repeat(v, shared, axis=2)
    scores = jnp.einsum("blnh,bsnh->bnls", q, k) / np.sqrt(q.shape[-1])
    some = seen.any(-1)[:, None, :, None]
    scores = jnp.where(seen[:, None], scores, -jnp.inf)
    weights = jax.nn.softmax(jnp.where(some, scores, 0.0), axis=-1)  # of nothing seen: the mean
    if unseeing == "zeros":
        weights = jnp.where(some, weights, 0.0)
    return jnp.einsum("bnls,bsnh->blnh", weights, v)


def compare(
    rows, rules, *, made=attention.PLAIN, kv_heads=2, dtype=jnp.float32, unseeing="zeros",
    slots=None, size=4,
):  # fmt: skip
    """Asserts that values and gradients of the implementations `made` are the reference's."""
    rng = np.random.default_rng(0)
    places = np.arange(rows.length) if slots is None else slots
    shapes = [
        (2, n, h, size) for n, h in zip((len(places), *[rows.length] * 2), (2, *[kv_heads] * 2))
    ]
    q, k, v = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    valid = rng.random((2, rows.length)) < 0.7
    valid[1] = False  # a row without any key
    seen = visibility.mask(rows, rules)[places][None] & valid[:, None]
    goal = jnp.asarray(rng.normal(size=q.shape), jnp.float32)

    @jax.jit
    def all_(q, k, v):
        def gradients(run):
            def loss(q, k, v):
                out = run(q, k, v)
                return jnp.sum(jnp.sin(out.astype(jnp.float32)) * goal), out

            return jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)

        def run(name):
            return lambda q, k, v: attention.attention(
                q, k, v, rows, rules, jnp.asarray(valid), slots, unseeing, name
            )

        plain = gradients(lambda q, k, v: reference(q, k, v, jnp.asarray(seen), unseeing))
        return plain, {name: gradients(run(name)) for name in made}

    plain, found = all_(q, k, v)
    tolerance = 2e-5 if dtype == jnp.float32 else 0.06
    for name, each in found.items():
        assert each[1].dtype == dtype
        for a, b in zip(jax.tree.leaves(each), jax.tree.leaves(plain), strict=True):
            a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
            np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance, err_msg=name)


@pytest.fixture(autouse=True)
def small_blocks():
    with mock.patch.multiple(attention, BLOCK=4, GAP=2), mock.patch.object(kernels, "LARGEST", 128):
        yield


@pytest.fixture(autouse=True)
def kernels_on_this_machine():
    """Splash is interpreted; cudnn's function is asked for its twin in XLA's operations."""
    whole = jax.nn.dot_product_attention

    def twin(*arguments, implementation, **more):
        assert implementation == "cudnn"
        assert not arguments[0].shape[1] % 2 and not arguments[1].shape[1] % 2
        return whole(*arguments, implementation="xla", **more)

    given = dict(platform="cpu", dtypes=("float32", "bfloat16"))
    here = dataclasses.replace(kernels.KERNELS["cudnn"], **given)
    with (
        mock.patch.object(kernels, "INTERPRET", True),
        mock.patch.object(jax.nn, "dot_product_attention", twin),
        mock.patch.dict(kernels.KERNELS, cudnn=here),
    ):
        yield


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows, rules", [OCTO, APART], ids=["octo", "apart"])
def test_all_equal_the_reference(rows, rules, dtype):
    compare(rows, rules, made=MADE, dtype=dtype)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_unseeing_queries_may_take_the_mean(kv_heads):
    compare(*OCTO, made=MADE, kv_heads=kv_heads, unseeing="mean")


def test_kernels_over_several_of_their_blocks():
    """300 tokens: blocks without a pair that is seen, with some, and with all; three added."""
    rows, rules = BLIND
    seen = np.zeros((384, 384), bool)
    seen[:300, :300] = visibility.mask(rows, rules)
    shares = seen.reshape(3, 128, 3, 128).mean((1, 3))
    assert {0.0, 1.0} < set(shares.ravel()) and not shares[1].any()
    compare(rows, rules, made=tuple(kernels.KERNELS), kv_heads=1, size=64)


def test_kernels_for_some_of_the_queries():
    rows, rules = BLIND
    compare(rows, rules, made=MADE, slots=np.array([0, 7, 130, 299]))


@pytest.mark.mesh
@pytest.mark.parametrize(
    "axes, name",
    [
        (dict(data=2, fsdp=2, tensor=2), "cudnn"),
        (dict(data=2, fsdp=2, tensor=2), "splash"),
        (dict(tensor=4, sequence=2), "splash"),  # 2 key heads: all stay whole
    ],
)
def test_kernels_run_on_each_device_by_itself(axes, name):
    """Values and gradients of rows and heads over a mesh are those of xla on one device."""
    rows, rules = OCTO
    rng = np.random.default_rng(0)
    shapes = [(4, rows.length, heads, 8) for heads in (4, 2, 2)]
    parts = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    valid = rng.random((4, rows.length)) < 0.7

    def loss(parts, name):
        out = attention.attention(*parts, rows, rules, jnp.asarray(valid), implementation=name)
        return jnp.sum(jnp.sin(out)), out

    alone = jax.jit(jax.grad(functools.partial(loss, name="xla"), has_aux=True))(parts)
    with meshes.use(meshes.make(axes)):
        found = jax.jit(jax.grad(functools.partial(loss, name=name), has_aux=True))(parts)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5)


@st.composite
def layouts(draw):
    window = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=3))
    groups = [
        layout.Group(f"g{i}", tokens, window if timed else 0)
        for i, (tokens, timed) in enumerate(sizes)
    ]
    names = [group.name for group in groups]
    pairs = st.tuples(st.sampled_from(names), st.sampled_from(names))
    rules = [(*pair, draw(st.sampled_from(visibility.NAMES))) for pair in draw(st.lists(pairs))]
    last = ("*", "*", draw(st.sampled_from(visibility.NAMES)))
    return layout.Layout.make(groups, window), (*rules, last)


@hypothesis.settings(max_examples=4, deadline=None, derandomize=True)
@hypothesis.given(layouts(), st.sampled_from([1, 2]), st.sampled_from(["zeros", "mean"]))
def test_any_layout_and_rules(made, kv_heads, unseeing):
    compare(*made, kv_heads=kv_heads, unseeing=unseeing)


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(layouts(), st.integers(1, 8), st.integers(1, 5))
def test_no_block_leaves_out_what_is_seen(made, block, gap):
    """Every query stands in one block, and all that it may see stands in the block's spans."""
    rows, rules = made
    seen = visibility.mask(rows, rules)
    with mock.patch.multiple(attention, BLOCK=block, GAP=gap):
        blocks = attention._blocks(seen, rows.time, whole=False)
    assert [first for first, *_ in blocks] == [0, *(last for _, last, _ in blocks[:-1])]
    assert blocks[-1][1] == rows.length and all(b - a <= block for a, b, _ in blocks)
    for first, last, spans in blocks:
        taken = np.zeros(rows.length, bool)
        for near, far in spans:
            assert not taken[near:far].any()
            taken[near:far] = True
        assert not (seen[first:last] & ~taken).any()


def test_structured_does_less_than_chunked():
    rows, rules = APART
    x = jnp.zeros((1, rows.length, 2, 4))
    valid = jnp.ones((1, rows.length), bool)
    counted = {
        name: jax.jit(
            lambda x, name=name: attention.attention(
                x, x, x, rows, rules, valid, implementation=name
            )
        )
        .lower(x)
        .cost_analysis()["flops"]
        for name in attention.PLAIN
    }
    assert counted["structured"] < 0.6 * counted["chunked"]


def test_a_trunk_chooses_by_name():
    rows, rules = OCTO
    x = {"trunk": jnp.ones((1, rows.length, 8))}
    valid = jnp.ones((1, rows.length), bool)

    def shape(name):
        net = trunk.Trunk(width=8, depth=1, heads=2, mlp=8, rules=rules, attention=name)
        return jax.eval_shape(lambda: net.init(jax.random.key(0), x, rows, valid))

    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, shape("xla"), shape("auto")))
    with pytest.raises(plugin.UserError, match="did you mean 'chunked'"):
        shape("chunk")
