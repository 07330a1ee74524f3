"""Twenty train_steps of two streams: the same curve on every mesh, and nearly so in bfloat16."""

import dataclasses

import jax
import numpy as np
import pytest

from vla_jax import config as config_lib
from vla_jax.models import synthetic
from vla_jax.parallel import arrays
from vla_jax.parallel import mesh as meshes
from vla_jax.train import program, smoke, start

STEPS = 20
MESHES = {
    "8x1x1": dict(data=8),
    "1x8x1": dict(data=1, fsdp=8),
    "2x2x2": dict(data=2, fsdp=2, tensor=2),
    "1x2x2x2": dict(data=1, fsdp=2, tensor=2, sequence=2),
}


def curve(mesh, dtype: str = "float32") -> np.ndarray:
    """[STEPS, 2]: losses and norms of the gradients of the demo's co-fine-tuning, made small."""
    config = smoke.shrink(config_lib.load("configs/demo_cofinetune.py"), dict(data=8))
    model = dataclasses.replace(config.model, dtype=dtype)
    config = dataclasses.replace(config, steps=STEPS, model=model)
    tokenizer, _ = smoke.text_tokenizer(config)
    network, objectives = smoke.parts(config, tokenizer)
    size, found = tokenizer.vocabulary_size, []
    with meshes.use(mesh):
        plan = start.plan(config, network, synthetic.examples(config, size), mesh)
        train_step = program.train_step(config, network, objectives, plan)
        state = start.fresh(plan)
        for number in range(STEPS):
            batches = synthetic.batches(config, size, start=number)
            state, metrics = train_step(state, arrays.global_batch(batches, mesh))
            found.append([float(metrics[name][0]) for name in ("loss", "gradient_norm")])
    return np.asarray(found)


@pytest.fixture(scope="module")
def alone():
    found = curve(meshes.make(devices=jax.devices()[:1]))
    assert found[-5:, 0].mean() < found[:5, 0].mean()  # it learns: the curve is not a constant
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_the_same_curve_on_every_mesh(alone, name):
    np.testing.assert_allclose(curve(meshes.make(MESHES[name]))[:, 0], alone[:, 0], rtol=1e-5)


@pytest.mark.slow
def test_bfloat16_stays_near(alone):
    found = curve(meshes.make(devices=jax.devices()[:1]), "bfloat16")
    assert not np.array_equal(found, alone)
    np.testing.assert_allclose(found[:, 0], alone[:, 0], rtol=0.02)
    np.testing.assert_allclose(found[:, 1], alone[:, 1], rtol=0.03)
