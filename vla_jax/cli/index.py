"""Makes the index of an RLDS data set, which training otherwise makes when it begins.

  vla data index /data/droid --workers 8
  vla data index gs://bucket/droid/1.0.0 --index-dir /fast/indexes

Every record is read once and its CRC compared. Shards whose index is fresh are left alone. Broken
episodes are named and noted in the index; the exit code is then 2. The last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("path", help="the data set: a folder, or a URL that fsspec reads")
    parser.add_argument("--index-dir", help="where indexes lie, if not beside the data")
    parser.add_argument("--workers", type=int, help="processes; 0 = this one (default: what pays)")


def run(arguments: argparse.Namespace) -> int:
    """Makes the index, says what it holds, and names what is broken."""
    from vla_jax.data.sources import rlds

    found = rlds.index(arguments.path, index_dir=arguments.index_dir, workers=arguments.workers)
    for fault in found["faults"]:
        print(f"vla data index: {fault}", file=sys.stderr)
    print(json.dumps(found, ensure_ascii=False))
    return 2 if found["faults"] else 0
