"""Runs checkpoints in closed loop on the card scene and writes every episode.

  vla eval --config configs/demo_eval.py:split=0,out=runs/demo --out runs/demo [--config.workers=4]
  vla eval --checkpoint runs/demo/cofinetuned --sets A=20,B=20 --split 0
  vla eval --follow /mnt/shared/runs/demo --out scores --sets A=20,B=20

Writes episodes.jsonl, pointing.json, eval.json and rollouts.npz to --out. The last line on stdout
is the summary as JSON. The second form looks at development scenes: those of the report are for the
report alone. The third does so with each checkpoint of a run as it appears, on any machine that can
read its folder: a line of JSON for each, on stdout and in OUT/scores.jsonl, until that of the run's
last train_step or --until. Begun again, it goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os

from vla_jax import config as config_lib
from vla_jax import plugin, storage


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--config", help="configs/X.py[:key=value,…] of an evaluation")
    parser.add_argument("--out", help="folder for the results (default: CHECKPOINT/eval)")
    one = parser.add_argument_group("instead of --config")
    one.add_argument("--checkpoint", help="the folder of one run")
    one.add_argument("--follow", metavar="DIR", help="a run's folder: each new checkpoint")
    one.add_argument("--until", type=int, metavar="STEP", help="follow no further than this")
    one.add_argument("--poll", type=float, default=30.0, help="seconds between looks (--follow)")
    one.add_argument("--sets", default="A=20,B=20", help="SET=EPISODES,… of A, B, C, B_among_A")
    one.add_argument("--split", type=int, default=0, help="deals the names into A, B and C")
    one.add_argument("--workers", type=int, default=2, help="processes")
    one.add_argument("--keep", help="write every episode as a data set: lerobot or rlds")
    one.add_argument("--record", type=int, default=0, help="episodes of the first set to film")
    parser.set_defaults(overrides=[])  # ``--config.a.b=c``, gathered by main


def run(arguments: argparse.Namespace) -> int:
    """Evaluates; prints a table to stderr and the summary as one JSON line."""
    os.environ.setdefault("MUJOCO_GL", "osmesa")  # before the first import of mujoco
    from vla_jax.evals import rollouts

    given = [name for name in ("config", "checkpoint", "follow") if getattr(arguments, name)]
    if len(given) != 1:
        raise plugin.UserError(
            "give either --config (several arms), --checkpoint (one run) or --follow (a run that "
            f"goes on); got {', '.join(f'--{name}' for name in given) or 'none'}."
        )
    if arguments.follow:
        return follow(arguments)
    if arguments.config:
        path, _, arg = arguments.config.partition(":")
        tree = plugin.load_attribute(path, "get_config")(arg)
    else:
        tree = quick(arguments, rollouts.SETS)
    out = arguments.out or (arguments.checkpoint and storage.join(arguments.checkpoint, "eval"))
    if not out:
        raise plugin.UserError("--out is missing: the folder for episodes.jsonl.")
    # The default environment stands there, so that a setting of it changes that one alone.
    tree = config_lib.override({"env": rollouts.CARDS, **tree}, arguments.overrides)
    summary = rollouts.evaluate(config_lib.parse(rollouts.EvalConfig, tree), out)
    print(json.dumps(summary | {"out": str(out)}))
    return 0


def follow(arguments: argparse.Namespace) -> int:
    """Scores a run's checkpoints as they come; prints a JSON line for each, and a last one."""
    from vla_jax.evals import follow as follower
    from vla_jax.evals import rollouts

    if not arguments.out:
        raise plugin.UserError("--out is missing: the folder for scores, outside the run's own.")
    if arguments.poll <= 0:
        raise plugin.UserError(f"--poll: got {arguments.poll}, expected seconds above 0")
    arguments.checkpoint = arguments.follow
    tree = {"env": rollouts.CARDS, **quick(arguments, rollouts.SETS)}
    config = config_lib.parse(rollouts.EvalConfig, config_lib.override(tree, arguments.overrides))
    (arm,) = config.arms

    def of(checkpoint: str) -> rollouts.EvalConfig:
        arms = {arm: dataclasses.replace(config.arms[arm], checkpoint=checkpoint)}
        return dataclasses.replace(config, arms=arms)

    rollouts.check(of("."))
    summary = follower.follow(
        arguments.follow,
        arguments.out,
        lambda checkpoint, out: rollouts.evaluate(of(str(checkpoint)), out),
        settings=dataclasses.asdict(of("")) | {"workers": None},
        until=arguments.until,
        poll=arguments.poll,
        say=lambda line: print(line, flush=True),
    )
    print(json.dumps({"follow": arguments.follow, **summary, "out": arguments.out}), flush=True)
    return 0


def quick(arguments: argparse.Namespace, sets: dict) -> dict:
    """The evaluation of one checkpoint on development scenes, as a table of settings."""
    episodes = {}
    for part in arguments.sets.split(","):
        name, _, count = part.partition("=")
        if name not in sets:
            raise plugin.UserError(plugin.unknown("--sets", name, sets))
        if not count.isdecimal():
            raise plugin.UserError(f"--sets: got {part!r}, expected {name}=EPISODES")
        episodes[name] = int(count)
    arm = storage.name(storage.absolute(arguments.checkpoint))
    return dict(
        split=arguments.split,
        sets=sets,
        arms={arm: dict(checkpoint=arguments.checkpoint, sets=episodes)},
        seed_base=0,  # rollouts.DEV_SEEDS
        workers=arguments.workers,
        record=arguments.record,
        keep=arguments.keep,
        record_arm=arm,
        record_set=next(iter(episodes)),
    )
