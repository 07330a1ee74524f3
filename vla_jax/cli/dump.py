"""Writes every field of one recorded episode to an .npz file, decoded, as the source names it.

  vla data dump runs/demo/demos --episode 0 --out episode.npz
  vla data dump my_lerobot_data --episode 12 --out episode.npz --split train

Nested names are joined by "/", LeRobot's dots are kept. The first axis of a step's field is the
step; pictures are uint8 [T, height, width, 3], texts str. The last line on stdout says as JSON what
was written. The file is there whole or not at all.
"""

from __future__ import annotations

import argparse
import json


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("path", help="the dataset's folder")
    parser.add_argument("--episode", required=True, help="its number, from 0, or its id")
    parser.add_argument("--out", required=True, help="the .npz file to write")
    parser.add_argument("--split", help="default: train, or the first that the dataset has")


def run(arguments: argparse.Namespace) -> int:
    """Writes the file; prints its fields and one JSON line."""
    from vla_jax.data import dump

    found = dump.dump(arguments.path, arguments.episode, arguments.out, arguments.split)
    for name, (dtype, shape) in found["fields"].items():
        print(f"{name}: {dtype} {shape}")
    print(json.dumps(found, ensure_ascii=False))
    return 0
