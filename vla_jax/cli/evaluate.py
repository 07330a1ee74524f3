"""Runs checkpoints in closed loop on the card scene and writes every episode.

    vla eval --config configs/demo_eval.py:split=0,out=runs/demo --out runs/demo [--config.workers=4]
    vla eval --checkpoint runs/demo/cofinetuned --sets A=20,B=20 --split 0

Writes episodes.jsonl, pointing.json, eval.json and rollouts.npz to --out. The last line on stdout is
the summary as JSON. The second form looks at development seeds unless told otherwise.
"""

from __future__ import annotations

import json

from vla_jax import config as config_lib
from vla_jax import plugin

SETS = {
    "A": dict(targets="a", others="a"),
    "B": dict(targets="b", others="b"),
    "C": dict(targets="c", others="c"),
    "B_among_A": dict(targets="b", others="a"),
}


def configure(parser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("--config", help="configs/X.py[:k=v,…] of an EvalConfig")
    parser.add_argument("--checkpoint", help="the folder of one run, instead of --config")
    parser.add_argument("--sets", default="A=20,B=20", help="SET=EPISODES,… with --checkpoint")
    parser.add_argument("--split", type=int, default=0, help="deals the names, with --checkpoint")
    parser.add_argument("--workers", type=int, default=2, help="processes, with --checkpoint")
    parser.add_argument("--record", type=int, default=0, help="episodes to film, with --checkpoint")
    parser.add_argument(
        "--report-seeds", action="store_true", help="the report's scenes, with --checkpoint"
    )
    parser.add_argument("--out", help="folder of the results (default: CHECKPOINT/eval)")
    parser.add_argument(
        "overrides", nargs="*", help=argparse_help(), metavar="--config.KEY=VALUE", default=[]
    )


def argparse_help() -> str:
    """What the overrides are."""
    return "settings laid over --config"
