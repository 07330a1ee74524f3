"""Whether a table of episodes fits the body it names and the stream it feeds."""

from __future__ import annotations

from collections.abc import Sequence

from vla_jax import plugin
from vla_jax.data.episodes import Episodes
from vla_jax.types import ActionSpace, Embodiment, SourceContext


def check(
    where: str,
    context: SourceContext,
    episodes: Episodes,
    body: Embodiment,
    space: ActionSpace,
    optional_views: Sequence[str],
) -> None:
    """Raises UserError unless actions, proprio and views are those of the body and the stream.

    A body states the proprio groups it can have; data may lack some of them (mask False).
    """
    got = episodes.action.shape[1]
    if space.name not in [s.name for s in body.action_spaces]:
        known = [s.name for s in body.action_spaces]
        raise plugin.UserError(
            plugin.unknown(f"{where}: action space of {body.name}", space.name, known)
        )
    if got != space.size:
        raise plugin.UserError(
            f"{where}: actions of {got} numbers, expected {space.size} as the action space "
            f"{space.name!r} says; name another action_space or correct embodiments/{body.name}"
        )
    if space.size > context.action_size:
        raise plugin.UserError(
            f"{where}: actions of {space.size} numbers, the stream's action_size is "
            f"{context.action_size}; raise it"
        )
    groups = {group.name: group.size for group in body.proprio}
    for name, values in episodes.proprio.items():
        if name not in groups:
            raise plugin.UserError(
                plugin.unknown(f"{where}: proprio group, not one of {body.name}", name, groups)
            )
        if values.shape[1] != groups[name]:
            raise plugin.UserError(
                f"{where}: proprio {name!r} has {values.shape[1]} numbers, expected "
                f"{groups[name]} as embodiment {body.name!r} says; correct the embodiment or the "
                "standardizer"
            )
    for view in context.image_sizes:
        if view not in episodes.frames and view not in optional_views:
            raise plugin.UserError(
                plugin.unknown(
                    f"{where}: view (or name it in optional_views)", view, episodes.frames
                )
            )
        if view in episodes.frames and view not in body.views:
            raise plugin.UserError(
                plugin.unknown(f"{where}: view of {body.name}", view, body.views)
            )


def named(where: str, name: str, known):
    """The item of that name; UserError for an unknown one."""
    table = {item.name: item for item in known}
    if name not in table:
        raise plugin.UserError(
            plugin.unknown(where, name, table) + " Add it to the config's embodiments."
        )
    return table[name]


def one_of(where: str, got: str, known: Sequence[str]) -> None:
    """Raises UserError unless `got` is one of `known`."""
    if got not in known:
        raise plugin.UserError(plugin.unknown(where, got, known))


def proprio_sizes(context: SourceContext) -> dict[str, int]:
    """Proprio group -> P, the largest of the stream's embodiments: what its rows are padded to."""
    sizes: dict[str, int] = {}
    for embodiment in context.embodiments:
        for group in embodiment.proprio:
            sizes[group.name] = max(sizes.get(group.name, 0), group.size)
    return sizes
