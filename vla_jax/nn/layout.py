"""Where every token stands: the static layout that masks, positions, caches and heads read.

Timeless groups (the task) come first, in config order; then, step by step, the groups of each
timestep in config order:

    language │ t=0: image  proprio  readout_action │ t=1: image  proprio  readout_action │ …
    time -1  │ time 0                              │ time 1

A layout is frozen and hashable, so that it can be a static argument and a cache key. What differs
from row to row (padding) travels beside it as `valid [B, L]`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax import plugin


@dataclasses.dataclass(frozen=True)
class Group:
    """`tokens` tokens that share visibility rules, once (`steps` 0: timeless) or at every timestep.

    `steps` of a per-step group is the layout's window. `expert` names the weights that process
    them.
    """

    name: str
    tokens: int
    steps: int = 0
    expert: str = "trunk"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Static table of the tokens: group, time, position and expert of each; see `Layout.make`.

    With `packed`, positions are the cumulative count of valid tokens, computed in the trunk from
    `valid`; `position` then only orders the tokens. With `shifted`, rules take the first token of
    a group for one of the group before it, as Octo 1.0 did by mistake (see `rule_group`).
    """

    groups: tuple[Group, ...]
    window: int
    packed: bool = False
    shifted: bool = False

    @classmethod
    def make(
        cls, groups: Iterable[Group], window: int, packed: bool = False, shifted: bool = False
    ) -> Layout:
        """The layout of groups in config order over W = `window` timesteps.

        Raises UserError for a repeated name, an empty group, or `steps` that is neither 0 nor
        `window`.
        """
        groups = tuple(groups)
        names = [group.name for group in groups]
        for group in groups:
            if names.count(group.name) > 1:
                raise plugin.UserError(f"layout: group {group.name!r} stands twice in {names}")
            if group.tokens < 1:
                raise plugin.UserError(f"layout: group {group.name!r} has {group.tokens} tokens")
            if group.steps not in (0, window):
                raise plugin.UserError(
                    f"layout: group {group.name!r} has steps={group.steps}; expected 0 (timeless) "
                    f"or the window, {window}"
                )
        return cls(groups, window, packed, shifted)

    @property
    def timeless(self) -> tuple[Group, ...]:
        """The groups before the first timestep, in config order."""
        return tuple(group for group in self.groups if group.steps == 0)

    @property
    def timed(self) -> tuple[Group, ...]:
        """The groups of every timestep, in config order."""
        return tuple(group for group in self.groups if group.steps)

    @property
    def length(self) -> int:
        """L, all tokens."""
        return self.group.size

    @functools.cached_property
    def group(self) -> np.ndarray:
        """[L] int32: index into `groups` of each token."""
        index = {group.name: i for i, group in enumerate(self.groups)}
        timeless = np.repeat([index[g.name] for g in self.timeless], _sizes(self.timeless))
        step = np.repeat([index[g.name] for g in self.timed], _sizes(self.timed))
        return _frozen(np.concatenate([timeless, np.tile(step, self.window)]))

    @functools.cached_property
    def rule_group(self) -> np.ndarray:
        """[L] int32: index into `groups` of each token, as the visibility rules take it.

        Octo 1.0 looked groups up one token late (np.searchsorted, side="left"): within the task and
        within each timestep, a group's first token went by the rules of the group before it.
        """
        if not self.shifted:
            return self.group
        late = self.group.copy()
        inside = (self.group[1:] != self.group[:-1]) & (self.time[1:] == self.time[:-1])
        late[1:][inside] = self.group[:-1][inside]
        return _frozen(late)

    @functools.cached_property
    def time(self) -> np.ndarray:
        """[L] int32: timestep of each token, -1 for timeless ones."""
        timeless = np.full(sum(_sizes(self.timeless)), -1)
        return _frozen(
            np.concatenate([timeless, np.repeat(np.arange(self.window), sum(_sizes(self.timed)))])
        )

    @functools.cached_property
    def position(self) -> np.ndarray:
        """[L] int32: index of each token in the sequence."""
        return _frozen(np.arange(self.length))

    @functools.cached_property
    def expert(self) -> np.ndarray:
        """[L] int32: index into `experts` of each token."""
        by_group = np.array([self.experts.index(group.expert) for group in self.groups])
        return _frozen(by_group[self.group])

    @functools.cached_property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts that own tokens, in order of first appearance in the config."""
        return tuple(dict.fromkeys(group.expert for group in self.groups))

    def expert_slots(self, expert: str) -> np.ndarray:
        """[L_e] int32: the tokens of an expert in layout order; UserError for an unknown one."""
        if expert not in self.experts:
            raise plugin.UserError(plugin.unknown("layout.experts", expert, self.experts))
        return np.flatnonzero(self.expert == self.experts.index(expert)).astype(np.int32)

    def find(self, name: str) -> Group:
        """The group called `name`; UserError naming the nearest when there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise plugin.UserError(plugin.unknown("layout", name, [g.name for g in self.groups]))

    def slot(self, name: str) -> np.ndarray:
        """int32 token indices of a group: [n] for a timeless one, [W, n] for a per-step one."""
        group = self.find(name)
        slots = np.flatnonzero(self.group == self.groups.index(group)).astype(np.int32)
        return slots.reshape(self.window, group.tokens) if group.steps else slots


def join(layout: Layout, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """{expert: [B, L_e, D_e]} in layout order, from {group: [B, n, D] or [B, W, n, D]}.

    Masks join alike: {group: [B, n] or [B, W, n]} → {expert: [B, L_e]}. Raises UserError when the
    names or shapes are not the layout's.
    """
    if set(arrays) != {group.name for group in layout.groups}:
        raise plugin.UserError(
            f"layout.join: got groups {sorted(arrays)}, "
            f"expected {sorted(group.name for group in layout.groups)}"
        )
    for group in layout.groups:
        _check(layout, group, arrays[group.name])
    joined = {}
    for expert in layout.experts:
        parts = [arrays[g.name] for g in layout.timeless if g.expert == expert]
        steps = [arrays[g.name] for g in layout.timed if g.expert == expert]
        if steps:
            step = jnp.concatenate(steps, axis=2)  # [B, W, n, ...]
            parts.append(step.reshape(step.shape[0], -1, *step.shape[3:]))
        joined[expert] = jnp.concatenate(parts, axis=1)  # [B, L_e, ...]
    return joined


def join_valid(layout: Layout, valid: Mapping[str, jax.Array]) -> jax.Array:
    """Joins masks {group: bool [B, n] or [B, W, n]} to bool [B, L]; raises as `join` does."""
    one = Layout(
        tuple(dataclasses.replace(g, expert="trunk") for g in layout.groups), layout.window
    )
    return join(one, valid)["trunk"]


def pick(layout: Layout, tokens: Mapping[str, jax.Array], name: str) -> jax.Array:
    """[B, n, D] or [B, W, n, D]: the tokens of one group out of {expert: [B, L_e, D_e]}."""
    group = layout.find(name)
    x = tokens[group.expert]
    timeless = [g for g in layout.timeless if g.expert == group.expert]
    timed = [g for g in layout.timed if g.expert == group.expert]
    start = sum(_sizes(timeless))
    if group.steps == 0:
        before = sum(_sizes(timeless[: timeless.index(group)]))
        return x[:, before : before + group.tokens]
    x = x[:, start:].reshape(x.shape[0], layout.window, -1, *x.shape[2:])  # [B, W, n of a step, D]
    before = sum(_sizes(timed[: timed.index(group)]))
    return x[:, :, before : before + group.tokens]


def _check(layout: Layout, group: Group, array: jax.Array) -> None:
    expected = (layout.window, group.tokens) if group.steps else (group.tokens,)
    if tuple(array.shape[1 : 1 + len(expected)]) != expected:
        letters = "[B, W, n, …]" if group.steps else "[B, n, …]"
        raise plugin.UserError(
            f"layout.join: group {group.name!r} has shape {tuple(array.shape)}, expected {letters} "
            f"with {expected} after the batch axis"
        )


def _sizes(groups: Iterable[Group]) -> list[int]:
    return [group.tokens for group in groups]


def _frozen(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.int32)
    array.flags.writeable = False
    return array
