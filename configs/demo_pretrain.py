"""Pretrains the trunk on emoji collages: region-text and pointing (stage 1 of `make demo`).

vla train --config configs/demo_pretrain.py:out=runs/demo --workdir runs/demo/pretrain

Arguments: split draws the names of A, B and C; seed the training; arm is one of cofinetuned (the
web shows A and B), web_without_B, same_artist (the web shows the cards' own pictures).
"""

import cards_parts
import cards_streams

from vla_jax import config


def get_config(arg=""):
    """The config as a table of settings."""
    a = config.parse_args(
        arg, split=0, seed=0, out="runs/demo", arm="cofinetuned", steps=1200, lr=2e-3, pool="query"
    )
    shown = cards_parts.web_names(a.split, a.arm)
    c = config.new()
    c.seed = a.seed
    c.steps = a.steps
    c.text_tokenizer = f"{a.out}/text_tokenizer.model"
    c.embodiments = ("sawyer_cards",)
    cards_parts.model(c, region_names=shown, pool=a.pool)
    c.streams.vl = cards_streams.web_stream(split=a.split, batch_size=32, arm=a.arm)
    cards_parts.optimizer(c, lr=a.lr)
    c.normalizer.modes = (("action", "identity"), ("*", "zscore"))
    c.validation.every = 400
    c.checkpoint.every = 800
    return c
