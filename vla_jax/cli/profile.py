"""Traces some train_steps of a config with jax's profiler, and says what took the time.

vla profile --config configs/demo_cofinetune.py --out profile
vla profile --config configs/octo_base.py --steps 3 --config.mesh.fsdp=8

Batches are synthetic, no data is read and nothing is trained for keeps. The folder can be looked at
with xprof or TensorBoard. Last on stdout stands one JSON object with the figures.
"""

from __future__ import annotations

import argparse
import json

from vla_jax import config as config_lib
from vla_jax.cli import train


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--config", required=True, help="configs/X.py[:key=value,…]")
    parser.add_argument("--out", default="profile", help="folder for the trace (default: profile)")
    parser.add_argument("--steps", type=int, default=5, help="train_steps in the trace")
    parser.add_argument("--warmup", type=int, default=3, help="train_steps before it")
    parser.add_argument("--top", type=int, default=15, help="rows of each table")
    parser.add_argument("--process", metavar="I/N@HOST:PORT", help=train.PROCESS)
    parser.set_defaults(overrides=[])  # ``--config.a.b=c``, gathered by main


def run(arguments: argparse.Namespace) -> int:
    """Traces, prints tables and one JSON line."""
    config = config_lib.load(arguments.config, arguments.overrides)
    # After the arguments are known to be good: importing jax takes seconds.
    from vla_jax.parallel import processes
    from vla_jax.train import agree, profiling

    with processes.together():
        agree.on_start(config, None)
        found = profiling.capture(config, arguments.out, arguments.steps, arguments.warmup)
        if processes.first():
            print(profiling.text(found, arguments.out, arguments.top))
            print(json.dumps({"config": arguments.config, **found}), flush=True)
    return 0
