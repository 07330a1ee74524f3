"""Who may attend to whom: ordered rules between token groups, expanded to a mask by array indexing.

Rules are rows (query pattern, key pattern, rule) with fnmatch patterns over group names. The first
row that matches a pair of groups decides; a pair that no row matches is an error. With t the
timestep (-1 for timeless groups) and p the place in the sequence, a query sees a key by

    all              always                     past             key t < query t
    past_or_now      key t <= query t           causal_position  key p <= query p
    now              key t == query t           never            not at all

A prefix language model is two groups: `all` for the prefix, then `causal_position`. Rules are about
what exists; what is padding in one row (`valid`) is masked in attention.py. Rules after Octo
(block_transformer.py), which expands them in a Python loop over pairs of tokens.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.nn import layout as layouts

Rules = tuple[tuple[str, str, str], ...]

BY_TIME = {
    "all": lambda query_time, key_time: query_time == query_time,
    "past_or_now": lambda query_time, key_time: key_time <= query_time,
    "now": lambda query_time, key_time: key_time == query_time,
    "past": lambda query_time, key_time: key_time < query_time,
    "never": lambda query_time, key_time: query_time != query_time,
}
BY_POSITION = "causal_position"
NAMES = (*BY_TIME, BY_POSITION)


def make(rules: Iterable[Sequence[str]]) -> Rules:
    """The rules as nested tuples (hashable); UserError for a malformed row or an unknown rule."""
    made = tuple(tuple(row) for row in rules)
    for row in made:
        if len(row) != 3:
            raise plugin.UserError(
                f"visibility: the row {row} should be (query pattern, key pattern, rule)"
            )
        if row[2] not in NAMES:
            raise plugin.UserError(plugin.unknown(f"visibility: row {row}", row[2], NAMES))
    return made


def rule(rules: Rules, query: str, key: str) -> str:
    """The first matching rule for a pair of group names; UserError names both when none matches."""
    for query_pattern, key_pattern, name in rules:
        if fnmatch.fnmatchcase(query, query_pattern) and fnmatch.fnmatchcase(key, key_pattern):
            return name
    raise plugin.UserError(
        f"visibility: no rule says whether {query!r} sees {key!r}; add a row such as "
        f"({query!r}, {key!r}, 'never'), or end the table with ('*', '*', 'never')"
    )


@functools.lru_cache(maxsize=256)
def mask(layout: layouts.Layout, rules: Rules) -> np.ndarray:
    """Bool [L, L], [query, key]: True where the query may attend to the key. Read-only, cached."""
    names = [group.name for group in layout.groups]
    # Tokens of one group and time are alike: pairs of these kinds are few, pairs of tokens many.
    kinds, kind = np.unique(np.stack([layout.rule_group, layout.time]), axis=1, return_inverse=True)
    kind = kind.reshape(-1)
    named = [[rule(rules, names[query], names[key]) for key in kinds[0]] for query in kinds[0]]
    by_kind = np.array(named, dtype=object)
    times, alike = (kinds[1][:, None], kinds[1][None, :]), np.zeros(by_kind.shape, bool)
    for name, decides in BY_TIME.items():
        alike |= (by_kind == name) & decides(*times)
    pairs = kind[:, None], kind[None, :]
    seen = alike[pairs]  # [L, L]
    if BY_POSITION in by_kind:
        before = layout.position[None, :] <= layout.position[:, None]
        seen |= (by_kind == BY_POSITION)[pairs] & before
    seen.flags.writeable = False
    return seen


def sees(rules: Rules, query: layouts.Group, key: layouts.Group) -> bool:
    """Whether some token of `query` may attend to some token of `key`, at some window."""
    name = rule(rules, query.name, key.name)
    if query.steps == 0 and key.steps:  # timeless tokens stand before every timestep
        return name == "all"
    if query.steps and key.steps == 0:
        return name not in ("now", "never")
    if query.steps == 0:
        return name not in ("past", "never")
    return name != "never"


def reaches(
    groups: Sequence[layouts.Group],
    rules: Rules,
    source: str,
    target: str,
    conditioning: Mapping[str, Sequence[str]] | None = None,
) -> bool:
    """Whether what enters at group `source` can arrive at `target` through any number of layers.

    `conditioning` says what each group's tokenizer reads, {group: groups} (FiLM by the task lets
    the text into the image tokens); what is read is the tokens before the trunk, also of groups
    that stand in `conditioning` alone and have no tokens there. Raises UserError for an unknown
    group or an unmatched pair.
    """
    by_name = {group.name: group for group in groups}
    known = {**by_name, **(conditioning or {})}
    for name in (source, target):
        if name not in known:
            raise plugin.UserError(plugin.unknown("visibility.reaches", name, known))
    reads = {name: tuple((conditioning or {}).get(name, ())) for name in known}
    attended = _closure(
        target,
        lambda q: [k for k in by_name if q in by_name and sees(rules, by_name[q], by_name[k])],
    )
    entered = set().union(*(_closure(name, lambda q: reads.get(q, ())) for name in attended))
    return source in entered


def prefix_length(
    layout: layouts.Layout, rules: Rules, recomputed: Sequence[str] | None = None
) -> int:
    """How many leading tokens can be cached: the longest prefix that sees nothing behind it.

    `recomputed` names the groups that change between passes; the prefix ends before the *newest*
    step of a per-step one (a flow expert's noisy actions) and before a timeless one. By default all
    per-step groups change, and what remains is what the task alone decides.
    """
    if recomputed is None:
        end = sum(group.tokens for group in layout.timeless)
    else:
        slots = [layout.slot(name) for name in recomputed]
        end = min([int(s[..., 0].reshape(-1)[-1]) for s in slots], default=layout.length)
    seen = mask(layout, rules)
    while end and seen[:end, end:].any():
        end -= 1
    return end


def picture(layout: layouts.Layout, rules: Rules) -> str:
    """The mask as text, one row and column per group and timestep: # all, + some, · nothing."""
    seen = mask(layout, rules)
    starts, labels = _blocks(layout)
    sums = np.add.reduceat(np.add.reduceat(seen.astype(int), starts, 0), starts, 1)
    sizes = np.diff([*starts, layout.length])
    full = sizes[:, None] * sizes[None, :]
    cells = np.where(sums == 0, "·", np.where(sums == full, "#", "+"))
    width = max(map(len, labels))
    digits = len(str(len(labels) - 1))
    lines = [
        f"{'query / key':>{width + digits + 1}}  "
        + " ".join(f"{i:>{digits}}" for i in range(len(labels)))
    ]
    for i, label in enumerate(labels):
        row = " ".join(f"{cell:>{digits}}" for cell in cells[i])
        lines.append(f"{label:>{width}} {i:>{digits}}  {row}")
    return "\n".join([*lines, "# sees all   + sees some   · sees nothing"])


def image(layout: layouts.Layout, rules: Rules, cell: int = 4) -> np.ndarray:
    """The mask as uint8 [h, w, 3], `cell` pixels per token: query rows, key columns.

    Blue where the query sees the key; grey lines between groups, dark lines between timesteps.
    """
    seen = np.kron(mask(layout, rules), np.ones((cell, cell), bool))
    picture = np.where(seen[..., None], np.uint8([46, 107, 176]), np.uint8([244, 244, 240]))
    starts, _ = _blocks(layout)
    for start in starts[1:]:
        new_step = layout.time[start] != layout.time[start - 1]
        colour = np.uint8([40, 40, 40] if new_step else [176, 176, 176])
        picture[start * cell] = colour
        picture[:, start * cell] = colour
    return picture


def _closure(start: str, neighbours) -> set[str]:
    """Everything reachable from `start`, itself included."""
    found, frontier = {start}, [start]
    while frontier:
        new = [name for name in neighbours(frontier.pop()) if name not in found]
        found.update(new)
        frontier.extend(new)
    return found


def _blocks(layout: layouts.Layout) -> tuple[np.ndarray, list[str]]:
    """First token and label ("image t=1 x64") of every run of one group at one timestep."""
    change = np.diff(layout.group, prepend=-1) != 0
    change |= np.diff(layout.time, prepend=-2) != 0
    starts = np.flatnonzero(change)
    labels = []
    for start in starts:
        group, time = layout.groups[layout.group[start]], layout.time[start]
        when = f" t={time}" if time >= 0 else ""
        labels.append(f"{group.name}{when} x{group.tokens}")
    return starts, labels
