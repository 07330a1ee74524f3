"""Fine-tunes a checkpoint to a robot and its data; `vla finetune` is this and a replay at its end.

vla train --workdir runs/xyz --config \
    configs/finetune.py:checkpoint=RUN,data=demos,embodiment=my_robot.py,stats=recompute

The config is derived from the checkpoint's own: read `vla_jax/train/finetune.py:derive`. What there
is to choose, and what it is by default (None: as in the checkpoint), stands below; embodiment is a
name or a Python file with EMBODIMENT; stats is checkpoint or recompute; standardizer TYPE, TYPE:ROW
or FILE.py:ROW; mode full or head_only; action_head regression or flow; views are joined by "+".
"""

import dataclasses

from vla_jax import config, plugin
from vla_jax.train import finetune


def get_config(arg=""):
    """The config of a fine-tuning, as a table of settings."""
    a = config.parse_args(
        arg,
        checkpoint="",
        data="",
        embodiment="",
        stats="",
        standardizer="native",
        mode="full",
        steps=1000,
        batch_size=32,
        lr=3e-4,
        action_head=None,
        action_space=None,
        action_horizon=None,
        window=None,
        views=None,
        dataset_key=None,
        episodes=None,
        holdout=0.1,
        language="required",
        seed=0,
    )
    for name in ("checkpoint", "data", "embodiment", "stats"):
        if not getattr(a, name):
            raise plugin.UserError(f"configs/finetune.py:{name}=… is missing; it has no default.")
    if a.views is not None:
        a.views = tuple(a.views.split("+"))
    prepared = finetune.prepare(finetune.Request(**vars(a)))
    return dataclasses.asdict(prepared.config)
