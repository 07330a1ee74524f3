"""Loss and gradients of two streams agree between one device and meshes of eight."""

import jax
import numpy as np
import optax
import pytest

from vla_jax import config as config_lib
from vla_jax import trees
from vla_jax.models import synthetic
from vla_jax.parallel import arrays, sharding
from vla_jax.parallel import mesh as meshes
from vla_jax.train import smoke, state, step

MESHES = {
    "8x1x1": dict(data=8),
    "1x8x1": dict(fsdp=8, data=1),
    "2x2x2": dict(data=2, fsdp=2, tensor=2),
}


@pytest.fixture(scope="module")
def small():
    """(config, network, objectives, batches) of the demo's co-fine-tuning, 8 rows per stream."""
    config = config_lib.load("configs/demo_cofinetune.py")
    config = smoke.shrink(config, dict(data=8))
    tokenizer, _ = smoke.text_tokenizer(config)
    network, objectives = smoke.parts(config, tokenizer)
    assert set(config.streams) == {"robot", "vl"}
    batches = synthetic.batches(config, tokenizer.vocabulary_size)
    assert {batch.row_id.shape for batch in batches.values()} == {(8,)}
    variables = jax.tree.map(np.asarray, jax.jit(network.init)(jax.random.key(0), batches))
    return config, network, objectives, batches, variables


def keep() -> optax.GradientTransformation:
    """An optimizer that changes nothing; its state is the last gradient."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jax.numpy.zeros_like, params),
        lambda grads, _, params=None: (jax.tree.map(jax.numpy.zeros_like, grads), grads),
    )


def gradient(small, mesh) -> tuple[float, dict, int]:
    """(loss, gradient by path, parameters that are sharded) on `mesh`."""
    config, network, objectives, batches, variables = small
    with meshes.use(mesh):
        made = state.create(variables, (), keep(), ema=False)
        shards = sharding.state_shardings(
            made, variables, config.sharding.rules, mesh, config.sharding.small
        )
        train_step = jax.jit(
            step.make_train_step(network.apply, objectives, keep(), config),
            out_shardings=(shards, arrays.replicated(mesh)),
        )
        made, metrics = train_step(jax.device_put(made, shards), arrays.global_batch(batches, mesh))
        sharded = sum(not s.is_fully_replicated for s in jax.tree.leaves(shards.trained))
        found = dict(trees.items(jax.tree.map(np.asarray, made.opt_state)))
        return float(metrics["loss"][0]), found, sharded


@pytest.fixture(scope="module")
def alone(small):
    loss, found, sharded = gradient(small, meshes.make(devices=jax.devices()[:1]))
    assert np.isfinite(loss) and sharded == 0
    # Every parameter has a gradient: what nothing trains could not disagree.
    assert all(np.any(leaf) for leaf in found.values())
    return loss, found


# All axes at once by default; one axis at a time is slow and leads to the axis at fault.
@pytest.mark.mesh
@pytest.mark.parametrize(
    "name",
    ["2x2x2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("8x1x1", "1x8x1"))],
)
def test_agrees_with_one_device(small, alone, name):
    loss, found, sharded = gradient(small, meshes.make(MESHES[name]))
    assert (sharded > 0) == (name != "8x1x1")
    assert abs(loss - alone[0]) <= 1e-5 * abs(alone[0])
    assert set(found) == set(alone[1])
    assert smoke.difference(found, alone[1]) <= 1e-5


def test_difference_notices():
    one = {"a": np.ones(4), "b": np.zeros(2)}
    assert smoke.difference(one, one) == 0
    assert smoke.difference({**one, "b": np.full(2, 1e-3)}, one) > 1e-4
    assert smoke.difference({**one, "a": np.full(4, np.nan)}, one) == float("inf")
