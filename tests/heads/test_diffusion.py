import dataclasses
import json
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.heads import octo
from vla_jax import plugin
from vla_jax.heads import diffusion

pytestmark = pytest.mark.slow  # golden arrays; contract tests run by default


SPEC = dict(
    type="diffusion", readout="main", action_space="narrow", action_horizon=3, hidden=8, depth=1,
    time_features=4, diffusion_steps=6,
)  # fmt: skip
GOLDEN = dict(type="diffusion", hidden=64, masked="given")


class Draw(nn.Module):
    """Only the head's `tokens`."""

    spec: tuple
    context: object

    def setup(self):
        self.head = plugin.build("heads", dict(self.spec), self.context)

    def __call__(self, batch, key):
        return self.head.tokens(batch, key)[2]


def draw(case, keys, **spec):
    return Draw(spec=tuple((SPEC | spec).items()), context=case.context).apply({}, case.batch, keys)


def target(case):
    action = case.batch.targets["action"][:, :, :3, :2]
    return np.where(case.batch.target_masks["action"][:, :, :3, :2], action, 0.0)


def with_score(case, monkeypatch, score, **spec):
    """The sampling of a head whose score network is the function score(flat, time)."""

    class Known(nn.Module):
        @nn.compact
        def __call__(self, noisy, time, given):
            return score(noisy, time)

    monkeypatch.setattr(diffusion.score, "ScoreNetwork", lambda **sizes: Known())
    head = plugin.build("heads", SPEC | dict(max_action=1e6) | spec, case.context)

    def sample(key):
        inputs = (case.outputs, {}, case.batch, None, None, key)
        return head.apply({}, *inputs, method="sample")[0]["action"]

    return jax.jit(sample)


# ----------------------------------------------------------------------------------- the schedule


@pytest.mark.parametrize("steps", [1, 5, 20, 100])
def test_schedule(steps):
    betas, left = diffusion.cosine_betas(steps), diffusion.signal(steps)
    assert betas.dtype == left.dtype == np.float32 and betas.shape == (steps,)
    assert (0 < betas).all() and (betas <= np.float32(0.999)).all()
    assert (np.diff(betas) >= 0).all() and (np.diff(left) < 0).all()
    wave = np.cos((np.arange(1, steps) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    wave /= np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(left[:-1], wave, rtol=1e-3, atol=1e-6)  # the last beta is clipped
    np.testing.assert_allclose(left[-1], np.append(wave, 1)[-2 if steps > 1 else -1] * 0.001, 1e-3)


def test_ddpm_constants_are_the_posterior_s():
    """The mean that a known noise gives is the action's and x_t's mix in Ho et al., eq. 7."""
    times, scale, share, sigma, spread = diffusion.ddpm_constants(20)
    np.testing.assert_array_equal(times, np.arange(19, -1, -1))
    betas, left = (
        f(20)[::-1].astype(np.float64) for f in (diffusion.cosine_betas, diffusion.signal)
    )
    before = np.append(left[1:], 1.0)
    action, noise = 0.7, -1.3
    x = np.sqrt(left) * action + np.sqrt(1 - left) * noise
    posterior = np.sqrt(before) * betas / (1 - left) * action
    posterior += np.sqrt(1 - betas) * (1 - before) / (1 - left) * x
    np.testing.assert_allclose(scale * (x - share * noise), posterior, atol=2e-3)
    np.testing.assert_allclose(sigma[:-1] ** 2, betas[:-1], rtol=1e-5)
    assert sigma[-1] == 0
    np.testing.assert_allclose(spread**2, 1 - left, rtol=1e-4)


def test_ddim_times():
    for steps in range(1, 12):
        for evaluations in range(1, steps + 1):
            times, kept, spread, next_kept, _ = diffusion.ddim_constants(steps, evaluations)
            assert times[0] == steps - 1 and next_kept[-1] == 1
            assert (np.diff(times) < 0).all() and times.min() >= 0
            assert times[-1] == 0 or evaluations == 1
            np.testing.assert_allclose(kept**2 + spread**2, 1, rtol=1e-6)
            np.testing.assert_array_equal(next_kept[:-1], kept[1:])


# --------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("evaluations", [1, 3, 6])
def test_ddim_of_a_linear_score(case, monkeypatch, evaluations):
    """All data at one point m: the score is linear in x, and every path ends at m exactly."""
    left = jnp.asarray(diffusion.signal(6))
    m = jnp.asarray(case.rng.normal(size=6), jnp.float32)

    def score(flat, time):
        kept = left[time][:, None]
        return (flat - jnp.sqrt(kept) * m[None]) / jnp.sqrt(1 - kept)

    sample = with_score(case, monkeypatch, score, sampler="ddim", sampling_steps=evaluations)
    got = sample(case.keys).reshape(case.B, 6)
    np.testing.assert_allclose(got, np.broadcast_to(m, got.shape), atol=1e-3)


def test_ddim_of_normal_data_keeps_their_spread(case, monkeypatch):
    """Data ~ N(0, s²): one step maps x by a known factor; all of them against a loop in numpy."""
    left, s = diffusion.signal(6).astype(np.float64), 0.5
    table = jnp.asarray(np.sqrt(1 - left) / (left * s**2 + 1 - left), jnp.float32)
    sample = with_score(case, monkeypatch, lambda x, t: x * table[t][:, None], sampler="ddim")
    start = case.rng.normal(size=(case.B, 3, 2)).astype(np.float32)
    x = start.astype(np.float64)
    for time in range(5, -1, -1):
        noise = x * np.sqrt(1 - left[time]) / (left[time] * s**2 + 1 - left[time])
        action = (x - np.sqrt(1 - left[time]) * noise) / np.sqrt(left[time])
        before = left[time - 1] if time else 1.0
        x = np.sqrt(before) * action + np.sqrt(1 - before) * noise
    np.testing.assert_allclose(sample({"start": jnp.asarray(start)}), x, rtol=1e-3, atol=1e-4)
    assert 0.3 < x.std() / start.std() < 0.7  # about s


def test_ddpm_against_a_loop(case, monkeypatch):
    sample = with_score(case, monkeypatch, lambda x, t: 0.3 * x + 0.1 * t[:, None], max_action=2.0)
    start, steps = case.rng.normal(size=(case.B, 3, 2)), case.rng.normal(size=(case.B, 6, 3, 2))
    betas, left = diffusion.cosine_betas(6), diffusion.signal(6)
    x = start
    for i, time in enumerate(range(5, -1, -1)):
        x = x - betas[time] / np.sqrt(1 - left[time]) * (0.3 * x + 0.1 * time)
        x = x / np.sqrt(1 - betas[time]) + (time > 0) * np.sqrt(betas[time]) * steps[:, i]
        x = np.clip(x, -2, 2)
    noise = {"start": jnp.float32(start), "steps": jnp.float32(steps)}
    np.testing.assert_allclose(sample(noise), x, rtol=1e-3, atol=1e-4)
    assert np.abs(sample(noise)).max() <= 2


@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
def test_dimensions_that_a_row_s_space_lacks(case, sampler):
    """A head for all spaces: narrow rows (2 of 5) answer zeros there, and their noise is inert."""
    spec = SPEC | dict(action_space=None, sampler=sampler)
    harness, variables = case.build(**spec)
    noise = {
        "start": jnp.float32(case.rng.normal(size=(case.B, 3, 5))),
        "steps": jnp.float32(case.rng.normal(size=(case.B, 6, 3, 5))),
    }

    @jax.jit
    def sample(noise):
        inputs = (case.outputs, {}, case.batch, noise)
        return harness.apply(variables, *inputs, method="sample")[0]["action"]

    got = np.asarray(sample(noise))
    spaces = case.batch.action_space
    assert (got[spaces == 1][..., 2:] == 0).all() and (got[spaces == 1][..., :2] != 0).all()
    assert (got[spaces != 1] != 0).all(), "the wide space, and none at all, have every dimension"


# --------------------------------------------------------------------------------------- training


def test_draws_are_a_row_s_own_and_cover_all_times(case):
    time, noise, noisy = draw(case, case.keys, n_diffusion_samples=40)
    assert time.shape == (case.B, case.W, 40) and noise.shape == (*time.shape, 3, 2)
    assert set(np.unique(time)) == set(range(6)) and abs(noise.mean()) < 0.15
    order = np.array([2, 1, 0])
    other = draw(case, case.keys[order], n_diffusion_samples=40)
    np.testing.assert_array_equal(time, other[0][order])
    np.testing.assert_array_equal(noise, other[1][order])
    left = diffusion.signal(6)[np.asarray(time)][..., None, None]
    expected = np.sqrt(left) * target(case)[:, :, None] + np.sqrt(1 - left) * np.asarray(noise)
    np.testing.assert_allclose(noisy, expected, rtol=1e-4, atol=1e-5)


def test_errors_are_the_mean_over_draws(case):
    """Injected time and noise; two draws are the mean of each alone, for answer and errors."""
    time, noise, _ = draw(case, case.keys, n_diffusion_samples=2)
    harness, variables = case.build(**SPEC, n_diffusion_samples=2)

    run = jax.jit(lambda key: harness.apply(variables, case.outputs, {}, case.batch, key))
    both = run({"time": time, "noise": noise})
    one, two = (
        run({"time": time[:, :, i : i + 1], "noise": noise[:, :, i : i + 1]}) for i in range(2)
    )
    expected = jax.tree.map(lambda a, b: (a + b) / 2, one, two)
    drawn = run(case.keys)
    for got, wanted, again in zip(*map(jax.tree.leaves, (both, expected, drawn)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got, again, rtol=1e-6)


def test_masked_and_padded_actions_change_nothing_unless_asked(case):
    mask, action = case.batch.target_masks["action"], case.batch.targets["action"].copy()
    action[..., 2:], action[:, :, 3:] = 50.0, 50.0
    action = np.where(mask, action, -7.0).astype(np.float32)
    batch = dataclasses.replace(case.batch, targets=case.batch.targets | {"action": action})
    for masked in diffusion.MASKED:
        harness, variables = case.build(**SPEC, masked=masked)
        run = jax.jit(harness.apply)
        errors = [run(variables, case.outputs, {}, b, case.keys)[1] for b in (case.batch, batch)]
        same = np.array_equal(errors[0]["action"], errors[1]["action"])
        assert same == (masked == "zeros")
    *_, noisy = draw(case, case.keys, max_action=0.1)
    assert not np.array_equal(noisy, draw(case, case.keys)[2]), "actions are clipped"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (dict(sampler="ddmp"), "ddpm"),
        (dict(loss="l3"), "l1"),
        (dict(masked="zero"), "zeros"),
        (dict(diffusion_steps=0), "at least 1"),
        (dict(sampler="ddim", sampling_steps=7), "1 to 6"),
        (dict(sampling_steps=3), "ddim"),
        (dict(readout=None), "nothing to predict from"),
    ],
)
def test_bad_arguments(case, spec, message):
    with pytest.raises(plugin.UserError, match=message):
        plugin.build("heads", SPEC | spec, case.context)


# ------------------------------------------------------------------------------------ Octo itself


@pytest.fixture(scope="module")
def golden(fixtures_dir):
    return octo.load(fixtures_dir / "octo_golden" / "tiny")


def test_octo_s_schedule(golden):
    arrays = golden.arrays
    octo.close(diffusion.cosine_betas(20), arrays["schedule/betas"], 1e-6)
    octo.close(diffusion.signal(20), arrays["schedule/alpha_hats"], 1e-6)
    for steps in (5, 20, 32, 50, 100):
        octo.close(diffusion.cosine_betas(steps), arrays[f"schedule/cosine_beta_{steps}"], 1e-6)
    octo.close(diffusion.cosine_betas(100), arrays["schedule/unet_squaredcos_cap_v2_100"], 1e-6)


def test_octo_s_noise_and_loss(golden):
    arrays, params = golden.arrays, octo.diffusion(golden.heads["action"])
    spec = GOLDEN | dict(groups=("readout_action",))
    head = plugin.build("heads", spec, golden.context)

    def rows(name, *shape):  # Octo's [n, B, W, …] to ours
        return np.moveaxis(arrays[name], 0, 2).reshape(4, 2, 1, *shape)

    def guess(head, time, noisy):
        given = head.pool(golden.outputs)
        return head.score(noisy, time, given)

    time, noisy = rows("eps/time"), rows("eps/noisy_actions", 28)
    got = nn.apply(guess, head)({"params": params}, time, noisy)
    octo.close(got, rows("eps/pred_eps", 28))

    key = {"time": rows("loss/time"), "noise": rows("loss/noise", 4, 7)}

    def errors(head):
        carry = head.tokens(golden.batch, key)[2]
        return head(golden.outputs, {}, golden.batch, carry)[1]["action"]

    errors = nn.apply(errors, head)({"params": params})
    np.testing.assert_allclose(7 * octo.loss(golden, errors), arrays["loss/loss"], rtol=1e-5)


def sampled(golden, name="", copies=1):
    """What the head samples from the golden noise, `copies` times over the rows."""
    start = golden.arrays[f"sample/{name}init_noise"][..., -1, :].reshape(-1, 4, 7)
    steps = golden.arrays[f"sample/{name}z_per_step"][..., -1, :].reshape(20, -1, 4, 7)
    noise = {"start": start, "steps": np.moveaxis(steps, 0, 1)}
    outputs, batch = jax.tree.map(
        lambda x: np.concatenate([x] * copies), (golden.outputs, golden.batch)
    )
    made = SimpleNamespace(outputs=outputs, batch=batch, context=golden.context)
    spec = GOLDEN | dict(groups=("readout_action",))
    params = octo.diffusion(golden.heads["action"])
    return octo.run(made, params, spec, "sample", key=noise)[0]["action"]


def test_octo_s_samples(golden):
    wanted = golden.arrays["sample/actions_normalized"]
    octo.close(sampled(golden), wanted, 2e-4)
    wanted = golden.arrays["sample/actions_shape3"]  # [3, B, C, A]
    octo.close(sampled(golden, "shape3_", 3).reshape(wanted.shape), wanted, 2e-4)


def test_octo_s_samples_for_a_smaller_body(golden, fixtures_dir):
    """Octo's embodiment_action_dim is the size of a row's action space."""
    space = octo.space(5)
    context = dataclasses.replace(golden.context, action_spaces=(space,))
    batch = dataclasses.replace(golden.batch, action_space=np.zeros(4, np.int32))
    made = SimpleNamespace(**(vars(golden) | dict(context=context, batch=batch)))
    path = fixtures_dir / "octo_golden" / "tiny" / "ckpt" / "dataset_statistics.json"
    (statistics,) = json.loads(path.read_text()).values()
    mean, std = (np.array(statistics["action"][name][:5]) for name in ("mean", "std"))
    got = np.asarray(sampled(made))
    assert (got[..., 5:] == 0).all()
    octo.close(got[..., :5] * std + mean, golden.arrays["sample/actions_unnorm_embodiment5"], 2e-4)
