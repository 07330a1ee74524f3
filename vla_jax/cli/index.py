"""Makes the indexes that data are read through, which training otherwise makes when it begins.

  vla data index /data/droid --workers 8                    RLDS
  vla data index gs://bucket/droid/1.0.0 --index-dir /fast/indexes
  vla data index '/data/web/{00000..00127}.tar'             img2dataset's shards
  vla data index /data/llava_v1_5_mix665k.json              questions about pictures

Every record is read once and its CRC compared; of tars the headers are. What has a fresh index is
left alone. Broken episodes and files are named; the exit code is then 2. The last line on stdout is
JSON.
"""

from __future__ import annotations

import argparse
import json
import sys


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add = parser.add_argument
    add("path", help="the data set: a folder, file or pattern, or a URL that fsspec reads")
    add("--index-dir", help="where indexes lie, if not beside the data")
    add("--workers", type=int, help="processes; 0 = this one (default: what pays)")


def run(arguments: argparse.Namespace) -> int:
    """Makes the index, says what it holds, and names what is broken."""
    from vla_jax.data import indexes

    found = indexes.index(arguments.path, index_dir=arguments.index_dir, workers=arguments.workers)
    if "note" in found:
        print(f"{found['path']}: {found['note']}")
    for fault in found["faults"]:
        print(f"vla data index: {fault}", file=sys.stderr)
    print(json.dumps(found, ensure_ascii=False))
    return 2 if found["faults"] else 0
