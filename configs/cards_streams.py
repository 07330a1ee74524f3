"""The two streams of the card demo: collages of emoji (`vl`) and demonstrations (`robot`)."""

from cards_parts import IMAGE, WEB_ARTISTS


def web_stream(*, split: int, batch_size: int, arm: str) -> dict:
    """The `vl` stream: collages composed on the fly, region-text and pointing."""
    source = dict(
        type="collage",
        archives=("google",) if arm == "same_artist" else WEB_ARTISTS,
        split=split,
        names="a" if arm == "web_without_B" else "ab",
    )
    member = dict(collages=dict(source=source, weight=1.0))
    return dict(
        batch_size=batch_size,
        groups=("language", "primary"),
        readouts=("point",),
        heads=("region_text", "point"),
        objectives=dict(
            region_text=dict(type="region_text", head="region_text"),
            pointing=dict(type="pointing", head="point"),
        ),
        image_sizes=dict(primary=IMAGE),
        mixture=member,
        validation=member,
    )


def robot_stream(*, path: str, batch_size: int, handed_over: bool = True) -> dict:
    """The `robot` stream: half of each batch from an episode's first 3 frames (cards.md §4)."""

    def member(steps):
        source = dict(
            type="rlds",
            path=path,
            steps=steps,
            waypoint_group="hand",
            point_view="primary",
            augment=dict(color=0.2, proprio_noise=0.03),
        )
        return dict(source=source, weight=1.0)

    heads = ("point", "waypoint", "action") if handed_over else ("point", "action")
    objectives = dict(
        action=dict(type="action", head="action"),
        pointing=dict(type="pointing", head="point"),
    )
    if handed_over:
        objectives["waypoint"] = dict(type="waypoint", head="waypoint")
    return dict(
        batch_size=batch_size,
        window=1,
        action_horizon=8,
        groups=("language", "primary", "proprio"),
        readouts=("point", "action"),
        heads=heads,
        objectives=objectives,
        image_sizes=dict(primary=IMAGE),
        mixture=dict(demos=member(None), starts=member("[:3]")),
        validation=dict(demos=member(None)),
    )
