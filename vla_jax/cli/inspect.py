"""Says what a dataset holds: its format, splits, cameras, fields, ranges and instructions.

  vla data inspect runs/demo/demos
  vla data inspect my_lerobot_data --sheet sheet.png      and a contact sheet of its pictures
  vla data inspect libero.hdf5 --sheet sheet.png --standardizer oxe:libero_hdf5     as a run sees it
  vla data inspect web/000.tar                            tars, TFDS captions, LLaVA-style JSON, too

The numbers of every episode are read once; a corrupt record is an error. The last line on stdout is
the same as JSON (with --json, the only one).
"""

from __future__ import annotations

import argparse
import json
import sys


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add = parser.add_argument
    add("path", help="the dataset's folder, a tar, or a JSON file")
    add("--json", action="store_true", help="print the JSON alone")
    add("--episodes", type=int, help="read only so many episodes of each split")
    add("--sheet", help="write a contact sheet: a row per episode, a column per time")
    add("--split", help="of the contact sheet (default: train, or the first)")
    add("--standardizer", help="TYPE, TYPE:ROW or FILE.py:ROW (default: as it was recorded)")
    add("--rows", type=int, default=6, help="episodes on the contact sheet (default 6)")
    add("--columns", type=int, default=8, help="times on the contact sheet (default 8)")


def run(arguments: argparse.Namespace) -> int:
    """Prints the description and one JSON line."""
    from vla_jax import plugin, storage
    from vla_jax.data import inspect

    for flag in ("episodes", "rows", "columns"):
        value = getattr(arguments, flag)
        if value is not None and value < 1:
            raise plugin.UserError(f"--{flag}: got {value}, expected at least 1")
    read_by = arguments.standardizer
    found = inspect.summarize(arguments.path, arguments.episodes, read_by)
    if arguments.sheet:
        out = arguments.sheet
        storage.check_parent("--sheet", out)
        size = (arguments.rows, arguments.columns)
        picture = inspect.sheet(arguments.path, arguments.split, *size, read_by)
        write(picture, out)
        found["sheet"] = out
        print(f"wrote {out}, {picture.width} x {picture.height} px", file=sys.stderr)
    if not arguments.json:
        print(inspect.text(found))
    print(json.dumps(found, ensure_ascii=False))
    return 0


def write(picture, out: str) -> None:
    """Writes a picture whole or not at all; UserError where that cannot be."""
    from vla_jax import plugin, storage

    try:
        storage.write(out, lambda file: picture.save(file, "PNG"))
    except OSError as error:
        raise plugin.UserError(f"--sheet: {out}: {error}") from error
