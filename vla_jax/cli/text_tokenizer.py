"""Trains the SentencePiece model of the texts that a config's sources show, and writes it.

vla data text-tokenizer --config configs/demo_pretrain.py:split=0 --out
runs/demo/text_tokenizer.model
vla data text-tokenizer --texts captions.txt --vocabulary-size 8000 --out text_tokenizer.model
"""

from __future__ import annotations

import argparse
import json

from vla_jax import config as config_lib
from vla_jax import plugin, storage


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--config", help="take the texts of this config's sources")
    parser.add_argument("--texts", help="a file with one text per line")
    parser.add_argument("--vocabulary-size", type=int, default=600, help="pieces (default 600)")
    parser.add_argument("--out", required=True, help="the model file to write")


def run(arguments: argparse.Namespace) -> int:
    """Gathers the texts, trains, writes; one JSON line says what came out."""
    from vla_jax.codecs import text_tokenizer

    texts = _texts(arguments)
    trained = text_tokenizer.TextTokenizer.train(texts, vocabulary_size=arguments.vocabulary_size)
    trained.save(arguments.out)
    summary = dict(path=arguments.out, texts=len(texts), vocabulary_size=trained.vocabulary_size)
    print(json.dumps(summary))
    return 0


def _texts(arguments: argparse.Namespace) -> list[str]:
    if bool(arguments.config) == bool(arguments.texts):
        raise plugin.UserError("give either --config or --texts, the origin of the texts.")
    if arguments.texts:
        path = arguments.texts
        if not storage.is_file(path):
            raise plugin.UserError(f"--texts: {path} does not exist; expected one text per line.")
        return [line for line in storage.read(path).decode().splitlines() if line.strip()]
    from vla_jax.data import members

    config = config_lib.load(arguments.config)
    texts: list[str] = []
    for name, stream in config.streams.items():
        for member in members.expand(f"streams.{name}.mixture", stream.mixture).values():
            source = dict(member.source)
            module = plugin.module("data.sources", source.pop("type"))
            if hasattr(module, "texts"):
                known = plugin.accepted(module.texts, source)
                texts += module.texts(**known)
    if not texts:
        raise plugin.UserError(
            f"{arguments.config}: no source of its streams has texts; use --texts FILE."
        )
    return list(dict.fromkeys(texts))
