"""Says what a dataset holds: splits, cameras, fields, ranges, instructions.

  vla data inspect runs/demo/demos

Every record is read once; a corrupt one is an error. The last line on stdout is the same as JSON.
"""

from __future__ import annotations

import argparse
import json


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("path", help="the dataset's folder")


def run(arguments: argparse.Namespace) -> int:
    """Prints the description and one JSON line."""
    from vla_jax.data import inspect

    found = inspect.summarize(arguments.path)
    print(inspect.text(found))
    print(json.dumps(found, ensure_ascii=False))
    return 0
