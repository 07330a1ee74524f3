"""Says what a config needs on chips that are not there: memory, collectives, the least step time.

vla plan --config configs/octo_base.py --topology v5e:16x16    as libtpu compiles it (extra `plan`)
vla plan --config configs/octo_base.py --topology h100:64 --config.mesh.fsdp=8
vla plan --config configs/octo_base.py --topology cpu:256      fake devices

Nothing is run and no data is read. Last on stdout stands one JSON object with the figures, `plan_s`
and `plan_rss_mb`. The exit code is 0 if the config fits or nobody can say, 1 if it does not fit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.parallel import chips, fake_devices

BEGUN = "VLA_PLAN_BEGUN"  # when the verb began, in the process that has the fake devices


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--config", required=True, help="configs/X.py[:key=value,…]")
    known = ", ".join(chips.CHIPS)
    parser.add_argument("--topology", required=True, help=f"CHIP:N or CHIP:AxB; chips: {known}")
    parser.set_defaults(overrides=[])


def run(arguments: argparse.Namespace) -> int:
    """Plans in a process that has as many fake devices as the topology has chips."""
    chip, shape = chips.parse(arguments.topology)
    config = config_lib.load(arguments.config, arguments.overrides)
    if BEGUN not in os.environ:
        words = ["--config", arguments.config, "--topology", arguments.topology]
        environment = {
            **os.environ,
            **fake_devices.variables(chips.count(shape)),
            BEGUN: str(time.time()),
            "TPU_SKIP_MDS_QUERY": "1",  # libtpu would look for a cloud's metadata
            "TPU_LIBRARY_LOG_LEVEL": "3",
            "JAX_ENABLE_COMPILATION_CACHE": "false",  # a kept program has no memory analysis
        }
        program = "import sys; from vla_jax.cli import main; sys.exit(main.main())"
        command = [sys.executable, "-c", program, "plan", *words, *arguments.overrides]
        return subprocess.run(command, env=environment).returncode
    from vla_jax.train import plan

    try:
        found = plan.make(config, chip, plan.devices(chip, shape))
    except RuntimeError as error:  # XLA: out of memory on the chip, a program it cannot compile
        raise plugin.UserError(f"plan: XLA cannot compile this: {str(error)[:600]}") from error
    print(plan.text(found))
    spent = {
        "plan_s": round(time.time() - float(os.environ[BEGUN]), 1),
        "plan_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    of = {"config": arguments.config, "topology": arguments.topology}
    print(json.dumps({**of, **found, **spent}), flush=True)
    return 1 if found["fits"] is False else 0
