import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.heads import flow

MLP = dict(
    type="flow", readout="main", action_space="narrow", action_horizon=3, hidden=(8,), steps=4
)
TOKENS = dict(type="flow", as_tokens=True, action_space="narrow", steps=4)


class Draw(nn.Module):
    """Only the head's `tokens`."""

    spec: tuple
    context: object

    def setup(self):
        self.head = plugin.build("heads", dict(self.spec), self.context)

    def __call__(self, batch, key):
        return self.head.tokens(batch, key)


def draw(case, keys, **spec):
    harness, variables = case.build(**spec)
    module = Draw(spec=harness.spec, context=case.context)
    return module.apply(variables, case.batch, keys)


def linear_field(case, gain, spec=MLP):
    """A head whose velocity is exactly `gain` times x_t: a linear layer without hidden ones."""
    harness, variables = case.build(**(spec | dict(hidden=())))
    kernel = variables["params"]["head"]["mlp"]["out"]["kernel"]
    size = kernel.shape[1]
    kernel = jnp.zeros_like(kernel).at[-size:].set(gain * jnp.eye(size))
    params = {"head": {"mlp": {"out": {"kernel": kernel, "bias": jnp.zeros(size)}}}}
    return harness, {"params": params}


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_euler_integrates_a_known_field(case, steps):
    """dx/dt = −x: Euler gives (1 − 1/n)^n of the noise, close to 1/e for many steps."""
    harness, variables = linear_field(case, -1.0, MLP | dict(steps=steps))
    noise = case.rng.normal(size=(case.B, 3, 2)).astype(np.float32)
    sampled, _ = case.apply(
        harness, variables, case.outputs, {}, case.batch, jnp.asarray(noise), method="sample"
    )
    np.testing.assert_allclose(sampled["action"], noise * (1 - 1 / steps) ** steps, atol=1e-5)


def test_time_runs_from_noise_to_data(case):
    """t = 0 is noise, t = 1 is data: written in flow.py once, tested here once."""
    _, _, (noise, t, noisy) = draw(case, case.keys, **MLP)
    mask = case.batch.target_masks["action"][:, :, :3, :2]
    action = np.where(mask, case.batch.targets["action"][:, :, :3, :2], 0.0)
    line = np.asarray(t)[:, :, None, None]
    np.testing.assert_allclose(noisy, noise + line * (action - noise), rtol=1e-4, atol=1e-6)
    assert noise.shape == (case.B, case.W, 3, 2) and t.shape == (case.B, case.W)


def test_errors_against_numpy(case):
    harness, variables = linear_field(case, 0.5)
    answer, errors = case.apply(harness, variables, case.outputs, {}, case.batch, case.keys)
    _, _, (noise, t, noisy) = draw(case, case.keys, **MLP)
    mask = case.batch.target_masks["action"][:, :, :3, :2]
    action = np.where(mask, case.batch.targets["action"][:, :, :3, :2], 0.0)
    expected = (0.5 * np.asarray(noisy) - (action - np.asarray(noise))) ** 2
    np.testing.assert_allclose(errors["action"], expected, rtol=1e-4, atol=1e-5)
    line = np.asarray(t)[:, :, None, None]
    expected = np.asarray(noisy) * (1 + 0.5 * (1 - line))
    np.testing.assert_allclose(answer["action"], expected, rtol=1e-4, atol=1e-5)


def test_noise_and_time_are_a_row_s_own(case):
    _, _, full = draw(case, case.keys, **MLP)
    _, _, other = draw(case, case.keys[jnp.array([2, 1, 0])], **MLP)
    for a, b in zip(full[:2], other[:2], strict=True):
        np.testing.assert_array_equal(a, b[::-1])
    assert len(np.unique(full[1])) == full[1].size, "steps of a row draw apart"


def test_masked_and_padded_actions_change_nothing(case):
    harness, variables = case.build(**MLP)
    run = jax.jit(harness.apply)
    _, errors = run(variables, case.outputs, {}, case.batch, case.keys)
    mask, action = case.batch.target_masks["action"], case.batch.targets["action"].copy()
    action[..., 2:], action[:, :, 3:] = 50.0, 50.0
    action = np.where(mask, action, -7.0).astype(np.float32)
    batch = dataclasses.replace(case.batch, targets=case.batch.targets | {"action": action})
    _, again = run(variables, case.outputs, {}, batch, case.keys)
    np.testing.assert_array_equal(errors["action"], again["action"])


def test_tokens_form(case):
    harness, variables = case.build(**TOKENS)
    answer, errors = case.apply(harness, variables, case.outputs, {}, case.batch, case.keys)
    assert answer["action"].shape == errors["action"].shape == (case.B, case.W, case.C, 2)
    groups, cond, _ = draw(case, case.keys, **TOKENS)
    assert groups["it_actions"].shape == (case.B, case.W, case.C, case.D) and cond is None
    head = plugin.build("heads", TOKENS, case.context)
    assert head.token_groups == {"it_actions": case.C} and head.decodes
    plain = plugin.build("heads", MLP, case.context)
    assert plain.token_groups == {} and not plain.decodes


def test_tokens_form_samples_through_decode(case):
    """`sample` equals Euler by hand over the head's own tokens, under a trunk that doubles them."""
    head = plugin.build("heads", TOKENS, case.context)
    noise = jnp.asarray(case.rng.normal(size=(case.B, case.C, 2)), jnp.float32)
    caches = []

    def decode(groups, cond, cache):
        caches.append(cache)
        return {name: 2 * made for name, made in groups.items()}, cache + 1

    batch = dataclasses.replace(case.batch, targets={}, target_masks={})
    variables = case.build(**TOKENS)[1]["params"]["head"]
    variables = {"params": variables}
    sampled, cache = head.apply(
        variables, case.outputs, {}, batch, 0, decode, noise, method="sample"
    )
    assert caches == [0] * 4 and cache == 0, "every step starts from the prefix"

    def by_hand(head):
        value = noise
        for step in range(4):
            made = head._embed(value[:, None], jnp.full((case.B, 1), step / 4))[:, 0]
            value = value + head.velocity_out(2 * made) / 4
        return value

    expected = nn.apply(by_hand, head)(variables)
    np.testing.assert_allclose(sampled["action"], expected, rtol=1e-4, atol=1e-5)


def test_beta_time_is_pi0_s():
    """1 − t/.999 ~ Beta(1.5, 1): mean 3/5, density rising towards noise."""
    t = np.asarray(flow.beta_time(jnp.linspace(0, 1, 100001)))
    assert t.min() >= 0 and t.max() <= 0.999
    np.testing.assert_allclose((1 - t / 0.999).mean(), 0.6, atol=1e-3)
    np.testing.assert_allclose((1 - t / 0.999).var(), 1.5 / (2.5**2 * 3.5), atol=1e-3)


def test_time_features_tell_times_apart():
    features = np.asarray(flow.time_features(jnp.linspace(0, 1, 101)[None]))[0]
    assert features.shape == (101, 32) and np.abs(features).max() <= 1
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    assert distances[~np.eye(101, dtype=bool)].min() > 0.1


def test_learns_a_point_mass(case):
    """One action for all rows: after training, sampling from any noise ends at it."""
    spec = MLP | dict(hidden=(64,), steps=10)
    harness, variables = case.build(**spec)
    action = np.zeros_like(case.batch.targets["action"])
    action[:, :, :3, :2] = np.linspace(-1, 1, 6).reshape(3, 2)
    batch = dataclasses.replace(
        case.batch,
        targets={"action": action},
        target_masks={"action": np.ones(action.shape, bool)},
    )

    def loss(variables, keys):
        _, errors = case.apply(harness, variables, case.outputs, {}, batch, keys)
        return jnp.mean(errors["action"])

    def train_step(state, step):
        variables, first, second = state
        keys = jax.vmap(lambda row: jax.random.fold_in(row, step))(case.keys)
        rate = 5e-3 * (1 - step / 1500)
        gradient = jax.grad(loss)(variables, keys)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, second, gradient)
        variables = jax.tree.map(
            lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-6), variables, first, second
        )
        return (variables, first, second), None

    zeros = jax.tree.map(jnp.zeros_like, variables)
    run = jax.jit(lambda state: jax.lax.scan(train_step, state, jnp.arange(1500)))
    variables = run((variables, zeros, zeros))[0][0]
    sampled, _ = case.apply(harness, variables, case.outputs, {}, batch, case.keys, method="sample")
    np.testing.assert_allclose(
        sampled["action"], np.broadcast_to(action[0, 0, :3, :2], (case.B, 3, 2)), atol=0.2
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (dict(readout="main", time="betta"), "beta"),
        (dict(readout="main", steps=0), "at least 1"),
        (dict(), "nothing to predict from"),
        (dict(readout="main", as_tokens=True), "as_tokens"),
    ],
)
def test_bad_arguments(case, spec, message):
    with pytest.raises(plugin.UserError, match=message):
        plugin.build("heads", dict(type="flow", **spec), case.context)
