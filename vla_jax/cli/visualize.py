"""Writes a page to look at recorded episodes: films of every camera, plots, language, metadata.

  vla data visualize runs/demo/demos --out demos.html
  vla data visualize my_lerobot_data --out page.html --episodes 12 --split val
  vla data visualize libero.hdf5 --out page.html --standardizer oxe:libero_hdf5     as a run sees it

One HTML file without anything outside it. A slider moves all cameras of an episode and a cursor
through its plots. The last line on stdout says as JSON what was written.
"""

from __future__ import annotations

import argparse
import json


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add = parser.add_argument
    add("path", help="the dataset's folder")
    add("--out", required=True, help="the HTML file to write")
    add("--split", help="default: train, or the first that the dataset has")
    add("--standardizer", help="TYPE, TYPE:ROW or FILE.py:ROW (default: as it was recorded)")
    add("--episodes", type=int, default=6, help="shown, evenly spaced (default 6)")
    add("--frames", type=int, default=48, help="pictures per camera and episode (default 48)")
    add("--size", type=int, default=240, help="longer side of a picture in pixels (default 240)")


def run(arguments: argparse.Namespace) -> int:
    """Writes the page and prints one JSON line."""
    from vla_jax.data import visualize

    names = ("split", "standardizer", "episodes", "frames", "size")
    settings = {name: getattr(arguments, name) for name in names}
    print(json.dumps(visualize.build(arguments.path, arguments.out, **settings)))
    return 0
