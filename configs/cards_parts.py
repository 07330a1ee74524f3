"""What the card demo's configs share: names, network and optimizer.

    tokens of `vl`     language │ primary (8 x 8) │ readout_point
    tokens of `robot`  language │ primary (8 x 8) │ proprio │ readout_point │ readout_action

The chain through the heads' `reads`: point → waypoint → action. `handed_over=False` is the
plain form: the action head reads its readout and nothing else.
"""

from vla_jax.data.sources import _emoji, collage

IMAGE = (96, 96)
WEB_ARTISTS = ("twemoji", "fluent_flat", "fluent_3d")
TEMPLATES = ("touch the {name}", "point to the {name}")


def names(split: int) -> _emoji.Names:
    """The names of A (demonstrations and web), B (web only), C (neither) of a split."""
    return _emoji.split_names(_emoji.card_names(collage.ASSETS), split)


def web_names(split: int, arm: str) -> tuple[str, ...]:
    """The names that the web pictures show: A and B, or A alone in the arm `web_without_B`."""
    drawn = names(split)
    return drawn.a if arm == "web_without_B" else drawn.a + drawn.b


def model(c, *, region_names, pool: str = "query", handed_over: bool = True) -> None:
    """Fills `c.model`: 1.0M parameters, width 128, 3 layers (cards.md §4)."""
    c.model.trunk = dict(width=128, depth=3, heads=4, mlp=256, unroll=3)
    embedding = dict(pool="mean", templates=TEMPLATES) if pool == "template" else dict(pool=pool)
    c.model.shared = dict(text_embedding=embedding, grounding=dict(dim=128))
    c.model.tokenizers = dict(
        language=dict(type="language", max_tokens=16, mode="pooled"),
        primary=dict(
            type="image_patch",
            view="primary",
            image_size=IMAGE,
            patch=6,
            film="product",
            reads=("language",),
        ),
        proprio=dict(type="proprio", group="hand", size=3),
    )
    c.model.readouts = dict(point=1, action=1)
    chain = (
        dict(reads=("waypoint",), detach=("waypoint",), relative_to="hand") if handed_over else {}
    )
    c.model.heads = dict(
        region_text=dict(type="region_text", image="primary", names=region_names),
        point=dict(type="pointing", readout="point", image="primary"),
        waypoint=dict(type="regression", target="waypoint", reads=("point",), hidden=(64,)),
        action=dict(
            type="regression",
            target="action",
            action_space="sawyer_xyz_gripper",
            readout="action",
            proprio=("hand",),
            hidden=(256,),
            **chain,
        ),
    )
    c.model.rules = (
        ("readout_point", "readout_point", "past_or_now"),
        ("readout_action", "readout_action", "past_or_now"),
        ("*", "readout_*", "never"),
        ("*", "language", "all"),
        ("language", "*", "never"),
        ("*", "*", "past_or_now"),
    )


def optimizer(c, *, lr: float) -> None:
    """AdamW, decay .01, clip 1, warm-up 100, cosine to 2% (cards.md §4).

    The waypoint head is a map from 5 numbers to 3 that starts fresh: at the trunk's rate it is
    still 2 cm off when the schedule ends (docs/LOG.md), so its rate is five times as high.
    """
    chained = any("waypoint" in stream.heads for stream in c.streams.values())
    fast = ((".*/heads_waypoint/.*", dict(lr=5.0, weight_decay=0.0)),) if chained else ()
    c.optimizer = dict(
        lr=lr,
        schedule="cosine",
        warmup=100,
        final=0.02,
        weight_decay=0.01,
        clip=1.0,
        groups=(*fast, (".*/(bias|scale)", dict(weight_decay=0.0)), (".*", dict())),
    )
