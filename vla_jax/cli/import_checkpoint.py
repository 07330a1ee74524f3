"""Turns another project's checkpoint into one of ours, that evaluates, fine-tunes and serves.

  vla import octo octo-small-1.5 --text-tokenizer t5-base/spiece.model --out runs/octo
  vla import octo CKPT --step 300000 --text-tokenizer t5-base/tokenizer.json --out DIR

Prints which parameters were mapped, which the checkpoint lacks and which went unused, and refuses
to import a part of them unless --partial says so. The last line on stdout is what the policy
expects, as JSON: picture sizes, words, statistics, actions. Nothing is fetched from the network; a
T5's tokenizer comes from a local spiece.model or tokenizer.json.
"""

from __future__ import annotations

import argparse
import json
import pathlib

from vla_jax import plugin

KINDS = ("octo",)


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("kind", help="whose checkpoint it is: octo")
    parser.add_argument("checkpoint", help="its folder")
    parser.add_argument("--out", required=True, help="a new folder for ours")
    parser.add_argument("--step", type=int, help="of the checkpoint (default: the newest)")
    parser.add_argument("--text-tokenizer", help="its T5's spiece.model or tokenizer.json")
    parser.add_argument("--partial", action="store_true", help="import what fits, the rest fresh")


def run(arguments: argparse.Namespace) -> int:
    """Reads, translates, writes; prints the report and the contract."""
    if arguments.kind not in KINDS:
        raise plugin.UserError(plugin.unknown("vla import", arguments.kind, KINDS))
    out = pathlib.Path(arguments.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise plugin.UserError(f"--out {out}: the folder holds something; give a new one")
    # After the arguments are known to be good: importing jax and Orbax takes seconds.
    from vla_jax.codecs import text_tokenizer
    from vla_jax.models.importers import octo
    from vla_jax.train import checkpoint

    words = None
    if arguments.text_tokenizer:
        words = text_tokenizer.TextTokenizer.load(arguments.text_tokenizer)
    found = octo.read(arguments.checkpoint, arguments.step)
    native = octo.translate(found, text_tokenizer=words, partial=arguments.partial)
    print(native.report)
    assets = checkpoint.Assets(
        normalizer=native.normalizer.to_json(),
        text_tokenizer=words.bytes if words else None,
        action_spaces=native.spaces,
    )
    saver = checkpoint.Checkpoints(str(out), native.config, assets)
    saver.save_parameters(found.step, native.variables)
    saver.close()
    print(json.dumps({"out": str(out), "step": found.step, **native.contract}))
    return 0
