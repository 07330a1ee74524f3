"""Every file of objectives/ keeps the contract of DESIGN.md §3; found by listing the folder."""

import collections
import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax import plugin


class AnyError(collections.abc.Mapping):
    """Errors of a head under any name, all of one shape; NaN where masked, if asked."""

    def __init__(self, shape, mask=None):
        self.value = np.random.default_rng(1).random(shape).astype(np.float32)
        if mask is not None:
            self.value = np.where(mask, self.value, np.nan)

    def __getitem__(self, name):
        return self.value

    def __iter__(self):
        return iter(("anything",))

    def __len__(self):
        return 1


@pytest.fixture(scope="module", params=plugin.names("objectives"))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def objective(case, name):
    return plugin.build("objectives", dict(type=name, head="it"), case.context)


@pytest.fixture(scope="module")
def answers(case):
    rng = np.random.default_rng(2)
    unit = np.eye(4, dtype=np.float32)[rng.integers(0, 4, (2, case.B))]
    peak = rng.random((case.B, case.W, 2)).astype(np.float32)
    one = np.float32(1)
    return {"it": dict(peak=peak, image=unit[0], text=unit[1], scale=one, bias=-one)}


def padded(case, kept):
    """The case's batch with only rows `kept` real."""
    masks = {
        name: mask & kept.reshape(-1, *(1,) * (mask.ndim - 1))
        for name, mask in case.batch.target_masks.items()
    }
    seen = dataclasses.replace(
        case.batch.observation,
        timestep_mask=case.batch.observation.timestep_mask & kept[:, None],
    )
    return dataclasses.replace(case.batch, observation=seen, target_masks=masks)


def test_shape_of_the_plug_in(objective, name):
    module = plugin.module("objectives", name)
    assert list(inspect.signature(module.make).parameters)[1] == "head"
    assert set(module.DEBUG) <= set(inspect.signature(module.make).parameters)
    assert isinstance(objective.couples_rows, bool)
    assert hash(objective) == hash(dataclasses.replace(objective))
    objective.check(lambda source, target: False)


def test_sums_and_counts(case, objective, answers):
    masks = objective.mask(case.batch)
    assert len(masks) == 1, "one mask, one count"
    mask = next(iter(masks.values()))
    assert mask.dtype == bool and mask.shape[0] == case.B and mask.any() and mask.ndim >= 1
    total, figures = objective(answers, {"it": AnyError(mask.shape)}, case.batch)
    for value in (total, *jax.tree.leaves(figures)):
        assert jnp.shape(value) == () and value.dtype == jnp.float32 and np.isfinite(value)
    for _, count in figures.values():
        assert count == mask.sum()


def test_what_is_masked_may_be_anything(case, objective, answers):
    mask = np.asarray(next(iter(objective.mask(case.batch).values())))
    clean, _ = objective(answers, {"it": AnyError(mask.shape)}, case.batch)
    targets = {
        key: np.where(
            case.batch.target_masks[key].reshape(
                case.batch.target_masks[key].shape
                + (1,) * (value.ndim - case.batch.target_masks[key].ndim)
            ),
            value,
            np.nan if value.dtype == np.float32 else -1,
        ).astype(value.dtype)
        for key, value in case.batch.targets.items()
    }
    batch = dataclasses.replace(case.batch, targets=targets)
    total, figures = objective(answers, {"it": AnyError(mask.shape, mask)}, batch)
    np.testing.assert_array_equal(total, clean)
    assert all(np.isfinite(value) for value in jax.tree.leaves(figures))


def test_a_gone_step_leaves_the_count(case, objective):
    kept = np.array([True, False, True])
    before = next(iter(objective.mask(case.batch).values()))
    after = next(iter(objective.mask(padded(case, kept)).values()))
    np.testing.assert_array_equal(after, before & kept.reshape(-1, *(1,) * (before.ndim - 1)))


def test_rows_add_up(case, objective, answers):
    """The sum of a batch is the sum over its rows, unless the objective says it couples them."""
    if objective.couples_rows:
        return
    mask = next(iter(objective.mask(case.batch).values()))
    errors = {"it": AnyError(mask.shape)}
    whole, _ = objective(answers, errors, case.batch)
    parts = [objective(answers, errors, padded(case, np.arange(case.B) == r))[0] for r in range(3)]
    np.testing.assert_allclose(whole, sum(parts), rtol=1e-5)


def test_nothing_real_is_zero_of_zero(case, objective, answers):
    batch = padded(case, np.zeros(case.B, bool))
    mask = next(iter(objective.mask(batch).values()))
    total, figures = objective(answers, {"it": AnyError(mask.shape)}, batch)
    assert total == 0 and all(value == 0 for value in jax.tree.leaves(figures))


def test_errors_of_users(case, objective):
    batch = dataclasses.replace(case.batch, targets={}, target_masks={})
    if not objective.couples_rows:
        with pytest.raises(plugin.UserError, match="sources"):
            objective.mask(batch)
    with pytest.raises(plugin.UserError, match="it"):
        objective({}, {}, case.batch)
