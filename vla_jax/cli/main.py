"""``vla``: one door with a verb for each thing a user does.

A verb is a module of this folder with `configure(parser)` and `run(arguments) -> int | None`; it is
imported only when it is asked for, so that ``vla --help`` answers at once. A mistake of the user's
(`plugin.UserError`) is printed without a traceback and exits with 2.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import os
import platform
import select
import sys
from collections.abc import MutableMapping, Sequence

from vla_jax import plugin

VERBS = {
    "train": ("train", "trains what a config describes; resumes when its folder has a checkpoint"),
    "finetune": ("finetune", "fine-tunes a checkpoint to a robot and its data"),
    "eval": ("evaluate", "runs a checkpoint in closed loop and writes every episode"),
    "ckpt": ("ckpt", "lists, shows, compares, verifies and exports checkpoints"),
    "data collect": ("collect", "writes demonstrations of a scripted expert, as RLDS or LeRobot"),
    "data inspect": ("inspect", "says what a dataset holds; draws a contact sheet"),
    "data dump": ("dump", "writes every field of one recorded episode to an .npz file"),
    "data convert": ("convert", "writes a dataset as array_record RLDS or LeRobot v3.0, resized"),
    "data doctor": ("doctor", "examines robot data before training: what is wrong, what to do"),
    "data visualize": ("visualize", "writes an HTML page: films, plots and words of episodes"),
    "data index": ("index", "makes the indexes that RLDS, tar shards and LLaVA-style JSON need"),
    "data stats": ("stats", "computes a config's statistics and writes them to a file"),
    "data rows": ("rows", "lists the data sets that have a standardizer row, or explains one"),
    "data text-tokenizer": ("text_tokenizer", "trains the SentencePiece model of a config's texts"),
    "import": ("import_checkpoint", "turns another project's checkpoint (Octo's) into one of ours"),
    "plan": ("plan", "says what a config needs on chips that are not there, and whether it fits"),
    "profile": ("profile", "traces train_steps of a config and says what took the time"),
    "report": ("report", "builds the self-contained HTML report and the JSON of a run"),
    "smoke": ("smoke", "shrinks a config, trains 2 + 2 steps on one device and on a fake mesh"),
}

COMPILED = 8 * 2**30  # bytes of compiled programs that are kept


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The argument parser of one verb."""
    name, help_ = VERBS[verb]
    module = importlib.import_module(f"vla_jax.cli.{name}")
    parser = argparse.ArgumentParser(
        prog=f"vla {verb}",
        description=module.__doc__ or help_,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.configure(parser)
    parser.set_defaults(run=module.run)
    return parser


def usage(group: str = "") -> str:
    """What ``vla`` prints without a verb, or ``vla data`` with none of its own."""
    verbs = {verb: help_ for verb, (_, help_) in VERBS.items() if f"{verb} ".startswith(group)}
    width = max(map(len, verbs))
    lines = [f"vla {group}VERB …   (vla {group}VERB --help says more)", ""]
    return "\n".join(lines + [f"  {verb:<{width}}  {help_}" for verb, help_ in verbs.items()])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code (2 for a mistake of the user's)."""
    try:
        code = _door(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _nobody_reads(sys.stdout):
            raise
        # Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what a shell says of a program that SIGPIPE ended


def _door(argv: list[str]) -> int:
    for words in (2, 1):
        verb = " ".join(argv[:words])
        if verb in VERBS:
            return _run(verb, argv[words:])
    group, rest = ("data ", argv[1:]) if argv[:1] == ["data"] else ("", argv)
    if not rest or rest[0] in ("-h", "--help"):
        print(usage(group))
        return 0
    print(plugin.unknown("vla", group + rest[0], VERBS), file=sys.stderr)
    return 2


def _run(verb: str, argv: list[str]) -> int:
    # ``--config.a.b=c`` is a value for argparse, not a flag it should know.
    settings = [word for word in argv if word.startswith("--config.")]
    arguments = parser_of(verb).parse_args([word for word in argv if word not in settings])
    if settings:
        if not hasattr(arguments, "overrides"):
            print(f"vla {verb}: takes no settings, got {settings[0]}", file=sys.stderr)
            return 2
        arguments.overrides += settings
    try:
        if getattr(arguments, "process", None):
            from vla_jax.parallel import launchers

            os.environ.update(launchers.flag(arguments.process))
        keep_compiled(os.environ)
        return arguments.run(arguments) or 0
    except plugin.UserError as error:
        print(f"vla {verb}: {error}", file=sys.stderr)
        return 2


def _nobody_reads(stream) -> bool:
    """Whether `stream` is a pipe whose reader (`head`) has gone, rather than some other pipe."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def keep_compiled(environment: MutableMapping[str, str]) -> None:
    """Lets jax keep compiled programs, so that the same run begins at once the next time.

    In $JAX_COMPILATION_CACHE_DIR, or else below the user's cache folder: of this kind of CPU alone,
    for whose instructions they were made, where homes are shared. The bound on its size makes jax
    take a lock, so that processes share it. Of several on CPUs jax lets only process 0 profit; it
    waits for the others then (`processes.beginning_together`). Variables that are set stay.
    """
    if "JAX_COMPILATION_CACHE_DIR" in environment:
        return
    home = environment.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(home, "vla_jax", f"compiled-{_cpu()}")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return  # a home that cannot be written: every start compiles
    environment["JAX_COMPILATION_CACHE_DIR"] = folder
    environment.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(COMPILED))


def _cpu() -> str:
    """A short name of this machine's instruction set."""
    flags = platform.machine()
    with contextlib.suppress(OSError):
        with open("/proc/cpuinfo") as file:
            flags += next((line for line in file if line.startswith(("flags", "Features"))), "")
    return hashlib.blake2b(flags.encode(), digest_size=4).hexdigest()
