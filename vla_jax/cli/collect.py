"""Writes demonstrations of the scripted expert on the card scene as RLDS or LeRobot v3.0.

  vla data collect --out runs/demo/demos --split 0 --names a --episodes 1000 --seed 0
  vla data collect --out demos --embodiment sawyer_cards_xyz --episodes 20   two views, 3 numbers
  vla data collect --out demos --episodes 20 --format lerobot                videos, every step

The last line on stdout says as JSON what was written.
"""

from __future__ import annotations

import argparse
import json
import os

from vla_jax import plugin


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--out", required=True, help="the dataset's folder, new or empty")
    parser.add_argument("--split", type=int, default=0, help="deals the names into A, B and C")
    parser.add_argument("--names", default="a", help="letters of the names asked for: a, ab, …")
    parser.add_argument("--others", help="letters of those that lie beside (default: --names)")
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="draws scenes and noise")
    parser.add_argument("--noise", type=float, default=0.5, help="fraction of shaken episodes")
    parser.add_argument("--env", default="cards", help="a file of envs/, or a dotted module")
    parser.add_argument("--embodiment", default="sawyer_cards", help="a file of embodiments/")
    parser.add_argument("--archive", default="google", help="the artist of the cards")
    parser.add_argument("--image-size", type=int, default=96, help="pixels")
    parser.add_argument("--format", default="rlds", help="a file of data/writers/: rlds, lerobot")
    parser.add_argument("--workers", type=int, default=2, help="processes; 0: in this one")


def run(arguments: argparse.Namespace) -> int:
    """Collects and prints the counts as one JSON line."""
    os.environ.setdefault("MUJOCO_GL", "osmesa")  # before the first import of mujoco
    from vla_jax.data.sources import _emoji
    from vla_jax.evals import collect, rollouts

    names = _emoji.split_names(_emoji.card_names(rollouts.ASSETS), arguments.split)

    def chosen(flag: str, letters: str) -> list[str]:
        if not letters or set(letters) - set("abc"):
            raise plugin.UserError(f"{flag}: got {letters!r}, expected letters of a, b, c")
        return [name for letter in letters for name in getattr(names, letter)]

    counts = collect.collect(
        arguments.out,
        names=chosen("--names", arguments.names),
        others=chosen("--others", arguments.others or arguments.names),
        pictures=rollouts.card_pictures(rollouts.ASSETS, arguments.archive),
        episodes=arguments.episodes,
        seed=arguments.seed,
        noise=arguments.noise,
        env=arguments.env,
        embodiment=arguments.embodiment,
        image_size=arguments.image_size,
        format=arguments.format,
        workers=arguments.workers,
    )
    print(json.dumps(counts | {"out": arguments.out}))
    return 0
