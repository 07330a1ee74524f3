"""A 20-step loss curve per jax version: a change of numbers that nobody meant shows here.

    python tests/test_golden.py --remake      writes tests/golden/loss_curve_jax<minor>.json

Remake it when the numbers were meant to change, and say in the commit why.
"""

import dataclasses
import json
import os
import pathlib
import sys

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import numpy as np
import pytest

from vla_jax import config as config_lib
from vla_jax.models import synthetic
from vla_jax.parallel import arrays
from vla_jax.parallel import mesh as meshes
from vla_jax.train import program, smoke, start

PROJECT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 20
MINOR = ".".join(jax.__version__.split(".")[:2])
FILE = PROJECT / "tests" / "golden" / f"loss_curve_jax{MINOR}.json"


def curve() -> list[float]:
    """The losses of the first train_steps of the debug config with a flow head, made small."""
    config = config_lib.load(f"{PROJECT / 'configs' / 'debug.py'}:head=flow")
    config = dataclasses.replace(smoke.shrink(config, {}), steps=STEPS)
    network, objectives = smoke.parts(config, None)
    mesh = meshes.make(devices=jax.devices()[:1])
    with meshes.use(mesh):
        plan = start.plan(config, network, synthetic.examples(config, 0), mesh)
        train_step = program.train_step(config, network, objectives, plan)
        state, losses = start.fresh(plan), []
        for number in range(STEPS):
            batches = arrays.global_batch(synthetic.batches(config, 0, start=number), mesh)
            state, metrics = train_step(state, batches)
            losses.append(float(metrics["loss"][0]))
    return losses


def test_the_loss_curve_is_the_golden_one():
    if not FILE.is_file():
        pytest.fail(f"{FILE} is missing: no curve for jax {MINOR}; make it with --remake")
    golden = json.loads(FILE.read_text())
    np.testing.assert_allclose(curve(), golden["losses"], rtol=1e-4)


if __name__ == "__main__":
    if sys.argv[1:] != ["--remake"]:
        sys.exit(__doc__)
    FILE.parent.mkdir(exist_ok=True)
    made = dict(jax=jax.__version__, losses=[round(loss, 7) for loss in curve()])
    FILE.write_text(json.dumps(made, indent=1) + "\n")
    print(FILE, made["losses"][0], made["losses"][-1])
