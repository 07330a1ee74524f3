"""Twenty train_steps of two streams: the same curve on every mesh, and nearly so in bfloat16."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

from tests import launched
from vla_jax import config as config_lib
from vla_jax.models import synthetic
from vla_jax.parallel import arrays, processes
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
        train_step = processes.beginning_together(train_step, "the first train_step")
        state = jax.block_until_ready(start.fresh(plan))
        for number in range(STEPS):
            batches = synthetic.batches(config, size, start=number)
            batches = {name: of_host(batch, mesh) for name, batch in batches.items()}
            state, metrics = train_step(state, arrays.global_batch(batches, mesh))
            found.append([float(metrics[name][0]) for name in ("loss", "gradient_norm")])
    return np.asarray(found)


def of_host(batch, mesh):
    """The rows of a batch that this process's devices own."""
    return jax.tree.map(lambda x: x[arrays.rows_of_host(mesh, len(x))], batch)


@pytest.fixture(scope="module")
def alone():
    found = curve(meshes.make(devices=jax.devices()[:1]))
    assert found[-5:, 0].mean() < found[:5, 0].mean()  # it learns: the curve is not a constant
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_the_same_curve_on_every_mesh(alone, name):
    np.testing.assert_allclose(curve(meshes.make(MESHES[name]))[:, 0], alone[:, 0], rtol=1e-5)


# `fsdp` goes over both processes, so that parameters, gradients and rows do.
TOGETHER = """
import json, sys
from tests import test_curves
from vla_jax.parallel import mesh as meshes, processes
with processes.together():
    made = meshes.make(dict(data=1, fsdp=4, tensor=2))
    found = test_curves.curve(made).tolist()
    if processes.first():
        print("found", json.dumps(found), len(made.local_devices), made.size, flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_same_curve_on_two_processes_of_four_devices(alone):
    done = launched.local(2, sys.executable, "-c", TOGETHER, devices=4, timeout=1500)
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("[0] found")] or [done.stdout]
    found, end = json.JSONDecoder().raw_decode(line.removeprefix("[0] found "))
    assert line[len("[0] found ") + end :].split() == ["4", "8"] and done.returncode == 0
    np.testing.assert_allclose(np.asarray(found)[:, 0], alone[:, 0], rtol=1e-5)


@pytest.mark.slow
def test_bfloat16_stays_near(alone):
    found = curve(meshes.make(devices=jax.devices()[:1]), "bfloat16")
    assert not np.array_equal(found, alone)
    np.testing.assert_allclose(found[:, 0], alone[:, 0], rtol=0.02)
    np.testing.assert_allclose(found[:, 1], alone[:, 1], rtol=0.03)
