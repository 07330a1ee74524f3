import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.train import optimizer

PARAMS = {
    "params": {
        "trunk": {"kernel": jnp.ones((3, 4, 2)), "bias": jnp.ones((3, 2))},
        "head": {"kernel": jnp.ones((2, 2))},
    }
}
GRADS = jax.tree.map(lambda x: jnp.linspace(-1, 1, x.size).reshape(x.shape), PARAMS)


def after(steps=3, **settings):
    """Parameters after some steps of constant gradients."""
    config = config_lib.OptimizerConfig(**(dict(lr=0.1, schedule="constant") | settings))
    return moved(optimizer.make(config, 10, PARAMS), PARAMS, steps)["params"]


def moved(chain, params, steps):
    """`params` after some steps of constant gradients."""

    @jax.jit
    def step(params, state):
        updates, state = chain.update(GRADS, state, params)
        return optax.apply_updates(params, updates), state

    state = chain.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def test_schedules():
    def at(step, **settings):
        return float(optimizer.schedule(config_lib.OptimizerConfig(lr=2.0, **settings), 110)(step))

    cosine = dict(warmup=10, final=0.1)
    assert at(0, **cosine) == pytest.approx(0.2) and at(9, **cosine) == pytest.approx(2.0)
    assert at(60, **cosine) == pytest.approx(2 * (0.1 + 0.9 * 0.5))
    assert at(110, **cosine) == at(500, **cosine) == pytest.approx(0.2)
    rsqrt = dict(schedule="rsqrt", timescale=100, warmup=10)
    assert at(9, **rsqrt) == pytest.approx(2.0) and at(310, **rsqrt) == pytest.approx(1.0)
    assert at(7, schedule="constant") == 2.0


def test_stable_and_piecewise_schedules():
    def at(step, **settings):
        return float(optimizer.schedule(config_lib.OptimizerConfig(lr=2.0, **settings), 110)(step))

    wsd = dict(schedule="wsd", warmup=10, decay=50, final=0.1)
    assert at(4, **wsd) == pytest.approx(1.0) and at(10, **wsd) == at(60, **wsd) == 2.0
    assert at(85, **wsd) == pytest.approx(2 * 0.55) and at(110, **wsd) == pytest.approx(0.2)
    points = dict(schedule="piecewise", points=((0, 1.0), (50, 1.0), (100, 0.5)))
    assert at(20, **points) == 2.0 and at(75, **points) == pytest.approx(1.5)
    assert at(300, **points) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(schedule="wsd"), "decay: got 0, expected 1 to 110"),
        (dict(schedule="wsd", decay=111), "decay: got 111"),
        (dict(schedule="piecewise"), "points: got .*expected"),
        (dict(schedule="piecewise", points=((5, 1.0), (5, 0.0))), "increasing"),
    ],
)
def test_schedules_that_say_too_little(settings, message):
    with pytest.raises(plugin.UserError, match=message):
        optimizer.schedule(config_lib.OptimizerConfig(**settings), 110)


def test_adafactor_is_factored_and_learns():
    """A matrix of 256 x 128 keeps 384 numbers of second moment; its parameters reach the aim."""
    aim = jax.random.normal(jax.random.key(0), (2, 256, 128))
    params = {"params": {"kernel": jnp.zeros((2, 256, 128)), "bias": jnp.zeros(3)}}
    settings = config_lib.OptimizerConfig(type="adafactor", lr=0.05, schedule="constant", clip=None)
    chain = optimizer.make(settings, 10, params)
    state = chain.init(params)
    second = optax.tree_utils.tree_get(state, "v_row"), optax.tree_utils.tree_get(state, "v_col")
    assert sum(s["params"]["kernel"].size for s in second) == 2 * (256 + 128)
    momentum = optax.tree_utils.tree_get(state, "ema")["params"]["kernel"]
    assert momentum.dtype == jnp.bfloat16

    @jax.jit
    def step(params, state):
        grads = {"params": {"kernel": params["params"]["kernel"] - aim, "bias": jnp.zeros(3)}}
        updates, state = chain.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(200):
        params, state = step(params, state)
    assert float(jnp.abs(params["params"]["kernel"] - aim).mean()) < 0.1


@pytest.mark.parametrize("limit", [0.0, 5.0])
def test_bad_gradients_are_left_out_and_counted(limit):
    chain = optax.adam(0.1)
    careful = optimizer.skipping(chain, limit)
    params = {"params": {"w": jnp.ones(4)}}
    good = [{"params": {"w": jnp.full(4, 1 + 0.1 * i)}} for i in range(40)]
    broken = jax.tree.map(lambda x: x * jnp.nan, params)
    spike = jax.tree.map(lambda x: x * 1e4, params)
    update = jax.jit(functools.partial(careful.update, loss=jnp.ones(())))
    plain, state = chain.init(params), careful.init(params)
    for i, grads in enumerate(good):
        for bad in [broken] + ([spike] if limit and i > optimizer.SEEN else []):
            updates, after = update(bad, state, params)
            assert all(not np.any(np.asarray(u)) for u in jax.tree.leaves(updates))
            assert float(optimizer.metrics(state, after)["skipped"][0]) == 1
            state = after
        expected, plain = chain.update(grads, plain, params)
        updates, after = update(grads, state, params)
        assert float(optimizer.metrics(state, after)["skipped"][0]) == 0
        state = after
        close(updates, expected)
    spikes = (39 - optimizer.SEEN) * bool(limit)
    assert int(state.used) == 40 and int(state.skipped) == 40 + spikes


def test_a_loss_out_of_the_way_is_left_out_though_its_gradient_is_fine():
    """Falling, flat or noisy, a loss passes; a spike, NaN and inf do not, and move nothing."""
    careful = optimizer.skipping(optax.adam(0.1), 0.0, 6.0)
    rng = np.random.default_rng(0)
    kinds = {
        "falling": 5 * 0.95 ** np.arange(60),
        "flat": 1 + 1e-4 * np.arange(60),
        "noisy": 2 + 0.1 * rng.normal(size=60),
        "one": np.where(np.arange(60) == 0, 50.0, 1.0),  # the first may be anything
    }
    update = jax.jit(careful.update)
    for losses in kinds.values():
        state = careful.init(PARAMS)
        for i, loss in enumerate(losses):
            if i > optimizer.SEEN:
                for bad in (jnp.nan, jnp.inf, 500.0 if losses[0] == 50 else 3 * losses[0]):
                    updates, after = update(GRADS, state, PARAMS, loss=jnp.float32(bad))
                    assert not any(np.any(u) for u in jax.tree.leaves(updates))
                    kept = after._replace(skipped=state.skipped)
                    same = zip(jax.tree.leaves(kept), jax.tree.leaves(state))
                    assert all(np.array_equal(a, b) for a, b in same)
                    assert int(after.skipped) == int(state.skipped) + 1
            _, state = update(GRADS, state, PARAMS, loss=jnp.float32(loss))
        assert int(state.used) == 60 and int(state.skipped) == 0
        np.testing.assert_allclose(state.loss, np.mean(losses), rtol=1e-4)  # fewer than AVERAGED
        np.testing.assert_allclose(state.spread, np.var(losses), rtol=1e-3, atol=1e-7)


def test_agrees_with_optax_adamw():
    ours = after(weight_decay=0.3, clip=0.5, groups=((".*", {}),))
    chain = optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(0.1, b2=0.999, weight_decay=0.3)
    )
    close(ours, moved(chain, PARAMS, 3)["params"])


def test_rows_scale_per_parameter_and_per_layer():
    rows = (("params/trunk/kernel", {"lr": (0.0, 0.5, 1.0), "weight_decay": 0.0}), (".*", {}))
    ours = after(steps=1, weight_decay=0.3, groups=rows, clip=None)
    moved = np.asarray(ours["trunk"]["kernel"] - 1)
    assert np.all(moved[0] == 0)  # 0: no update, no decay
    # Adam's first update is the gradient's sign, and there is no decay here.
    np.testing.assert_allclose(np.abs(moved[1]), 0.05, rtol=1e-3)
    np.testing.assert_allclose(np.abs(moved[2]), 0.1, rtol=1e-3)
    close(ours["head"], after(steps=1, weight_decay=0.3, groups=((".*", {}),), clip=None)["head"])


def test_default_rows_do_not_decay_biases():
    still = jax.tree.map(jnp.zeros_like, PARAMS)
    chain = optimizer.make(config_lib.OptimizerConfig(lr=0.1, weight_decay=0.5), 10, PARAMS)
    updates, _ = chain.update(still, chain.init(PARAMS), PARAMS)
    assert np.all(np.asarray(updates["params"]["trunk"]["bias"]) == 0)
    assert np.all(np.asarray(updates["params"]["trunk"]["kernel"]) < 0)


@pytest.mark.parametrize(
    "rows, message",
    [
        (((".*", {"learning": 1.0}),), "unknown 'learning'"),
        ((("params/trunk/kernel", {"lr": (1.0, 2.0)}), (".*", {})), "2 values of lr for shape"),
        ((("params/trnk/.*", {}), (".*", {})), "params/trnk"),
        ((("params/trunk/.*", {}),), "no row .*params/head/kernel"),
    ],
)
def test_bad_rows(rows, message):
    with pytest.raises(plugin.UserError, match=message):
        after(groups=rows)


def test_average_warms_up():
    ema = {"a": jnp.zeros(())}
    first = optimizer.average(ema, {"a": jnp.ones(())}, 0.99, jnp.int32(0))
    np.testing.assert_allclose(first["a"], 0.9, rtol=1e-6)  # decay (1 + 0) / (10 + 0)
    late = optimizer.average(ema, {"a": jnp.ones(())}, 0.99, jnp.int32(10_000))
    np.testing.assert_allclose(late["a"], 0.01, rtol=1e-4)
