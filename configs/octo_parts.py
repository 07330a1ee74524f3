"""What octo_small.py and octo_base.py share: Octo's tokens, window, optimizer (Ghosh et al. 2024).

    language (16) │ primary (16 x 16) │ wrist (8 x 8) │ readout_action     twice: a window of 2

Octo 1.5's pretraining config, with this project's convolutional stem, pieces of text in place of
T5, and a flow head in place of diffusion; Octo repeats the instruction at each step, here it
stands once.
"""

from vla_jax import config

SIZES = dict(
    small=dict(width=384, depth=12, heads=6, mlp=1536),  # vit_s
    base=dict(width=768, depth=12, heads=12, mlp=3072),  # vit_b
)


def arguments(arg: str):
    """The arguments of configs/octo_*.py; data is the folder of Bridge as RLDS."""
    return config.parse_args(
        arg,
        data="data/bridge_dataset/1.0.0",
        text_tokenizer="data/text_tokenizer.model",
        steps=300_000,
        batch_size=512,
        workers=8,
    )


def build(size: str, a):
    """The config of a size over the parsed arguments."""
    c = config.new()
    c.steps = a.steps
    c.workers = a.workers
    c.text_tokenizer = a.text_tokenizer
    c.embodiments = ("widowx",)
    c.model.trunk = dict(SIZES[size])
    c.model.shared = dict(text_embedding={})
    stem = dict(type="image_patch", grid_stride=16, widths=(64, 128, 256))
    c.model.tokenizers = dict(
        language=dict(type="language", mode="pieces", max_tokens=16),
        primary=dict(view="primary", image_size=(256, 256), **stem),
        wrist=dict(view="wrist", image_size=(128, 128), **stem),
    )
    c.model.readouts = dict(action=1)
    c.model.heads.action = dict(
        type="flow", readout="action", action_space="ee_delta_gripper", hidden=(256, 256, 256)
    )
    c.model.rules = (
        ("readout_action", "readout_action", "past_or_now"),
        ("*", "readout_*", "never"),
        ("*", "language", "all"),
        ("language", "*", "never"),
        ("*", "*", "past_or_now"),
    )
    c.streams.robot = stream(a)
    c.optimizer = dict(lr=3e-4, schedule="rsqrt", warmup=2000, weight_decay=0.1, clip=1.0)
    c.checkpoint.every = 10_000
    c.validation = dict(every=5000, batches=16)
    c.log_every = 100
    return c


def stream(a) -> dict:
    """The `robot` stream: Bridge, a wrist camera where an episode has one."""
    source = dict(
        type="rlds",
        path=a.data,
        standardizer=dict(type="oxe", row="bridge"),
        language="optional",
        optional_views=("wrist",),
        augment=dict(color=0.1),
    )
    bridge = dict(bridge=dict(source=source, weight=1.0))
    return dict(
        batch_size=a.batch_size,
        window=2,
        action_horizon=4,
        groups=("language", "primary", "wrist"),
        readouts=("action",),
        heads=("action",),
        objectives=dict(action=dict(type="action", head="action")),
        image_sizes=dict(primary=(256, 256), wrist=(128, 128)),
        mixture=bridge,
        validation=bridge,
    )
