"""The smallest whole path on real robot data (Bridge): disk → gradient → checkpoint → action.

vla train --config configs/debug.py --workdir runs/debug

Arguments: data, an RLDS folder with Bridge's columns; steps; head, regression or flow.
"""

from vla_jax import config


def get_config(arg=""):
    """The config as a table of settings."""
    a = config.parse_args(
        arg, data="../shared/fixtures/bridge_dataset/1.0.0", steps=20, head="regression"
    )
    c = config.new()
    c.steps = a.steps
    c.embodiments = ("widowx",)
    c.model.trunk = dict(width=64, depth=2, heads=4, mlp=128)
    c.model.tokenizers = dict(
        primary=dict(type="image_patch", view="primary", image_size=(64, 64), grid_stride=16),
        proprio=dict(type="proprio", group="ee", size=7),
    )
    c.model.readouts = dict(action=1)
    c.model.heads.action = dict(
        type=a.head, readout="action", action_space="ee_delta_gripper", hidden=(64,)
    )
    c.model.rules = (
        ("readout_action", "readout_action", "past_or_now"),
        ("*", "readout_*", "never"),
        ("*", "*", "past_or_now"),
    )
    source = dict(
        type="rlds",
        path=a.data,
        standardizer=dict(type="oxe", row="bridge"),
        language="optional",
        holdout=0.2,
    )
    bridge = dict(bridge=dict(source=source, weight=1.0))
    c.streams.robot = dict(
        batch_size=8,
        window=2,
        action_horizon=4,
        groups=("primary", "proprio"),
        readouts=("action",),
        heads=("action",),
        objectives=dict(action=dict(type="action", head="action")),
        image_sizes=dict(primary=(64, 64)),
        mixture=bridge,
        validation=bridge,
    )
    c.optimizer = dict(lr=1e-3, warmup=5)
    c.validation = dict(every=10, batches=2)
    c.checkpoint.every = 10
    c.log_every = 5
    return c
