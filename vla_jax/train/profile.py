"""Where the time of a train_step goes: a trace of jax's profiler over some of them."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from typing import Any

import jax

from vla_jax import config as config_lib
from vla_jax import plugin, storage
from vla_jax.parallel import processes
from vla_jax.train import assemble, checkpoint, hooks


def capture(assembly: assemble.Assembly, folder: pathlib.Path, steps: int) -> dict[str, Any]:
    """{"train_steps", "seconds_per_step", "files"} of a trace in `folder`.

    `steps` train_steps go before it: they compile, and fill what is loaded ahead. Nothing is saved
    or evaluated. UserError for a folder that holds a run or a trace already.
    """
    if steps < 1:
        raise plugin.UserError(f"--steps: got {steps}, expected at least 1")
    if checkpoint.resumable(folder) or storage.names(folder):
        raise plugin.UserError(f"--out {folder}: holds something already; give a new folder")
    config = dataclasses.replace(
        assembly.config,
        steps=2 * steps,
        writers=(),
        log_every=steps,
        validation=config_lib.ValidationConfig(),
        checkpoint=config_lib.CheckpointConfig(every=None),
    )
    clock: list[float] = []

    def turn(done: int, state: Any) -> dict[str, float]:
        jax.block_until_ready(state)
        if done == steps:
            jax.profiler.start_trace(folder, create_perfetto_trace=processes.first())
            clock.append(time.perf_counter())
        else:
            clock.append(time.perf_counter())
            jax.profiler.stop_trace()
        return {}

    hook = hooks.Hook(name="profile", every=steps, call=turn)
    assemble.train(dataclasses.replace(assembly, config=config), str(folder), [hook])
    if len(clock) < 2:
        raise plugin.UserError("vla profile: asked to stop before the trace was whole")
    return dict(
        train_steps=steps,
        seconds_per_step=(clock[1] - clock[0]) / steps,
        files=[name for name in storage.sizes(folder) if name.startswith("plugins/")],
    )
