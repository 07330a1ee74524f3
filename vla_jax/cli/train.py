"""Trains what a config describes; goes on where its folder's last checkpoint stopped.

vla train --config configs/debug.py:data=../shared/fixtures/bridge_dataset --workdir runs/debug
vla train --config configs/debug.py --dry-run          the resolved config, the data, the parameters
vla train --config configs/debug.py --config.steps=20  any setting, by its path

Ctrl-C and SIGTERM save before they stop; the exit code is 75 then: the same command goes on. When
one of several processes is gone, the others name it and end with exit code 76; when one ends by an
error of its own, all end with its code. What launchers make of it stands in parallel/endings.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json

from vla_jax import config as config_lib
from vla_jax import plugin, storage
from vla_jax.parallel import endings

PROCESS = (
    "process I of N, and where process 0 listens; else SLURM, JobSet, mpirun or Cloud TPU say it"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--config", required=True, help="configs/X.py[:key=value,…]")
    parser.add_argument("--workdir", help="where checkpoints, metrics and pictures go")
    parser.add_argument("--dry-run", action="store_true", help="build everything, train nothing")
    parser.add_argument(
        "--verify-determinism",
        action="store_true",
        help="three train_steps twice, compared bit for bit; keeps nothing (exit code 1: differ)",
    )
    parser.add_argument(
        "--debug-nans",
        action="store_true",
        help="stop inside the operation that makes the first NaN (slow)",
    )
    parser.add_argument("--process", metavar="I/N@HOST:PORT", help=PROCESS)
    parser.set_defaults(overrides=[])  # ``--config.a.b=c``, gathered by main


def run(arguments: argparse.Namespace) -> int:
    """Assembles the run and trains, or prints what it would be."""
    config = config_lib.load(arguments.config, arguments.overrides)
    # After the arguments are known to be good: importing jax and Orbax takes seconds.
    from vla_jax.parallel import processes

    with processes.together():
        return train(config, arguments)


def train(config: config_lib.TrainConfig, arguments: argparse.Namespace) -> int:
    """The exit code of the run, in one of its processes."""
    import jax

    from vla_jax.evals import pictures
    from vla_jax.parallel import processes
    from vla_jax.train import agree, assemble, determinism, meta

    if arguments.debug_nans:
        jax.config.update("jax_debug_nans", True)
    if arguments.workdir:
        meta.place(arguments.workdir)
    agree.on_start(config, arguments.workdir)
    assembly = assemble.assemble(config, arguments.workdir)
    if arguments.dry_run:
        print(config_lib.to_json(config))
        print(describe(assembly))
        return 0
    if arguments.verify_determinism:
        verdict = determinism.verify(assembly)
        if processes.first():
            print(json.dumps(verdict), flush=True)
        return 0 if verdict["bitwise_equal"] else 1
    if not arguments.workdir:
        raise plugin.UserError("--workdir is missing: the folder for checkpoints and metrics.")

    def ready():
        if processes.first():
            pictures.write(assembly, arguments.workdir)
            text = json.dumps(json.loads(config_lib.to_json(config)), indent=1)
            storage.write(storage.join(arguments.workdir, "config.json"), text)

    if processes.first():
        print(assembly.tables(), flush=True)
    state = assemble.train(assembly, arguments.workdir, ready=ready)
    return endings.PREEMPTED if int(state.step) < config.steps else 0


def describe(assembly) -> str:
    """The mixtures, what each stream's tokens see, and every parameter where it lies, as text."""
    from vla_jax.nn import visibility

    rules = visibility.make(assembly.config.model.rules)
    parts = [assembly.tables()]
    for name in assembly.config.streams:
        parts.append(f"stream {name}\n{visibility.picture(assembly.network.layout(name), rules)}")
    return "\n\n".join([*parts, _parameters(assembly)])


def _parameters(assembly) -> str:
    """The table of parameters on the config's mesh, or on one device where that is not here."""
    import jax

    from vla_jax.models import synthetic
    from vla_jax.nn import attention_kernels
    from vla_jax.parallel import mesh as meshes
    from vla_jax.train import start

    config, said, axes = assembly.config, "", dataclasses.asdict(assembly.config.mesh)
    trunk = dict(config.model.trunk)
    if "attention" in trunk:  # parameters are the same by a kernel that this machine lacks
        trunk["attention"] = attention_kernels.plain(trunk["attention"])
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, trunk=trunk))
    try:
        mesh = meshes.make(axes)
    except plugin.UserError as error:
        sizes = list(axes.values())
        if 0 in sizes or min(sizes) < -1 or sizes.count(-1) > 1:
            raise  # a mesh of no machine
        mesh = meshes.make(devices=jax.devices()[:1])
        said = f"\nas on ONE device, since this machine has another number: {error}"
        said += "; `vla plan --topology …` has the bytes per device of its mesh"
    examples = synthetic.examples(config, assembly.vocabulary_size)
    with meshes.use(mesh):
        return start.plan(config, assembly.network, examples, mesh).report() + said
