import json

import jax.numpy as jnp
import pytest

from tests.train import toy
from vla_jax.train import accounting
from vla_jax.train import log as logs


@pytest.mark.parametrize("skipped", [0, 3])
def test_skipped_samples_are_told(skipped, tmp_path):
    config = toy.config(steps=2)
    log = logs.Log(str(tmp_path), config, 0, accounting.Account(str(tmp_path), None))
    one = jnp.ones(2)
    for done in (1, 2):
        log.add(done, {"loss": one, "parameter_norm": one}, 0.0, skipped)
    log.close()
    (file,) = tmp_path.rglob("*.jsonl")
    for line in map(json.loads, file.read_text().splitlines()):
        assert line.get("skipped_samples", 0) == skipped and line["loss"] == 1
