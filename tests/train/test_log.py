import json

import jax.numpy as jnp
import pytest

from vla_jax.train import log as logs


@pytest.mark.parametrize("skipped", [0, 3])
def test_skipped_samples_are_told(skipped, tmp_path):
    log = logs.Log(str(tmp_path), ("jsonl",), start=0, steps=2, every=1)
    one = jnp.ones(2)
    for done in (1, 2):
        log.add(done, {"loss": one, "parameter_norm": one}, 0.0, skipped)
    log.close()
    (file,) = tmp_path.rglob("*.jsonl")
    for line in map(json.loads, file.read_text().splitlines()):
        assert line.get("skipped_samples", 0) == skipped and line["loss"] == 1
