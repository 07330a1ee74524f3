"""A table of episodes in another action space of its body."""

from __future__ import annotations

import dataclasses

import numpy as np

from vla_jax import plugin
from vla_jax.codecs import actions
from vla_jax.data import fit, mapped
from vla_jax.data.episodes import Episodes
from vla_jax.types import ActionSpace, Embodiment

BLOCK = 2**14  # rows converted at a time
RECIPE = "convert-1"  # part of fingerprints: raise it when the same actions become other numbers


def converted(
    where: str, table: Episodes, body: Embodiment, source: ActionSpace, name: str
) -> tuple[Episodes, ActionSpace]:
    """(the table whose actions, of `source`, are those of the body's action space `name`, that).

    By codecs/actions.py. The table must still have every step: deltas from the command before
    build on one another. Raises UserError for an unknown name, and, with the episode, for what
    actions.convert_recorded refuses.
    """
    target = fit.named(where, name, body.action_spaces)
    if source == target:
        return table, target
    groups = (*source.groups, *target.groups)
    # Where no number depends on the step before it, any run of rows is converted like an episode.
    alone = all(g.reference != "previous_command" for g in groups if g.representation == "delta")
    made = np.empty((len(table.action), target.size), np.float32)

    def fill(first: int, last: int) -> None:
        rows = slice(int(table.start[first]), int(table.start[last]))
        proprio = {name: values[rows] for name, values in table.proprio.items()}
        try:
            if rows.start < rows.stop:
                made[rows] = actions.convert_recorded(
                    table.action[rows], proprio, body, source, target
                )
        except plugin.UserError as error:
            if last - first == 1:
                at = f"{where}={name!r}: episode {table.ids[first]}"
                raise plugin.UserError(f"{at}: {error}") from error
            for episode in range(first, last):  # which one is it?
                fill(episode, episode + 1)

    block = table.start[:-1] // BLOCK if alone else np.arange(len(table))
    edges = np.flatnonzero(np.diff(block, prepend=-1)).tolist()
    for first, last in zip(edges, [*edges[1:], len(table)]):
        fill(first, last)
    made = mapped.shared(made)
    return dataclasses.replace(table, action=made, action_space=target.name), target
