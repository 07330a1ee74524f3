"""Says what a config needs on chips that are not there: memory, collectives, the least step time.

vla plan --config configs/octo_base.py --topology v5e:16x16    as libtpu compiles it (extra `plan`)
vla plan --config configs/octo_base.py --topology h100:64 --config.mesh.fsdp=8
vla plan --config configs/octo_base.py --topology cpu:256      fake devices
vla plan --config configs/octo_base.py --topology h100:64 --search --batch-factors 1,2,4

With --search, meshes, remat and multiples of the batch sizes are compared, and those that fit
ranked by the least time per sample. What shapes rule out is not compiled; of the rest the most
promising are, --compilations of them at most, and none begins after --seconds.

Nothing is run and no data is read. Last on stdout stands one JSON object with the figures, `plan_s`
and `plan_rss_mb`. The exit code is 0 if the config fits or nobody can say, 1 if it does not fit.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
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
    parser.add_argument("--memory", type=float, metavar="GB", help="of a chip, instead of its own")
    parser.add_argument("--search", action="store_true", help="rank meshes, remat, batch sizes")
    parser.add_argument("--batch-factors", default="1", metavar="N,…", help="of --search")
    parser.add_argument("--compilations", type=int, default=8, help="of --search (default 8)")
    parser.add_argument("--seconds", type=float, default=1800.0, help="of --search (default 1800)")
    parser.set_defaults(overrides=[])


def run(arguments: argparse.Namespace) -> int:
    """Plans in a process that has as many fake devices as the topology has chips."""
    chip, shape = chips.parse(arguments.topology)
    if arguments.memory is not None:
        chip = dataclasses.replace(chip, memory=arguments.memory * 1e9)
    factors = _factors(arguments.batch_factors)
    config = config_lib.load(arguments.config, arguments.overrides)
    if BEGUN not in os.environ:
        words = ["--config", arguments.config, "--topology", arguments.topology]
        words += ["--seconds", str(arguments.seconds), "--batch-factors", arguments.batch_factors]
        words += ["--compilations", str(arguments.compilations)]
        words += ["--memory", str(arguments.memory)] if arguments.memory is not None else []
        words += ["--search"] if arguments.search else []
        environment = {
            **os.environ,
            **fake_devices.variables(chips.count(shape)),
            BEGUN: str(time.time()),
            "TPU_SKIP_MDS_QUERY": "1",  # libtpu would look for a cloud's metadata
            "TPU_LIBRARY_LOG_LEVEL": "3",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is taken: plans may run beside each other
            "JAX_ENABLE_COMPILATION_CACHE": "false",  # a kept program has no memory analysis
        }
        program = "import sys; from vla_jax.cli import main; sys.exit(main.main())"
        command = [sys.executable, "-c", program, "plan", *words, *arguments.overrides]
        return subprocess.run(command, env=environment).returncode
    from vla_jax.train import plan, search

    try:
        devices = plan.devices(chip, shape)
        if arguments.search:
            limits = dict(factors=factors, seconds=arguments.seconds, note=_note)
            limits |= dict(compilations=arguments.compilations)
            found = search.search(config, chip, devices, **limits)
        else:
            found = plan.make(config, chip, devices)
    except RuntimeError as error:  # XLA's own
        raise plugin.UserError(f"plan: XLA cannot compile this: {str(error)[:600]}") from error
    print(search.text(found, config) if arguments.search else plan.text(found))
    spent = {
        "plan_s": round(time.time() - float(os.environ[BEGUN]), 1),
        "plan_rss_mb": _peak_mb(),
    }
    of = {"config": arguments.config, "topology": arguments.topology}
    print(json.dumps({**of, **found, **spent}), flush=True)
    if arguments.search:
        return 0 if "fits" in found["counts"] else 1
    return 1 if found["fits"] is False else 0


def _factors(text: str) -> list[int]:
    """The whole numbers of --batch-factors."""
    words = text.split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise plugin.UserError(f"--batch-factors: got {text!r}, expected whole numbers, like 1,2,4")
    return sorted({int(word) for word in words})


def _note(row: dict) -> None:
    """Says on stderr what the search has just tried."""
    if row["outcome"] == "to try":
        words = f"{row['candidates']} to choose from; at most {row['at_most']} compilations"
    else:
        mesh = ",".join(map(str, row["mesh"].values()))
        number = f"[{row['compilation']}] " if "compilation" in row else ""
        spent = f" ({row['seconds']} s)" if "seconds" in row else ""
        words = f"{number}mesh {mesh} remat {row['remat']} batch {row['batch_factor']}x: "
        words += f"{row['outcome']}{spent}"
    print(words, file=sys.stderr, flush=True)


def _peak_mb() -> int:
    """MB of memory that this process has held at most.

    Linux hands getrusage's figure on to children: one of a large process would say its parent's.
    """
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        kib = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), kib)
    return round(kib / 1024)
