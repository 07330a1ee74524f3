"""Co-fine-tunes on demonstrations and collages from stage 1's checkpoint (stage 2 of `make demo`).

vla train --config configs/demo_cofinetune.py:out=runs/demo --workdir runs/demo/cofinetuned

Arguments: split, seed, out as in demo_pretrain.py; arm is one of cofinetuned, scratch (robot data
only, no stage 1), pretrained_only (stage 1, then robot data only), plain and plain4 (nothing handed
from pointing to the action; 1x and 4x the steps), web_without_B, same_artist.
"""

import cards_parts
import cards_streams

from vla_jax import config


def get_config(arg=""):
    """The config as a table of settings."""
    a = config.parse_args(
        arg,
        split=0,
        seed=0,
        out="runs/demo",
        arm="cofinetuned",
        steps=500,
        lr=1e-3,
        pool="query",
        pretrain="",
    )
    scratch, plain = a.arm == "scratch", a.arm in ("plain", "plain4")
    shown = cards_parts.web_names(a.split, a.arm)
    c = config.new()
    c.seed = a.seed
    c.steps = a.steps * (4 if a.arm == "plain4" else 1)
    c.text_tokenizer = f"{a.out}/text_tokenizer.model"
    c.embodiments = ("sawyer_cards",)
    cards_parts.model(c, region_names=shown, pool=a.pool, handed_over=not plain)
    c.streams.robot = cards_streams.robot_stream(
        path=f"{a.out}/demos", batch_size=32, handed_over=not plain
    )
    if a.arm not in ("scratch", "pretrained_only"):
        c.streams.vl = cards_streams.web_stream(split=a.split, batch_size=16, arm=a.arm)
    if not scratch:
        c.init_from = dict(
            checkpoint=a.pretrain or f"{a.out}/pretrain",
            fresh=(".*/heads_(waypoint|action)/.*", ".*proprio.*", ".*readout_action.*"),
        )
    cards_parts.optimizer(c, lr=2e-3 if scratch else a.lr)
    c.normalizer.modes = (("action", "identity"), ("*", "zscore"))
    c.validation.every = 250
    c.checkpoint.every = 500
    return c
