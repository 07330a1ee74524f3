import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax import plugin, trees
from vla_jax.nn import layout, trunk, visibility
from vla_jax.parallel import mesh

G = layout.Group
ROWS = layout.Layout.make([G("language", 2), G("image", 3, 2), G("readout_a", 1, 2)], 2)
RULES = (
    ("readout_*", "readout_*", "now"),
    ("*", "readout_*", "never"),
    ("language", "language", "all"),
    ("language", "*", "never"),
    ("*", "*", "past_or_now"),
)
FLOW = layout.Layout.make([G("language", 2), G("image", 3, 2), G("noise", 2, 2, "flow")], 2)
FLOW_RULES = (
    ("noise", "noise", "now"),
    ("*", "noise", "never"),
    ("language", "language", "all"),
    ("language", "*", "never"),
    ("*", "*", "past_or_now"),
)
VALID = jnp.ones((2, ROWS.length), bool)


def make(**changes):
    return trunk.Trunk(**dict(width=8, depth=3, heads=2, mlp=16, rules=RULES) | changes)


@functools.cache
def tokens(seed=0, length=ROWS.length, width=8):
    return jax.random.normal(jax.random.key(seed), (2, length, width))


def shapes(net, x, rows, valid, **more):
    """What init makes, without making it."""
    return jax.eval_shape(
        lambda x, valid: net.init(jax.random.key(1), x, rows, valid, **more), x, valid
    )


def init(net, x, rows, valid, **more):
    """Random parameters of the right shapes: compiling the real init would take seconds a test."""
    rng = np.random.default_rng(1)

    def fill(path, leaf):
        if "condition" in path:
            return np.zeros(leaf.shape, leaf.dtype)
        return rng.normal(float("/scale" in path), 0.3, leaf.shape).astype(leaf.dtype)

    return trees.map_with_path(fill, shapes(net, x, rows, valid, **more))


COMPILED = {}  # by what is static; the trunk itself has no hash


def apply(net, p, x, rows, valid, slots=None, **more):
    """The trunk's (tokens, cache), compiled; op by op would take seconds."""
    key = repr((net, rows, slots))
    if key not in COMPILED:
        COMPILED[key] = jax.jit(
            lambda p, x, valid, more: net.apply(p, x, rows, valid, slots=slots, **more)
        )
    return COMPILED[key](p, x, valid, more)


def run(net, p, x, rows=ROWS, valid=VALID, **more):
    return apply(net, p, {"trunk": x}, rows, valid, **more)[0]["trunk"]


def other_values(x, seed=9):
    """Another array of the shape; adding a constant would vanish in the norms."""
    return jax.random.normal(jax.random.key(seed), x.shape)


@functools.cache
def parameters():
    return init(make(), {"trunk": tokens()}, ROWS, VALID)


def test_parameters_are_stacked_and_the_same_for_every_unroll_and_remat():
    x = {"trunk": tokens()}
    p = jax.jit(lambda x: make().init(jax.random.key(1), x, ROWS, VALID))(x)
    layers = p["params"]["layers"]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(layers)} == {3}
    assert layers["trunk"]["query"]["kernel"].shape == (3, 8, 2, 4)
    assert layers["trunk"]["out"]["kernel"].shape == (3, 2, 4, 8)
    assert set(p) == {"params"}  # nothing sown
    for changes in (dict(unroll=3), dict(remat="dots"), dict(remat="full")):
        other = shapes(make(**changes), {"trunk": tokens()}, ROWS, VALID)
        assert trees.diff(p, other) == ""
    kernels = layers["trunk"]["query"]["kernel"]
    assert not np.array_equal(kernels[0], kernels[1])


@functools.cache
def gradients(**changes):
    """(a loss, its gradient) at `parameters()`."""

    def loss(p):
        return jnp.sum(jnp.square(run(make(**changes), p, tokens())[:, :4]))

    return jax.jit(jax.value_and_grad(loss))(parameters())


@pytest.mark.parametrize("changes", [dict(unroll=3), dict(remat="dots"), dict(remat="full")])
def test_unroll_and_remat_change_neither_values_nor_gradients(changes):
    value, gradient = gradients()
    other, other_gradient = gradients(**changes)
    np.testing.assert_allclose(value, other, rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, atol=1e-4)
    jax.tree.map(close, gradient, other_gradient)


@pytest.mark.parametrize("position", ["none", "rope"])
def test_nothing_leaks_against_the_rules(position):
    """Perturbing one token changes exactly the tokens that its information may reach."""
    net = make(position=position)
    p, x = parameters(), tokens()
    seen = visibility.mask(ROWS, RULES).astype(int) + np.eye(ROWS.length, dtype=int)
    reached = np.linalg.matrix_power(seen, 3) > 0

    @jax.jit
    def outputs(x):
        return jax.lax.map(lambda x: run(net, p, x), x)

    changed = [np.array(x) for _ in range(ROWS.length)]
    for slot, each in enumerate(changed):
        each[:, slot] = other_values(x)[:, slot]
    out = np.asarray(outputs(jnp.stack([x, *changed])))
    for slot in range(ROWS.length):
        change = np.abs(out[slot + 1] - out[0]).max((0, 2))
        np.testing.assert_array_equal(change > 1e-6, reached[:, slot], err_msg=str(slot))


def test_padding_is_not_seen():
    valid = VALID.at[0, 1].set(False).at[1, 3].set(False)
    x, net = tokens(), make()
    before = run(net, parameters(), x, valid=valid)
    others = np.asarray(valid)
    changed = jnp.where(valid[..., None], x, other_values(x))
    after = run(net, parameters(), changed, valid=valid)
    np.testing.assert_array_equal(before[others], after[others])


def test_packed_positions_ignore_padding():
    """With rope, padding between two tokens does not change what they are to each other."""
    groups = [G("text", 6)]
    packed = layout.Layout.make(groups, 1, packed=True)
    net = make(rules=(("*", "*", "causal_position"),), position="rope")
    x = tokens(length=6)
    gaps = jnp.array([[True, False, True, True, False, True]] * 2)
    dense = jnp.ones((2, 4), bool)
    short = layout.Layout.make([G("text", 4)], 1, packed=True)
    got = run(net, parameters(), x, packed, gaps)[:, np.array([0, 2, 3, 5])]
    expected = run(net, parameters(), x[:, np.array([0, 2, 3, 5])], short, dense)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, dict(position="rope"), dict(kv_heads=1, unroll=3)])
def test_cached_prefix_and_suffix_equal_the_full_pass(changes):
    net, x = make(**changes), tokens()
    valid = VALID.at[0, 1].set(False)
    p = init(net, {"trunk": x}, ROWS, valid)
    whole = run(net, p, x, valid=valid)
    end = visibility.prefix_length(ROWS, RULES, recomputed=("readout_a",))
    first, cache = apply(
        net,
        p,
        {"trunk": x[:, :end]},
        ROWS,
        valid[:, :end],
        cache=net.empty_cache(ROWS, 2),
        slots=np.arange(end),
    )
    np.testing.assert_allclose(first["trunk"], whole[:, :end], atol=1e-5)
    assert int(cache.length) == end and cache.k.shape[0] == 3

    def step(x, valid, cache):  # compiled: the place of the next token is traced
        return apply(net, p, {"trunk": x}, ROWS, valid, cache=cache)

    last, after = step(x[:, end:], valid[:, end:], cache)
    np.testing.assert_allclose(last["trunk"], whole[:, end:], atol=1e-5)
    assert int(after.length) == ROWS.length
    again, _ = step(x[:, end:], valid[:, end:], cache)
    np.testing.assert_array_equal(again["trunk"], last["trunk"])


def test_token_by_token_decoding_equals_the_full_pass():
    rows = layout.Layout.make([G("text", 5)], 1)
    net = make(rules=(("*", "*", "causal_position"),), position="rope")
    x, valid = tokens(length=5), jnp.ones((2, 5), bool)
    whole = run(net, parameters(), x, rows, valid)

    def step(cache, x):
        out, cache = net.apply(
            parameters(), {"trunk": x[:, None]}, rows, jnp.ones((2, 1), bool), cache=cache
        )
        return cache, out["trunk"][:, 0]

    _, decoded = jax.lax.scan(step, net.empty_cache(rows, 2), x.transpose(1, 0, 2))
    np.testing.assert_allclose(decoded.transpose(1, 0, 2), whole, atol=1e-5)


def flow_net(**changes):
    return make(rules=FLOW_RULES, experts={"flow": {"width": 6, "mlp": 10}}, head_dim=4, **changes)


def test_two_experts_meet_in_attention_and_keep_their_own_weights():
    net = flow_net()
    x = {"trunk": tokens(), "flow": tokens(length=4, width=6)}
    x["trunk"] = x["trunk"][:, :8]
    valid, cond = jnp.ones((2, 12), bool), {"flow": tokens(seed=5, width=3)[:, 0]}
    p = init(net, x, FLOW, valid, cond=cond)
    experts = p["params"]["layers"]
    assert set(experts) == {"trunk", "flow"}
    assert "attention_condition" in experts["flow"] and "mlp_condition" not in experts["trunk"]
    out, _ = apply(net, p, x, FLOW, valid, cond=cond)
    assert out["trunk"].shape == (2, 8, 8) and out["flow"].shape == (2, 4, 6)
    # Zero-initialised modulation: the condition changes nothing yet.
    other, _ = apply(net, p, x, FLOW, valid, cond={"flow": cond["flow"] + 1})
    np.testing.assert_array_equal(out["flow"], other["flow"])
    # The newest noise reads the newest image; nothing reads the noise.
    seen, _ = apply(
        net,
        p,
        {**x, "trunk": x["trunk"].at[:, 7].set(other_values(x["trunk"])[:, 7])},
        FLOW,
        valid,
        cond=cond,
    )
    change = np.abs(seen["flow"] - out["flow"]).max((0, 2))
    assert (change[2:] > 1e-6).all() and (change[:2] == 0).all()
    seen, _ = apply(net, p, {**x, "flow": other_values(x["flow"])}, FLOW, valid, cond=cond)
    np.testing.assert_array_equal(seen["trunk"], out["trunk"])


def test_condition_per_row_and_per_token_agree():
    net = flow_net()
    x = {"trunk": tokens()[:, :8], "flow": tokens(length=4, width=6)}
    valid, cond = jnp.ones((2, 12), bool), tokens(seed=5, width=3)[:, 0]
    p = init(net, x, FLOW, valid, cond={"flow": cond})
    p = jax.tree.map(lambda leaf: leaf + 0.1, p)
    a, _ = apply(net, p, x, FLOW, valid, cond={"flow": cond})
    spread = jnp.broadcast_to(cond[:, None], (2, 4, 3))
    b, _ = apply(net, p, x, FLOW, valid, cond={"flow": spread})
    c, _ = apply(net, p, x, FLOW, valid, cond={"flow": cond + 1})
    np.testing.assert_allclose(a["flow"], b["flow"], atol=1e-5)
    assert np.abs(a["flow"] - c["flow"]).max() > 1e-3


def test_flow_expert_over_a_cached_prefix_equals_the_full_pass():
    net = flow_net()
    x = {"trunk": tokens()[:, :8], "flow": tokens(length=4, width=6)}
    valid = jnp.ones((2, 12), bool).at[:, FLOW.slot("noise")[0]].set(False)
    p = init(net, x, FLOW, valid)
    whole, _ = apply(net, p, x, FLOW, valid)
    slots = FLOW.expert_slots("trunk")
    out, cache = apply(
        net,
        p,
        {"trunk": x["trunk"]},
        FLOW,
        valid[:, slots],
        cache=net.empty_cache(FLOW, 2),
        slots=slots,
    )
    np.testing.assert_allclose(out["trunk"], whole["trunk"], atol=1e-5)
    newest = FLOW.slot("noise")[-1]
    out, _ = apply(
        net, p, {"flow": x["flow"][:, 2:]}, FLOW, valid[:, newest], cache=cache, slots=newest
    )
    np.testing.assert_allclose(out["flow"], whole["flow"][:, 2:], atol=1e-5)


def test_dropout_is_one_key_per_row():
    net, x = make(dropout=0.5), tokens()
    keys = jax.random.split(jax.random.key(3), 2)
    a = run(net, parameters(), x, key=keys)
    np.testing.assert_array_equal(run(net, parameters(), x), run(make(), parameters(), x))
    b = run(net, parameters(), x[::-1], key=keys[::-1])
    np.testing.assert_allclose(a, b[::-1], atol=1e-5)
    assert np.abs(a - run(net, parameters(), x)).max() > 1e-2


def test_bfloat16_stays_near_float32():
    out = run(make(dtype=jnp.bfloat16), parameters(), tokens())
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        out.astype(jnp.float32), run(make(), parameters(), tokens()), atol=0.15
    )


@pytest.mark.mesh
def test_constraints_on_a_mesh_change_no_value():
    expected = run(make(), parameters(), tokens())
    with mesh.use(mesh.make({"data": 2, "fsdp": 1, "tensor": 2}, jax.devices()[:4])):
        # Not `run`: what it keeps compiled was traced without a mesh.
        got = jax.jit(lambda p, x: make().apply(p, {"trunk": x}, ROWS, VALID))(
            parameters(), tokens()
        )
    got = got[0]["trunk"]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(width=9), "does not divide into 2 heads"),
        (dict(heads=4, kv_heads=3), "do not divide over 3"),
        (dict(position="ropee"), "did you mean 'rope'"),
        (dict(norm="rsm"), "did you mean 'rms'"),
        (dict(remat="dot"), "did you mean 'dots'"),
        (dict(remat=True), "trunk.remat"),
        (dict(width=16), "have width 8, not 16"),
        (dict(rules=(("*", "*", "al"),)), "did you mean 'all'"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(plugin.UserError, match=message):
        init(make(**changes), {"trunk": tokens()}, ROWS, VALID)


def test_tokens_that_do_not_fit_the_layout():
    with pytest.raises(plugin.UserError, match="9 tokens for 10 places"):
        init(make(), {"trunk": tokens()[:, :9]}, ROWS, VALID[:, :9])
    with pytest.raises(plugin.UserError, match="did you mean 'trunk'"):
        init(make(), {"trunc": tokens()}, ROWS, VALID)
    with pytest.raises(plugin.UserError, match="without a cache"):
        init(make(), {"trunk": tokens()}, ROWS, VALID, slots=np.arange(10))


def offsets(seed=5):
    return {"trunk": jax.random.normal(jax.random.key(seed), (1, ROWS.length, 8))}


def test_positions_of_every_layer_reach_queries_and_keys_but_no_values():
    """As many layers by hand: attention over norm(x) + offset, of the values of norm(x)."""
    net, p, x = make(position="every_layer"), parameters(), tokens()
    got = run(net, p, x, offsets=offsets())
    layers, seen = p["params"]["layers"]["trunk"], visibility.mask(ROWS, visibility.make(RULES))

    def norm(x, part):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * part["scale"] + part["bias"]

    x, place = np.asarray(x, np.float64), np.asarray(offsets()["trunk"], np.float64)
    for i in range(3):
        part = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64)[i], layers)  # noqa: B023
        y = norm(x, part["attention_norm"])
        query, key, value = (
            np.einsum("bld,dnh->bnlh", given, part[name]["kernel"]) + part[name]["bias"][:, None]
            for name, given in (("query", y + place), ("key", y + place), ("value", y))
        )
        scores = np.where(seen, np.einsum("bnlh,bnsh->bnls", query, key) / 2, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("bnls,bnsh->blnh", weights / weights.sum(-1, keepdims=True), value)
        x = x + np.einsum("blnh,nhd->bld", mixed, part["out"]["kernel"]) + part["out"]["bias"]
        mlp = part["mlp"]
        y = norm(x, part["mlp_norm"]) @ mlp["hidden_0"]["kernel"] + mlp["hidden_0"]["bias"]
        x = x + np.asarray(jax.nn.gelu(y)) @ mlp["out"]["kernel"] + mlp["out"]["bias"]
    wanted = norm(x, p["params"]["final_norm_trunk"])
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_positions_of_every_layer_are_none_where_they_are_zero():
    p, zeros = parameters(), {"trunk": jnp.zeros((1, ROWS.length, 8))}
    placed = run(make(position="every_layer"), p, tokens(), offsets=zeros)
    np.testing.assert_allclose(placed, run(make(), p, tokens()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "position, given, message",
    [
        ("none", offsets, "belong to 'every_layer'"),
        ("every_layer", lambda: None, "offsets are not given"),
        ("every_layer", lambda: {"trunk": jnp.zeros((1, 2, 8))}, r"shape \(1, 2, 8\)"),
    ],
)
def test_positions_that_do_not_fit(position, given, message):
    net = make(position=position)
    with pytest.raises(plugin.UserError, match=message):
        shapes(net, {"trunk": tokens()}, ROWS, VALID, offsets=given())
