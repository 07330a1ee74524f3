"""Shrinks a config, trains 2 + 2 steps on one device and on a fake mesh, says whether they agree.

  vla smoke --config configs/demo_cofinetune.py                    any config, no data
  vla smoke --config my_lab/config.py:size=large --mesh 2,2,2,1     data, fsdp, tensor, sequence
  vla smoke --plugin heads=my_lab.mamba                            a plug-in in a small config

The last line on stdout is one JSON object with the verdict (`agree`) and the raw numbers; the exit
code is 0 when they agree, 1 when they do not, 2 for a mistake in what was given.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys

from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.parallel import fake_devices

AXES = ("data", "fsdp", "tensor", "sequence")


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--config", help="configs/X.py[:key=value,…]")
    parser.add_argument("--plugin", help="FOLDER=TYPE, laid into a small built-in config")
    parser.add_argument("--mesh", default="1,2,2,2", help="sizes of data,fsdp,tensor,sequence")
    parser.set_defaults(overrides=[])  # ``--config.a.b=c``, gathered by main


def run(arguments: argparse.Namespace) -> int:
    """Runs the smoke test, in a process with enough fake devices; prints the JSON line."""
    axes = parse_mesh(arguments.mesh)
    if bool(arguments.config) == bool(arguments.plugin):
        raise plugin.UserError("give either --config FILE or --plugin FOLDER=TYPE.")
    if fake_devices.count() < math.prod(axes.values()):
        return _with_devices(arguments, math.prod(axes.values()))
    config = config_lib.load(arguments.config, arguments.overrides) if arguments.config else None
    # After the arguments are known to be good: importing jax and Orbax takes seconds.
    from vla_jax.train import smoke, smoke_plugin

    if config is None:
        config = smoke_plugin.config(arguments.plugin)
    verdict = smoke.run(config, axes)
    print(json.dumps({"of": arguments.config or arguments.plugin, **verdict}), flush=True)
    return 0 if verdict["agree"] else 1


def parse_mesh(text: str) -> dict[str, int]:
    """{axis: size} of "1,2,2,2"; axes left out have size 1. UserError for anything else."""
    parts = text.split(",")
    if len(parts) > len(AXES) or not all(part.strip().isdigit() and int(part) for part in parts):
        raise plugin.UserError(
            f"--mesh: got {text!r}, expected up to four sizes {','.join(AXES)}, like 1,2,2,2"
        )
    sizes = [int(part) for part in parts] + [1] * (len(AXES) - len(parts))
    return dict(zip(AXES, sizes, strict=True))


def _with_devices(arguments: argparse.Namespace, count: int) -> int:
    """The exit code of the same verb in a process with `count` fake devices."""
    which = ("--config", arguments.config) if arguments.config else ("--plugin", arguments.plugin)
    verb = ["smoke", *which, "--mesh", arguments.mesh, *arguments.overrides]
    program = "import sys; from vla_jax.cli import main; sys.exit(main.main())"
    command = [sys.executable, "-c", program, *verb]
    environment = {**os.environ, **fake_devices.variables(count)}
    return subprocess.run(command, env=environment).returncode
