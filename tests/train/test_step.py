import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train import toy
from vla_jax import plugin, trees
from vla_jax.parallel import arrays
from vla_jax.parallel import mesh as meshes
from vla_jax.train import keys, start, state, step

SGD = optax.sgd(1.0)  # so that a change of parameters is the gradient


def one_step(config, mesh, batches=None, objectives=toy.OBJECTIVES):
    """(gradient, metrics) of the first train_step on `mesh`, as numpy."""
    plan = start.plan(config, toy.Model(), toy.batches(config), mesh)
    with meshes.use(mesh):
        fresh = start.fresh(plan)
        before = jax.device_get(fresh.trained)
        fresh = dataclasses.replace(fresh, opt_state=SGD.init(fresh.trained))
        do = jax.jit(step.make_train_step(toy.Model().apply, objectives, SGD, config))
        after, metrics = do(fresh, arrays.global_batch(batches or toy.batches(config), mesh))
    return jax.tree.map(np.subtract, before, jax.device_get(after.trained)), jax.device_get(metrics)


def distance(a, b):
    """Relative distance in global norm."""
    norm = lambda tree: np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree)))  # noqa: E731
    return norm(jax.tree.map(np.subtract, a, b)) / norm(a)


@pytest.fixture(scope="module")
def single():
    return one_step(toy.config(), meshes.make(devices=jax.devices()[:1]))


@pytest.mark.mesh
@pytest.mark.parametrize("axes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_meshes_agree(single, axes):
    mesh = meshes.make(dict(zip(("data", "fsdp", "tensor"), axes)))
    gradient, metrics = one_step(toy.config(), mesh)
    assert distance(single[0], gradient) <= 1e-5
    for name, (total, count) in single[1].items():
        np.testing.assert_allclose(metrics[name][0], total, rtol=1e-5)
        assert metrics[name][1] == count


@pytest.mark.mesh
@pytest.mark.parametrize("pieces, devices", [(2, 1), (4, 1), (2, 4)])
def test_accumulation_is_the_full_batch(single, pieces, devices):
    mesh = meshes.make(devices=jax.devices()[:devices])
    gradient, metrics = one_step(toy.config(optimizer=dict(accumulation=pieces)), mesh)
    assert distance(single[0], gradient) <= 1e-6
    assert set(metrics) == set(single[1])
    for name, (total, count) in single[1].items():
        np.testing.assert_allclose(metrics[name][0], total, rtol=1e-5)
        assert metrics[name][1] == count


def test_the_parts_of_the_gradient_norm_add_up_to_it(single):
    """By module and by row of optimizer.groups: each leaf of the gradient is in one of each."""
    gradient, metrics = single
    leaves = {path: np.sum(np.square(g)) for path, g in trees.items(gradient)}
    parts = {k.removeprefix("gradient_norm/"): v[0] for k, v in metrics.items() if "norm/" in k}
    groups = {name: parts.pop(name) for name in list(parts) if name.startswith("group_")}
    assert set(parts) == {"stem", "kernel", "robot", "vl"} and set(groups) == {"group_0", "group_1"}
    for found in (parts, groups):
        total = np.sqrt(sum(np.square(list(found.values()))))
        np.testing.assert_allclose(total, metrics["gradient_norm"][0], rtol=1e-5)
    biases = np.sqrt(sum(size for path, size in leaves.items() if path.endswith("/bias")))
    np.testing.assert_allclose(groups["group_0"], biases, rtol=1e-4)
    stem = np.sqrt(sum(size for path, size in leaves.items() if "/stem/" in path))
    np.testing.assert_allclose(parts["stem"], stem, rtol=1e-4)


def test_loss_is_the_sum_over_streams_by_exact_counts(single):
    """The loss from numpy: each objective's sum over its real entries, divided by their number."""
    config, metrics = toy.config(), single[1]
    expected, data = 0.0, toy.batches(config)
    variables = jax.device_get(
        start.fresh(
            start.plan(config, toy.Model(), data, meshes.make(devices=jax.devices()[:1]))
        ).variables
    )
    for name, target, weight in (("robot", "action", 1.0), ("vl", "point", 0.5)):
        use = {name: keys.row_keys(0, f"{name}/{name}", jnp.asarray(data[name].row_id))}
        _, errors = toy.Model().apply(variables, data[name], name, use)
        mask = data[name].target_masks[target]
        error = np.asarray(errors[name]["square"])[mask]
        expected += weight * error.sum() / mask.sum()
        np.testing.assert_allclose(metrics[f"{name}/{target}"][0], error.sum(), rtol=1e-5)
        assert metrics[f"{name}/{target}"][1] == mask.sum()
    np.testing.assert_allclose(metrics["loss"][0], expected, rtol=1e-5)


def test_what_is_masked_does_not_matter(single):
    config = toy.config()
    data = toy.batches(config)
    targets = {
        "action": np.where(data["robot"].target_masks["action"], data["robot"].targets["action"], 7)
    }
    data["robot"] = dataclasses.replace(
        data["robot"], targets={"action": targets["action"].astype(np.float32)}
    )
    gradient, _ = one_step(config, meshes.make(devices=jax.devices()[:1]), data)
    assert distance(single[0], gradient) == 0


def test_a_batch_without_real_entries_is_no_nan():
    config = toy.config()
    data = toy.batches(config)
    data["vl"] = dataclasses.replace(
        data["vl"], target_masks={"point": np.zeros_like(data["vl"].target_masks["point"])}
    )
    gradient, metrics = one_step(config, meshes.make(devices=jax.devices()[:1]), data)
    assert np.isfinite(metrics["loss"][0]) and metrics["vl/point"] == (0, 0)
    assert np.all(gradient["params"]["vl"]["kernel"] == 0)


def test_row_keys_depend_on_seed_use_and_row_only():
    ids = jnp.arange(4, dtype=jnp.uint32)
    key = keys.row_keys(0, "robot/action", ids)
    data = jax.random.key_data(key)
    assert key.shape == (4,) and len(np.unique(data, axis=0)) == 4
    again = jax.random.key_data(keys.row_keys(0, "robot/action", ids[::-1]))[::-1]
    np.testing.assert_array_equal(data, again)
    for other in (keys.row_keys(1, "robot/action", ids), keys.row_keys(0, "vl/action", ids)):
        assert not np.any(np.all(data == jax.random.key_data(other), axis=-1))


def test_coupled_rows_refuse_accumulation():
    class Coupled(toy.Square):
        couples_rows = True

    coupled = {"vl": {"contrastive": (Coupled(head="vl", target="point"), 1.0)}}
    config = toy.config(optimizer=dict(accumulation=2))
    with pytest.raises(plugin.UserError, match="accumulation is 2.*'contrastive' of stream 'vl'"):
        step.make_train_step(toy.Model().apply, coupled, SGD, config)
    step.make_train_step(toy.Model().apply, coupled, SGD, toy.config())


def test_weights_may_be_scheduled():
    points = ((0, 1.0), (10, 3.0))
    assert step._weight(2.0, jnp.int32(5)) == 2.0
    np.testing.assert_allclose(step._weight(points, jnp.int32(5)), 2.0)
    np.testing.assert_allclose(step._weight(points, jnp.int32(50)), 3.0)


def test_frozen_parameters_do_not_move_and_have_no_moments():
    config = toy.config(freeze=(("params/(stem|vl)/.*", True),))
    mesh = meshes.make(devices=jax.devices()[:1])
    plan = start.plan(config, toy.Model(), toy.batches(config), mesh)
    before = start.fresh(plan)
    assert not any("stem" in path for path in trees.paths(before.opt_state))
    assert {path.split("/")[1] for path in trees.paths(before.frozen)} == {"stem", "vl"}
    frozen = jax.device_get(before.frozen)
    do = jax.jit(step.make_train_step(toy.Model().apply, toy.OBJECTIVES, plan.optimizer, config))
    after, _ = do(before, toy.batches(config))
    assert distance(frozen, jax.device_get(after.frozen)) == 0
    assert trees.diff(plan.variables, after.variables) == ""
    with pytest.raises(plugin.UserError, match="nothing is left to train"):
        state.split(plan.variables, ((".*", True),))
    with pytest.raises(plugin.UserError, match="params/stm"):
        state.split(plan.variables, (("params/stm/.*", True),))


def test_eval_step_has_keys_of_its_own_and_repeats_itself():
    config = toy.config()
    plan = start.plan(
        config, toy.Model(), toy.batches(config), meshes.make(devices=jax.devices()[:1])
    )
    variables, do = start.fresh(plan).variables, None
    do = jax.jit(step.make_eval_step(toy.Model().apply, toy.OBJECTIVES, config))
    data = {"vl": toy.batch(config, "vl")}
    first, second = do(variables, data), do(variables, data)
    assert set(first) == {"vl/point", "vl/point/square"}
    assert first["vl/point"] == second["vl/point"]


def test_frozen_parameters_may_be_bfloat16():
    """Half the bytes, nearly the same loss; all that is trained stays float32."""
    frozen = (("params/(kernel|stem/.*)", True), (".*", False))
    mesh = meshes.make(devices=jax.devices()[:1])
    found = {}
    for dtype in ("float32", "bfloat16"):
        config = toy.config(freeze=frozen, frozen_dtype=dtype)
        plan = start.plan(config, toy.Model(), toy.batches(config), mesh)
        fresh = start.fresh(plan)
        assert {x.dtype for x in jax.tree.leaves(fresh.frozen)} == {jnp.dtype(dtype)}
        others = (fresh.trained, fresh.opt_state, fresh.ema)
        assert jnp.bfloat16 not in {x.dtype for x in jax.tree.leaves(others)}
        do = jax.jit(
            step.make_train_step(toy.Model().apply, toy.OBJECTIVES, plan.optimizer, config)
        )
        after, metrics = do(fresh, arrays.global_batch(toy.batches(config), mesh))
        same = jax.tree.map(np.array_equal, jax.device_get(fresh.frozen), after.frozen)
        assert jax.tree.all(same)
        found[dtype] = (
            float(metrics["loss"][0]),
            sum(x.nbytes for x in jax.tree.leaves(after.frozen)),
        )
    (loss, bytes_), (loss16, bytes16) = found["float32"], found["bfloat16"]
    assert bytes16 * 2 == bytes_ and loss != loss16
    np.testing.assert_allclose(loss16, loss, rtol=0.02)


def test_a_run_with_frozen_bfloat16_goes_on_bit_for_bit(tmp_path):
    frozen = (("params/(kernel|stem/.*)", True), (".*", False))
    config = toy.config(freeze=frozen, frozen_dtype="bfloat16")
    whole = toy.run(config, tmp_path / "whole")
    toy.run(dataclasses.replace(config, steps=2), tmp_path / "parts")
    parts = toy.run(config, tmp_path / "parts")
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(jax.device_get(a), jax.device_get(b))
