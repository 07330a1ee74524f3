"""Turns another project's checkpoint into one of ours, that evaluates, fine-tunes and serves.

  vla import octo octo-small-1.5 --text-tokenizer t5-base/spiece.model --out runs/octo
  vla import octo CKPT --step 300000 --text-tokenizer t5-base/tokenizer.json --out DIR
  vla import crossformer CKPT --out DIR

Prints which parameters were mapped, which the checkpoint lacks and which went unused, and refuses
to import a part of them unless --partial says so. The last line on stdout is what the policy
expects, as JSON: picture sizes, words, statistics, actions. The folder keeps it, as contract.json
and in the checkpoint's provenance; Policy.contract says the same. Nothing is fetched from the
network; a T5's tokenizer comes from a local spiece.model or tokenizer.json. CrossFormer has no
tokenizer: its policies are given embeddings of sentences.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import pathlib
import shutil

from vla_jax import plugin, storage

KINDS = ("octo", "crossformer")  # each a file of models/importers


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("kind", help=f"whose checkpoint it is: {' or '.join(KINDS)}")
    parser.add_argument("checkpoint", help="its folder")
    parser.add_argument("--out", required=True, help="a new folder for ours")
    parser.add_argument("--step", type=int, help="of the checkpoint (default: the newest)")
    parser.add_argument("--text-tokenizer", help="its T5's spiece.model or tokenizer.json")
    parser.add_argument("--partial", action="store_true", help="import what fits, the rest fresh")


def run(arguments: argparse.Namespace) -> int:
    """Reads, translates, writes; prints the report and the contract."""
    if arguments.kind not in KINDS:
        raise plugin.UserError(plugin.unknown("vla import", arguments.kind, KINDS))
    out = storage.local("--out", arguments.out)
    check_out(out)
    # After the arguments are known to be good: importing jax and Orbax takes seconds.
    from vla_jax.codecs import text_tokenizer

    project = importlib.import_module(f"vla_jax.models.importers.{arguments.kind}")
    words = None
    if arguments.text_tokenizer:
        words = text_tokenizer.TextTokenizer.load(arguments.text_tokenizer)
    found = project.read(arguments.checkpoint, arguments.step)
    project.check_words(found, words)
    native = project.translate(found, text_tokenizer=words, partial=arguments.partial)
    print(native.report)
    for setting in native.left_out:
        print(f"  left out  {setting}")
    write(out, found, native)
    print(json.dumps({"out": str(out), "step": found.step, **native.contract}))
    return 0


def check_out(out: pathlib.Path) -> None:
    """UserError unless `out` can be made, or is an empty folder that can be written to."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise plugin.UserError(
            f"--out {out}: {'the folder holds something' if out.is_dir() else 'it is a file'}; "
            "give a new folder"
        )
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "you may not write there" if place.is_dir() else "it is a file"
        raise plugin.UserError(f"--out {out}: cannot be made in {place}: {why}; choose another")


def write(out: pathlib.Path, found, native) -> None:
    """Writes the checkpoint and its contract; UserError, and nothing left, where that fails."""
    from vla_jax.models import contract
    from vla_jax.train import checkpoint

    words, was_there = native.text_tokenizer, out.exists()
    assets = checkpoint.Assets(
        normalizer=native.normalizer.to_json(),
        text_tokenizer=words.bytes if words else None,
        action_spaces=native.spaces,
    )
    source = dict(
        kind=found.project.name,
        folder=str(found.folder.absolute()),
        step=found.step,
        contract=native.contract,
        left_out=list(native.left_out),
        fresh=list(native.report.missing),
    )
    try:
        with contextlib.closing(
            checkpoint.Checkpoints(str(out), native.config, assets, {"import": source})
        ) as saver:
            saver.save_parameters(found.step, native.variables)
        storage.write(out / contract.FILE, json.dumps(native.contract, indent=1))
    except BaseException as error:
        shutil.rmtree(out, ignore_errors=True)
        if was_there:
            out.mkdir(exist_ok=True)
        written = isinstance(error, OSError | ValueError)  # ValueError: of Orbax's arrays
        if written and not isinstance(error, plugin.UserError):
            raise plugin.UserError(f"--out {out}: could not be written: {error}") from error
        raise
