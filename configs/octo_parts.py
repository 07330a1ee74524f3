"""What octo_small.py and octo_base.py share: Octo 1.5 as it was released (Ghosh et al. 2024).

    language (16) │ primary (16 x 16) │ wrist (8 x 8) │ language again (16) │ readout_action (1)
     frozen T5    └────────────────────────── twice: a window of 2 ─────────────────────────┘

Parameters are Octo's own in names (through the importer's table), shapes and number; without T5
27,042,060 and 92,830,092. What Octo gets wrong (models/importers, `legacy`) is not repeated here.
T5-base comes from a folder as Hugging Face has it: model.safetensors, spiece.model.
"""

from vla_jax import config

SIZES = dict(
    small=dict(width=384, depth=12, heads=6, mlp=1536),  # vit_s
    base=dict(width=768, depth=12, heads=12, mlp=3072),  # vit_b
)
PIECES = 32_000  # of T5's spiece.model; the encoder's table is larger
T5_BASE = dict(
    type="t5", vocabulary_size=32_128, width=768, depth=12, heads=12, head_dim=64, mlp=3072
)


def arguments(arg: str):
    """The arguments of configs/octo_*.py: data is Bridge as RLDS, t5 the folder of a T5-base."""
    return config.parse_args(
        arg,
        data="data/bridge_dataset/1.0.0",
        t5="data/t5-base",
        steps=300_000,
        batch_size=512,
        workers=8,
    )


def build(size: str, a):
    """The config of a size over the parsed arguments."""
    c = config.new()
    c.steps = a.steps
    c.workers = a.workers
    c.text_tokenizer, c.text_pieces = f"{a.t5}/spiece.model", PIECES
    c.init_from = dict(encoders=dict(language=a.t5))
    c.freeze = (("params/tokenizers_language/encoder/.*", True), (".*", False))
    c.embodiments = ("widowx",)
    c.model.max_window = 10
    c.model.trunk = dict(SIZES[size])
    c.model.tokenizers = dict(
        language=dict(type="encoded_language", encoder=dict(T5_BASE), max_tokens=16),
        primary=camera("primary", 256),
        wrist=camera("wrist", 128),
        repeat_language=dict(type="repeat", repeats="language", tokens=16),
    )
    c.model.readouts = dict(action=1)
    c.model.heads.action = dict(
        type="diffusion", readout="action", action_space="ee_delta_gripper", diffusion_steps=20
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
    # Fusions with YNNPACK cost a tenth of the time, LLVM's last level pays nothing back.
    c.compiler.cpu = dict(xla_cpu_experimental_ynn_fusion_type="", xla_backend_optimization_level=1)
    c.checkpoint.every = 10_000
    c.validation = dict(every=5000, batches=16)
    c.log_every = 100
    return c


def camera(view: str, side: int) -> dict:
    """A view and its goal picture, stacked, through the stem of 16 px patches."""
    stem = dict(type="small_stem", patch=16)
    return dict(
        type="encoded_image", views=(view,), goals=(view,), image_size=(side, side), encoder=stem
    )


def stream(a) -> dict:
    """The `robot` stream: Bridge, a wrist camera where an episode has one."""
    source = dict(
        type="rlds",
        path=a.data,
        standardizer=dict(type="oxe", row="bridge"),
        language="optional",
        optional_views=("wrist",),
        # octo/data: words or a goal picture, never both; the wrist is not cropped.
        goals=dict(views=("primary", "wrist")),
        asked=dict(language=0.5, goal=0.5),
        augment=dict(
            crop_scale=(0.8, 1.0),
            crop_ratio=(0.9, 1.1),
            brightness=0.1,
            contrast=0.1,
            saturation=0.1,
            hue=0.05,
            views=dict(wrist=dict(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))),
        ),
    )
    bridge = dict(bridge=dict(source=source, weight=1.0))
    return dict(
        batch_size=a.batch_size,
        window=2,
        action_horizon=4,
        max_tokens=16,
        groups=("language", "primary", "wrist", "repeat_language"),
        readouts=("action",),
        heads=("action",),
        objectives=dict(action=dict(type="action", head="action")),
        image_sizes=dict(primary=(256, 256), wrist=(128, 128)),
        resize="tensorflow",
        mixture=bridge,
        validation=bridge,
    )
