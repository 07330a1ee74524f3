"""Whether the same run twice is the same run: for the debugging of a machine or of a plug-in."""

from __future__ import annotations

import dataclasses
import tempfile
from typing import Any

import jax
import numpy as np

from vla_jax import config as config_lib
from vla_jax import plugin, trees
from vla_jax.train import assemble

STEPS = 3


def verify(assembly: assemble.Assembly) -> dict[str, Any]:
    """{"bitwise_equal", "train_steps", "differ": paths}: STEPS train_steps twice from the start.

    Data are drawn anew each time; nothing is left on disk. UserError on several processes, which
    have no temporary folder in common.
    """
    if jax.process_count() > 1:
        raise plugin.UserError(
            f"--verify-determinism: got {jax.process_count()} processes, expected one; run it on "
            "one host, with fake devices for a larger mesh"
        )
    config = dataclasses.replace(
        assembly.config,
        steps=STEPS,
        writers=(),
        log_every=1,
        validation=config_lib.ValidationConfig(),
        checkpoint=config_lib.CheckpointConfig(every=STEPS),
    )
    short = dataclasses.replace(assembly, config=config)
    runs = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as workdir:
            runs.append(_held(assemble.train(short, workdir)))
    first, second = runs
    differ = [path for path in first if first[path] != second[path]]
    return {"bitwise_equal": not differ, "train_steps": STEPS, "differ": differ}


def _held(state: Any) -> dict[str, bytes]:
    """{path: the bytes of its shards}."""
    return {
        path: b"".join(np.asarray(s.data).tobytes() for s in leaf.addressable_shards)
        for path, leaf in trees.items(state)
        if isinstance(leaf, jax.Array)
    }
