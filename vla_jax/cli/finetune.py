"""Fine-tunes a checkpoint to a robot and its data, then says how well it replays them.

  vla finetune --checkpoint runs/demo/cofinetuned --data demos --embodiment sawyer_cards_xyz \\
      --stats recompute --workdir runs/xyz
  vla finetune --checkpoint … --data bridge --standardizer oxe:bridge --embodiment my_robot.py \\
      --views primary --language optional --stats recompute --mode head_only --workdir runs/mine

The data are read in place, RLDS or LeRobot; which of them is found out. The embodiment is a Python
file with EMBODIMENT and its action spaces, like those in embodiments/, or the name of one of those.
Data that `vla data collect` wrote are in our nouns; others name their standardizer, TYPE:ROW or
FILE.py:ROW (`vla data doctor` says whether it fits). What the checkpoint has is loaded, what the
robot adds begins fresh; both are printed. Any setting of the derived config can be changed by its
path: --config.optimizer.ema=0.99. The last line on stdout holds the open-loop errors per action
dimension as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json

from vla_jax import config as config_lib
from vla_jax.cli import train
from vla_jax.parallel import endings

REPLAYED = 10  # episodes of each part, for the error at the end


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add = parser.add_argument
    add("--checkpoint", required=True, help="a run's folder")
    add("--data", required=True, help="the robot's episodes")
    add("--embodiment", required=True, help="a Python file with EMBODIMENT, or a name")
    add(
        "--stats",
        required=True,
        metavar="checkpoint|recompute|FILE",
        help="normalize by the checkpoint's statistics, by those of these data, or by a FILE that "
        "`vla data stats` has measured on these data",
    )
    add("--workdir", help="where the new checkpoint goes")
    add("--standardizer", default="native", help="TYPE, TYPE:ROW or FILE.py:ROW (default native)")
    add("--mode", default="full", choices=("full", "head_only"), help="what is trained")
    add("--steps", type=int, default=1000, help="train_steps")
    add("--batch-size", type=int, default=32)
    add("--lr", type=float, default=3e-4)
    add("--action-head", help="regression, flow, diffusion, … (default: the checkpoint's type)")
    add(
        "--action-space",
        help="the one to train in, of an embodiment with several; data in another are converted",
    )
    add("--action-horizon", type=int, help="C (default: the checkpoint's)")
    add("--window", type=int, help="W (default: the checkpoint's)")
    add("--views", help="view,view,… (default: all of the embodiment)")
    add("--dataset-key", help="the statistics' name (default: the dataset's)")
    add("--episodes", type=int, help="only the first so many training episodes")
    add("--holdout", type=float, default=0.1, help="share of episodes kept for validation")
    add("--language", default="required", choices=("required", "optional"))
    add("--seed", type=int, default=0)
    add("--dry-run", action="store_true", help="print config and parameters, train nothing")
    add("--process", metavar="I/N@HOST:PORT", help=train.PROCESS)
    parser.set_defaults(overrides=[])  # ``--config.a.b=c``, gathered by main


def run(arguments: argparse.Namespace) -> int:
    """Derives the config, trains, replays; prints tables and one JSON line."""
    # After the arguments are known to be good: importing jax and Orbax takes seconds.
    from vla_jax.parallel import processes

    with processes.together():
        return finetune(arguments)


def finetune(arguments: argparse.Namespace) -> int:
    """The exit code, in one of the processes."""
    from vla_jax import plugin, storage
    from vla_jax.evals import pictures
    from vla_jax.models import contract
    from vla_jax.parallel import processes
    from vla_jax.train import agree, assemble, meta
    from vla_jax.train import finetune as derive

    if arguments.workdir:
        meta.place(arguments.workdir)
    fields = {field.name for field in dataclasses.fields(derive.Request)}
    given = {name: value for name, value in vars(arguments).items() if name in fields}
    if arguments.views is not None:
        given["views"] = tuple(filter(None, arguments.views.split(",")))
    prepared = derive.prepare(derive.Request(**given), arguments.overrides)
    config = prepared.config
    if arguments.dry_run:
        print(config_lib.to_json(config))
        print(prepared.report)
        return 0
    if not arguments.workdir:
        raise plugin.UserError("--workdir is missing: the folder for the new checkpoint.")
    agree.on_start(config, arguments.workdir)
    assembly = assemble.assemble(config, arguments.workdir)

    def ready():
        if processes.first():
            pictures.write(assembly, arguments.workdir)
            written = {
                "config.json": config_lib.to_json(config),
                contract.FILE: json.dumps(expected(assembly), indent=1),
            }
            for name, text in written.items():
                storage.write(storage.join(arguments.workdir, name), text)

    if processes.first():
        print(prepared.report)
        print(assembly.tables(), flush=True)
    state = assemble.train(assembly, arguments.workdir, ready=ready)
    if int(state.step) < config.steps:
        return endings.PREEMPTED
    found = replay(config, arguments.workdir)
    if processes.first():
        print(json.dumps({"workdir": arguments.workdir, **found}))
    return 0


def expected(assembly) -> dict:
    """What a policy of the fine-tuned checkpoint will expect and answer, for contract.json."""
    from vla_jax.models import contract
    from vla_jax.train import finetune

    return contract.of(
        assembly.config,
        finetune.STREAM,
        normalizer=assembly.normalizer,
        spaces=assembly.spaces,
        text_tokenizer=assembly.text_tokenizer,
    )


def replay(config: config_lib.TrainConfig, workdir: str) -> dict:
    """{"train": …, "held_out": … or None}: open-loop errors of the folder, printed as tables.

    Every process does it by itself: one that ended sooner would be missed by the others.
    """
    from vla_jax.evals import open_loop
    from vla_jax.models import specs
    from vla_jax.parallel import processes
    from vla_jax.train import finetune

    stream = config.streams[finetune.STREAM]
    source = stream.mixture[finetune.MEMBER]["source"]
    heads = [config.model.heads[name] for name in stream.heads]
    found: dict = {"held_out": None}
    for part in ("train", "held_out") if stream.validation else ("train",):
        limit = source["episodes"] if part == "train" else None
        result = open_loop.open_loop(
            workdir,
            source["path"],
            standardizer=source["standardizer"],
            dataset=source["dataset_key"],
            action_space=next(head["action_space"] for head in heads if specs.acts(head)),
            body=finetune.find_body(config.embodiments[0])[1] if source.get("convert") else None,
            holdout=source["holdout"],
            holdout_seed=source.get("holdout_seed", 0),
            train=part == "train",
            episodes=min(limit or REPLAYED, REPLAYED),
        )
        if processes.first():
            print(f"open-loop error, {part} episodes\n{result.table()}", flush=True)
        found[part] = result.summary()
    return found
