"""Writes recorded robot episodes, of any format, as array_record RLDS or as LeRobot v3.0.

  vla data convert /data/bridge --out bridge_lerobot --to lerobot --hz 5 --resize 256x256
  vla data convert my_lerobot_data --out my_rlds --to rlds --workers 8
  vla data convert /data/bridge --out bridge_native --to rlds --standardizer oxe:bridge

Sources: RLDS/TFDS (tfrecord or array_record), LeRobot v2.0 to v3.0, HDF5 of robomimic, LIBERO and
ALOHA. Image-text data (tar shards, LLaVA, TFDS captions) are no episodes and are refused.

Fields are written as recorded, under the source's names (LeRobot's have dots for slashes), so that
a standardizer row for the source reads the RLDS, too; with --standardizer they are in our nouns and
the result is read with standardizer="native", pictures upright where the row says that they were
stored otherwise (turned, bgr). JPEG and video lose a little, --pictures png does
not. From RLDS to RLDS, as recorded and not resized, the pictures' own bytes are kept; else RLDS has
JPEG of quality 95 (also of PNGs and arrays in HDF5 and LeRobot), LeRobot h264. Killed or
interrupted, the same command goes on where it was; --out is there whole or not at all. The last
line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add = parser.add_argument
    add("path", help="robot episodes: a folder of RLDS, LeRobot or HDF5, or an HDF5 file")
    add("--out", required=True, help="the new dataset's folder, new or empty")
    add("--to", required=True, help="rlds (array_record) or lerobot (v3.0)")
    add("--split", help="one split or slice, train[:10] (default: all; train where they overlap)")
    add("--standardizer", help="TYPE, TYPE:ROW or FILE.py:ROW, for the data in our nouns")
    add("--resize", help="HEIGHTxWIDTH of all pictures, e.g. 256x256")
    add("--method", default="area", help="of the resize: area, or tensorflow (Lanczos)")
    add("--pictures", help="rlds: jpeg, png; lerobot: h264 (default), av1, png")
    add("--hz", type=float, help="recorded steps per second, where the source is silent (lerobot)")
    add("--task", help="the text field with the instruction, where several may be it (lerobot)")
    add("--without", nargs="*", default=(), metavar="FIELD", help="fields to leave out")
    add("--bad-episodes", default="error", help="error, or skip: leave out and count")
    add("--name", help="the new dataset's name (default: the folder's)")
    add("--workers", type=int, help="processes; 0: this one (default: the cores, at most 8)")


def run(arguments: argparse.Namespace) -> int:
    """Converts, says what was left out, and prints what was written as one JSON line."""
    from vla_jax import plugin
    from vla_jax.data import convert

    if arguments.workers is not None and arguments.workers < 0:
        raise plugin.UserError(f"--workers: got {arguments.workers}, expected 0 or more")
    found = convert.convert(
        arguments.path,
        arguments.out,
        to=arguments.to,
        split=arguments.split,
        name=arguments.name,
        workers=arguments.workers,
        standardizer=arguments.standardizer,
        without=tuple(arguments.without),
        resize=_size(arguments.resize),
        method=arguments.method,
        pictures=arguments.pictures,
        task=arguments.task,
        control_hz=arguments.hz,
        bad_episodes=arguments.bad_episodes,
    )
    for message in found["skipped"]:
        print(f"vla data convert: left out: {message}", file=sys.stderr)
    if found["other_splits"]:
        print(
            f"vla data convert: splits share episodes, so that {', '.join(found['splits'])} "
            f"alone was written; --split names another: {', '.join(found['other_splits'])}",
            file=sys.stderr,
        )
    print(json.dumps(found, ensure_ascii=False))
    return 0


def _size(text: str | None) -> tuple[int, int] | None:
    from vla_jax import plugin

    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise plugin.UserError(f"--resize: got {text!r}, expected HEIGHTxWIDTH, e.g. 256x256")
    return int(sides[0]), int(sides[1])
