"""Traces some train_steps of a config with jax's profiler: where their time goes.

  vla profile --config configs/debug.py:data=… --out runs/trace [--steps 5] [--config.a.b=c]

As many train_steps go before the trace (they compile); nothing is saved. Each process writes its
own file; with several hosts --out is a folder that all of them mount. How to open it is printed;
the last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys

from vla_jax import config as config_lib
from vla_jax import storage


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--config", required=True, help="configs/X.py[:key=value,…]")
    parser.add_argument("--out", required=True, help="a new folder for the trace")
    parser.add_argument("--steps", type=int, default=5, help="train_steps in it (default 5)")
    parser.set_defaults(overrides=[])  # ``--config.a.b=c``, gathered by main


def run(arguments: argparse.Namespace) -> int:
    """Trains 2 x --steps train_steps and traces the second half."""
    out = storage.path(storage.local("--out", arguments.out))
    config = config_lib.load(arguments.config, arguments.overrides)
    # After the arguments are known to be good: importing jax takes seconds.
    from vla_jax.parallel import processes
    from vla_jax.train import assemble, profile

    with processes.together():
        found = profile.capture(assemble.assemble(config), out, arguments.steps)
        if processes.first():
            print(
                f"{out}: open perfetto_trace.json.gz, the last of its plugins/profile, at "
                "ui.perfetto.dev; or all of it with `pip install xprof` and `xprof --logdir "
                f"{out}`",
                file=sys.stderr,
            )
            print(json.dumps({"out": str(out), **found}))
    return 0
