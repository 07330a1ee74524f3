"""Examines robot data before they are trained on, and says what is wrong and what to do about it.

  vla data doctor runs/demo/demos                                       data in our own nouns
  vla data doctor bridge_dataset --standardizer oxe:bridge --action-horizon 4
  vla data doctor --config configs/debug.py:data=bridge_dataset         as that run would read them
  vla data doctor my_data --standardizer my_rows.py:kitchen --embodiment my_robot.py \\
      --checkpoint runs/pretrained --dataset-key bridge                 under its statistics

Looked at: statistics against ranges, clipping, masks, dead dims, zero first actions, what actions
are measured from (compared with the measured motion), the gripper's convention, language, gaps in
time, cameras, picture sizes, duplicates. The exit code is 1 where something is an error. The last
line on stdout holds all findings and the raw numbers as JSON.
"""

from __future__ import annotations

import argparse
import json

STREAM = "robot"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add = parser.add_argument
    add("path", nargs="?", help="the dataset's folder (with --config: one of its members)")
    add("--config", help="configs/X.py[:key=value,…]: examine its robot data as it reads them")
    add("--standardizer", default="native", help="TYPE, TYPE:ROW or FILE.py:ROW (default native)")
    add("--split", default="train")
    add(
        "--embodiment", help="a Python file with EMBODIMENT, or a name (default: what the data say)"
    )
    add("--action-space", help="where the embodiment has several")
    add("--action-horizon", type=int, default=8, help="C, actions of a chunk (default 8)")
    add("--checkpoint", help="a run's folder: judge the data by its statistics, not their own")
    add("--dataset-key", help="row of those statistics (default: the dataset's name)")
    parser.set_defaults(overrides=[])  # ``--config.a.b=c``, gathered by main


def run(arguments: argparse.Namespace) -> int:
    """Prints findings and one JSON line; 1 where something is an error."""
    from vla_jax.data import doctor

    cases = from_config(arguments) if arguments.config else {"": from_flags(arguments)}
    told = {"path": arguments.path, "findings": [], "numbers": {}}
    for member, case in cases.items():
        found = doctor.examine(case)
        table = case.table
        title = f"{member + ': ' if member else ''}{table.where} · {case.raw.kind}"
        print(f"{title} · {len(table)} episodes, {len(table.step)} steps\n{doctor.text(found)}\n")
        told["findings"] += [{"member": member or None, **f} for f in found["findings"]]
        told["numbers"] |= {member: found["numbers"]} if member else found["numbers"]
    told |= doctor.counts(told["findings"])
    print(json.dumps(told, ensure_ascii=False, allow_nan=False))
    return 1 if told["errors"] else 0


def from_flags(arguments: argparse.Namespace):
    """The case of one folder, read through a standardizer."""
    from vla_jax import plugin, types
    from vla_jax.data import recordings, robot

    if not arguments.path:
        raise plugin.UserError("give PATH, the dataset's folder, or --config.")
    if arguments.action_horizon < 1:
        raise plugin.UserError(f"--action-horizon: got {arguments.action_horizon}, expected >= 1")
    spec = recordings.standardizer(arguments.standardizer)
    table, read = recordings.recorded(arguments.path, standardizer=spec, split=arguments.split)
    body = _body(arguments.embodiment or table.embodiment)
    context = types.SourceContext(
        name="data",
        stream=STREAM,
        action_horizon=arguments.action_horizon,
        action_size=max(space.size for space in body.action_spaces),
        embodiments=(body,),
        action_spaces=body.action_spaces,
    )
    reading = robot.Reading(
        embodiment=body.name,
        action_space=arguments.action_space,
        holdout=0.0,
        language="optional",
        dataset_key=arguments.dataset_key,
    )
    source = robot.RobotRows(context, table, read, reading)
    given = _statistics(arguments.checkpoint) if arguments.checkpoint else None
    modes = {"action": "q01_q99", "*": "zscore"}  # as config.NormalizerConfig has them
    return _case(arguments.path, arguments.split, spec, source, modes, None, given, "required")


def from_config(arguments: argparse.Namespace) -> dict:
    """Member -> the case of each robot member of a config whose path is PATH (None: of all)."""
    import dataclasses
    import os

    from vla_jax import config as config_lib
    from vla_jax import plugin
    from vla_jax.data import members, statistics
    from vla_jax.models import build
    from vla_jax.train import assemble

    config = config_lib.load(arguments.config, arguments.overrides)
    bodies = build.embodiments(config)
    spaces = build.action_spaces(bodies)
    given = None
    if arguments.checkpoint or config.normalizer.stats == "checkpoint":
        given = _statistics(arguments.checkpoint or config.init_from.checkpoint)
    cases, paths = {}, []
    for stream, settings in config.streams.items():
        context = assemble.source_context(config, stream, bodies, spaces, None)
        for name, member in members.expand(f"streams.{stream}.mixture", settings.mixture).items():
            spec = dict(member.source)
            if not hasattr(plugin.module("data.sources", spec["type"]), "recorded"):
                continue
            paths.append(spec["path"])
            if arguments.path and os.path.realpath(arguments.path) != os.path.realpath(
                spec["path"]
            ):
                continue
            asked = spec.get("language", "required")
            # An absent instruction shall be a finding, not a refusal; pictures are judged as they
            # were recorded.
            spec = {k: v for k, v in spec.items() if k not in ("cache", "access")}
            source = plugin.build(
                "data.sources",
                {**spec, "language": "optional"},
                dataclasses.replace(context, name=name),
            )
            cases[f"{stream}.{name}"] = _case(
                spec["path"],
                spec.get("split", "train"),
                spec.get("standardizer", "native"),
                source,
                assemble.modes(config, statistics.gather([source])),
                config.normalizer.clip,
                given,
                asked,
            )
    if not cases:
        where = f"{arguments.config}: robot data at"
        raise plugin.UserError(plugin.unknown(where, str(arguments.path), paths))
    return cases


def _case(path, split, standardizer, source, modes, clip, given, language):
    from vla_jax import plugin, types
    from vla_jax.data import doctor, looks, recordings, statistics

    own = statistics.compute([source], mode=modes, clip=clip)
    bad = source.reading.bad_samples  # what the run leaves out is left out here
    raw = recordings.raw(path, split, bad)
    spec = dict(type=standardizer) if isinstance(standardizer, str) else dict(standardizer)
    made = plugin.build(
        "data.standardizers", spec, types.SourceContext(name=str(path), stream=STREAM)
    )
    names = {
        n if n.startswith(("steps/", "episode_metadata/")) else f"steps/{n}": n for n in raw.fields
    }
    others = {}
    for name, count in raw.splits.items():
        if count and name != split.partition("[")[0]:
            how = dict(standardizer=standardizer, split=name, bad_samples=bad)
            table, read = recordings.recorded(path, **how)
            others[name] = table, looks.decoded(read, source.context.resize)  # as the source does
    return doctor.Case(
        raw=raw,
        source=source,
        normalizer=given or own,
        own=own,
        given=given is not None,
        cameras={view: names[column] for view, column in made.views(names).items()},
        language=language,
        others=others,
    )


def _body(embodiment: str):
    from vla_jax import plugin

    if embodiment.endswith(".py"):
        return plugin.load_attribute(embodiment, "EMBODIMENT")
    return plugin.module("embodiments", embodiment).EMBODIMENT


def _statistics(checkpoint: str):
    from vla_jax import plugin
    from vla_jax.codecs import normalizer
    from vla_jax.train import checkpoint as checkpoints

    stored = checkpoints.load(checkpoint).meta.assets.normalizer
    if not stored:
        raise plugin.UserError(f"{checkpoint}: the checkpoint has no statistics")
    return normalizer.Normalizer.from_json(stored)
