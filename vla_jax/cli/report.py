"""Builds report.html (self-contained) and report.json from a run's folder.

  vla report --run runs/demo

Reads what `vla eval` and the trainings left there: episodes.jsonl, pointing.json, eval.json,
rollouts.npz, stages.json, */metrics.jsonl, */batch_*.png, */visibility_*.png.
"""

from __future__ import annotations

import argparse
import json
import os


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--run", dest="folder", required=True, help="the folder, e.g. runs/demo")


def run(arguments: argparse.Namespace) -> int:
    """Writes both files; the last line on stdout says where, and which goals were missed."""
    os.environ.setdefault("MUJOCO_GL", "osmesa")  # before the first import of mujoco
    from vla_jax.evals import report

    print(json.dumps(report.build(arguments.folder)))
    return 0
