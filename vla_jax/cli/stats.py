"""Computes the statistics of a config's robot data, prints them, and writes a finished file.

  vla data stats --config configs/debug.py --out stats.json
  vla train --config configs/debug.py --config.normalizer.stats=stats.json …

Training episodes only. Training that names the file computes nothing, and refuses it when its
data are others. Quantiles are exact up to --exact-rows rows of a field and sketched (KLL) above.
The last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np

from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.data import quantiles, statistics, statistics_file

LEAST = 4000  # k of a sketch: smaller ones move q01 from run to run


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--config", required=True, help="the config whose data are measured")
    parser.add_argument("--out", help="the file to write (default: only print)")
    parser.add_argument(
        "--exact-rows",
        type=int,
        default=statistics.EXACT_ROWS,
        help="above so many rows of a field its quantiles are sketched (default 2**28)",
    )
    parser.add_argument(
        "--sketch-size",
        type=int,
        default=quantiles.SKETCH_SIZE,
        help=f"k of the sketches, at least {LEAST} (default {quantiles.SKETCH_SIZE})",
    )
    parser.set_defaults(overrides=[])


def run(arguments: argparse.Namespace) -> int:
    """Prints the table and one JSON line."""
    from vla_jax.data import members
    from vla_jax.models import build
    from vla_jax.train import assemble

    if not LEAST <= arguments.sketch_size < 2**16:
        raise plugin.UserError(
            f"--sketch-size: got {arguments.sketch_size}, expected {LEAST} to {2**16 - 1}"
        )
    config = config_lib.load(arguments.config, arguments.overrides)
    bodies = build.embodiments(config)
    sources = []
    for name, stream in config.streams.items():
        context = assemble.source_context(config, name, bodies, build.action_spaces(bodies), None)
        where = f"streams.{name}.mixture"
        sources += members.build(stream.mixture, context, where)[0].values()
    tables = statistics.gather(sources)
    if not tables:
        raise plugin.UserError(f"{arguments.config}: none of its sources has numbers to measure")
    modes = assemble.modes(config, tables)
    print("measuring", ", ".join(tables), file=sys.stderr, flush=True)
    found = statistics.measure(
        tables, exact_rows=arguments.exact_rows, sketch=arguments.sketch_size
    )
    normalizer = statistics.normalizer(tables, found, mode=modes, clip=config.normalizer.clip)
    print(statistics.report(normalizer))
    content = statistics_file.write(arguments.out, tables, found) if arguments.out else None
    print(json.dumps(_summary(normalizer) | {"path": arguments.out, "content": content}))
    return 0


def _summary(normalizer) -> dict:
    entries = [
        (f"{key} {field}", entry)
        for key, fields in normalizer.entries.items()
        for field, entry in fields.items()
    ]
    return {
        "keys": list(normalizer.keys),
        "degenerate": {
            name: np.flatnonzero(entry.degenerate() & np.asarray(entry.active)).tolist()
            for name, entry in entries
        },
        "clipped": {name: max(entry.clipped) for name, entry in entries},
        "rank_error": max(entry.statistics.rank_error for _, entry in entries),
    }
