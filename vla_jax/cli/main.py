"""``vla``: one door with a verb for each thing a user does.

A verb is a module of this folder with `configure(parser)` and `run(arguments) -> int | None`; it is
imported only when it is asked for, so that ``vla --help`` answers at once. A mistake of the user's
(`plugin.UserError`) is printed without a traceback and exits with 2.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from vla_jax import plugin

VERBS = {
    "train": ("train", "trains what a config describes; resumes when its folder has a checkpoint"),
    "finetune": ("finetune", "fine-tunes a checkpoint to a robot and its data"),
    "eval": ("evaluate", "runs a checkpoint in closed loop and writes every episode"),
    "data collect": ("collect", "writes demonstrations of a scripted expert as an RLDS dataset"),
    "data inspect": ("inspect", "says what a dataset holds"),
    "data text-tokenizer": ("text_tokenizer", "trains the SentencePiece model of a config's texts"),
    "import": ("import_checkpoint", "turns another project's checkpoint (Octo's) into one of ours"),
    "plan": ("plan", "says what a config needs on chips that are not there, and whether it fits"),
    "report": ("report", "builds the self-contained HTML report and the JSON of a run"),
    "smoke": ("smoke", "shrinks a config, trains 2 + 2 steps on one device and on a fake mesh"),
}


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


def usage() -> str:
    """What ``vla`` prints without a verb."""
    width = max(map(len, VERBS))
    lines = ["vla VERB …   (vla VERB --help says more)", ""]
    return "\n".join(lines + [f"  {verb:<{width}}  {help_}" for verb, (_, help_) in VERBS.items()])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code (2 for a mistake of the user's)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for words in (2, 1):
        verb = " ".join(argv[:words])
        if verb in VERBS:
            return _run(verb, argv[words:])
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    asked = " ".join(argv[:2]) if argv[0] == "data" else argv[0]
    print(plugin.unknown("vla", asked, VERBS), file=sys.stderr)
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
        return arguments.run(arguments) or 0
    except plugin.UserError as error:
        print(f"vla {verb}: {error}", file=sys.stderr)
        return 2
