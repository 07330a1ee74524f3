"""Every file of heads/ keeps the contract of DESIGN.md §3; found by listing the folder."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax import plugin, trees
from vla_jax.models import specs

# What a config says anyway; laid over every argument of these names.
SAID = dict(readout="main", names=("ab", "c", "dog"), image="primary", max_tokens=6)

SINGLE_STEP = ("language",)  # heads of a row, which refuse a longer window


def arguments(name):
    module = plugin.module("heads", name)
    parameters = list(inspect.signature(module.make).parameters)[1:]
    return {key: value for key, value in SAID.items() if key in parameters} | module.DEBUG


@pytest.fixture(scope="module", params=plugin.names("heads"))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def case(name):
    from tests.heads import case as cases

    return cases.make(window=1 if name in SINGLE_STEP else 2)


@pytest.fixture(scope="module")
def run(case, name):
    """The head, compiled."""
    return jax.jit(case.build(type=name, **arguments(name))[0].apply)


@pytest.fixture(scope="module")
def built(case, name, run):
    """(harness, variables, answer, errors)."""
    harness, variables = case.build(type=name, **arguments(name))
    return harness, variables, *run(variables, case.outputs, {}, case.batch, case.keys)


def test_debug_holds_sizes_of_arguments(name):
    module = plugin.module("heads", name)
    parameters = inspect.signature(module.make).parameters
    assert set(module.DEBUG) <= set(parameters)
    for value in module.DEBUG.values():
        assert np.asarray(value).dtype.kind == "i"
    assert {"reads", "detach"} <= set(parameters)


def test_answers_and_errors(case, name, built):
    harness, variables, answer, errors = built
    assert isinstance(answer, dict)
    for value in (*answer.values(), *errors.values()):
        assert value.dtype == jnp.float32 and np.isfinite(value).all()
    for value in errors.values():
        assert value.shape[0] == case.B and value.ndim > 1, "errors are never reduced"
    assert specs.acts(dict(type=name, **arguments(name))) == ("action" in answer)


def test_gradients_are_finite_even_where_masked_targets_are_not(case, name, built):
    harness, variables, answer, errors = built
    spoilt = {
        key: np.where(
            case.batch.target_masks[key].reshape(
                case.batch.target_masks[key].shape
                + (1,) * (value.ndim - case.batch.target_masks[key].ndim)
            ),
            value,
            np.nan if value.dtype == np.float32 else 10**6,
        ).astype(value.dtype)
        for key, value in case.batch.targets.items()
    }

    def total(variables, targets):
        batch = dataclasses.replace(case.batch, targets=targets)
        answer, errors = harness.apply(variables, case.outputs, {}, batch, case.keys)
        parts = [jnp.sum(value) for value in (*answer.values(), *errors.values())]
        return sum(parts)

    compiled = jax.jit(jax.value_and_grad(total))
    value, gradient = compiled(variables, spoilt)
    clean, _ = compiled(variables, case.batch.targets)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    if name not in ("regression", "flow", "pointing"):  # these measure themselves against zeros
        np.testing.assert_allclose(value, clean, rtol=1e-5)


def test_a_row_does_not_depend_on_its_batch(case, run, built):
    _, variables, answer, errors = built
    order = np.array([2, 0, 1])
    outputs, batch = jax.tree.map(lambda x: x[order], (case.outputs, case.batch))
    again = run(variables, outputs, {}, batch, case.keys[order])
    for old, new in zip(jax.tree.leaves((answer, errors)), jax.tree.leaves(again), strict=True):
        old = old[order] if old.ndim else old
        np.testing.assert_allclose(old, new, rtol=1e-5, atol=1e-5)


def test_sample_answers_the_newest_step(case, name, built):
    harness, variables, answer, errors = built
    caches = []

    @jax.jit
    def run(*inputs):
        answer, cache = harness.apply(*inputs, method="sample")
        caches.append(cache)  # as it is traced
        return answer

    batch = dataclasses.replace(case.batch, targets={}, target_masks={})
    sampled = run(variables, case.outputs, {}, batch, case.keys)
    assert set(sampled) >= set(answer)
    for key in answer:
        value = sampled[key]
        full = answer[key].shape  # an answer about the task, not about steps, has no window
        assert value.shape in (full, (case.B, *full[2:])) and np.isfinite(value).all()
    # Older steps do not matter to it, and the cache is handed on.
    older = {
        key: output
        if output.final.ndim == 3
        else dataclasses.replace(
            output, final=output.final + (np.arange(case.W) == 0)[None, :, None, None]
        )
        for key, output in case.outputs.items()
    }
    for key, value in run(variables, older, {}, batch, case.keys).items():
        np.testing.assert_array_equal(value, sampled[key])
    assert set(caches) == {"the cache"}


def test_without_targets_there_are_no_errors(case, name, built):
    harness, variables, answer, errors = built
    batch = dataclasses.replace(case.batch, targets={}, target_masks={})
    _, errors = jax.eval_shape(harness.apply, variables, case.outputs, {}, batch, case.keys)
    assert errors == {}


def test_bfloat16_compute_keeps_float32_answers(case, name, built):
    harness, variables, answer, errors = built
    half = harness.clone(context=dataclasses.replace(case.context, dtype=jnp.bfloat16))
    answer, errors = jax.eval_shape(half.apply, variables, case.outputs, {}, case.batch, case.keys)
    for path, value in trees.items((answer, errors)):
        assert value.dtype == jnp.float32, path


def test_detach_must_be_read(case, name):
    with pytest.raises(plugin.UserError, match="detach"):
        plugin.build("heads", dict(type=name, **arguments(name), detach=("other",)), case.context)
