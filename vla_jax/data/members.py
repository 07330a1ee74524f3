"""The members of a mixture: what a config says of them, built and weighted.

    name=dict(source=dict(type="rlds", …), weight=1.0)                  a number
    name=dict(source=…, weight=[(0, 1.0), (1000, 0.2)])                 a curve over n
    name=dict(source=…, weight=dict(by="samples"))                      as large as it is
    name=dict(source=…, weight=dict(by="episodes", power=0.5, times=2)) tempered; times a number
                                                                        or a curve
    name=dict(members={…}, weight=0.7)                                  a group: its members'
                                                                        weights scaled to sum to 0.7
    name=dict(named="oxe_magic_soup", root="/data/oxe", weight=0.7)     a group from a table

Weights by size are refused beside plain numbers, with which they cannot be compared; a group of
them is one plain member. All weights are rational: size**power is taken to 32 binary places by
integer roots, so that every host comes to the same order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.data import order
from vla_jax.types import SourceContext

KINDS = ("source", "members", "named")
BY = ("samples", "episodes")
PLACES = 32  # binary places of size**power
FINEST = 1000  # largest denominator of a power: its root is of so many bits times PLACES


@dataclasses.dataclass(frozen=True)
class Member:
    """One source of a mixture, as the config says it, and the group that it is in."""

    where: str
    source: Any  # a spec or a ready IndexedSource
    times: order.Weight
    by: str | None = None
    power: float = 1.0
    group: str | None = None
    share: order.Weight = 1  # the group's weight


def expand(where: str, members: Mapping[str, Mapping]) -> dict[str, Member]:
    """The sources that a config's `members` mean, by name; those of a group are "group/name".

    Raises UserError for no members, an unknown key, a member that is nothing or two things,
    placeholders (`config.check_filled`), and weights that cannot be compared.
    """
    if not members:
        raise plugin.UserError(f"{where}: no members; name at least one")
    config_lib.check_filled(where, members)
    found: dict[str, Member] = {}
    for name, spec in sorted(members.items()):
        at = f"{where}.{name}"
        kinds = [kind for kind in KINDS if kind in spec]
        if len(kinds) != 1:
            given = f"both {' and '.join(kinds)}" if kinds else "no source"
            raise plugin.UserError(
                f"{at}: {given}; give one of source=dict(type=…), members, named"
            )
        if kinds == ["source"]:
            _known(at, spec, ("source", "weight"))
            found[name] = _member(at, spec["source"], spec.get("weight", 1))
            continue
        inner = spec["members"] if kinds == ["members"] else dict(_table(at, **spec))
        if kinds == ["members"]:
            _known(at, spec, ("members", "weight"))
        for part, member in expand(at, inner).items():
            if member.group or not isinstance(member.times, int | float):
                raise plugin.UserError(
                    f"{member.where}: a group's members are sources with constant weights; a curve "
                    f"is the group's: {at}.weight"
                )
            found[f"{name}/{part}"] = dataclasses.replace(
                member, group=at, share=spec.get("weight", 1)
            )
    _comparable(where, [member for member in found.values() if member.group is None], found)
    return found


def build(
    members: Mapping[str, Mapping], context: SourceContext, where: str
) -> tuple[dict[str, Any], dict[str, order.Weight]]:
    """({name: IndexedSource}, {name: weight}) of `members`; each source is told its member's name.

    Raises UserError as `expand` does, for an empty source, and for what a source itself refuses
    (of a group: for all its members at once).
    """
    found, sources, refused = expand(where, members), {}, []
    for name, member in found.items():
        source = member.source
        if isinstance(source, Mapping):
            try:
                named = dataclasses.replace(context, name=name)
                source = plugin.build("data.sources", source, named)
            except plugin.UserError as error:
                if member.group is None:
                    raise
                refused.append(f"{member.where}: {error}")
                continue
        if len(source) == 0:
            raise plugin.UserError(f"{member.where}: the source is empty, expected samples")
        sources[name] = source
    if refused:
        raise plugin.UserError(
            "\n".join(
                [
                    f"{len(refused)} members cannot be read (without=(…) leaves some of a "
                    "named mixture out):",
                    *refused,
                ]
            )
        )
    return sources, _weights(found, sources)


def tempered(size: int, power: float) -> Fraction:
    """size**power, 0 <= power <= 1, rounded down to PLACES binary places: exact integer roots."""
    exact = Fraction(str(power))
    if exact == 1:
        return Fraction(size)
    radicand = size**exact.numerator << (PLACES * exact.denominator)
    return Fraction(_root(radicand, exact.denominator), 2**PLACES)


def _root(n: int, k: int) -> int:
    """floor(n ** (1/k)) by Newton's method on integers, from above."""
    guess = 1 << -(-n.bit_length() // k)
    while True:
        better = ((k - 1) * guess + n // guess ** (k - 1)) // k
        if better >= guess:
            return guess
        guess = better


def _weights(found: Mapping[str, Member], sources: Mapping[str, Any]) -> dict[str, order.Weight]:
    factors = {
        name: Fraction(1) if m.by is None else tempered(_size(m, sources[name]), m.power)
        for name, m in found.items()
    }
    sums: dict[str | None, Fraction] = {}
    for name, member in found.items():
        if member.group is not None:
            factors[name] *= Fraction(str(member.times))
            sums[member.group] = sums.get(member.group, Fraction(0)) + factors[name]
    weights: dict[str, order.Weight] = {}
    for name, member in found.items():
        if member.group is not None:
            if sums[member.group] == 0:
                raise plugin.UserError(f"{member.group}: all weights are zero; raise one")
            weights[name] = _times(member.where, member.share, factors[name] / sums[member.group])
        elif member.by is None:
            weights[name] = member.times
        else:
            weights[name] = _times(member.where, member.times, factors[name])
    return weights


def _times(where: str, weight: order.Weight, factor: Fraction) -> list[tuple[int, Fraction]]:
    pairs = [(0, weight)] if isinstance(weight, int | float) else weight
    try:
        return [(n, Fraction(str(value)) * factor) for n, value in pairs]
    except (TypeError, ValueError) as error:
        raise plugin.UserError(
            f"{where}: weight={weight!r}, expected a number or a list of (n, weight)"
        ) from error


def _size(member: Member, source: Any) -> int:
    if member.by == "samples":
        return len(source)
    counts = source.summary() if hasattr(source, "summary") else {}
    if "episodes" not in counts:
        raise plugin.UserError(
            f"{member.where}: weight by='episodes', but its source has none; use by='samples'"
        )
    return int(counts["episodes"])


def _member(where: str, source: Any, weight: Any) -> Member:
    if not isinstance(weight, Mapping):
        return Member(where, source, weight)
    _known(f"{where}.weight", weight, ("by", "power", "times"))
    by, power = weight.get("by", "samples"), weight.get("power", 1.0)
    if by not in BY:
        raise plugin.UserError(plugin.unknown(f"{where}.weight.by", by, BY))
    valid = isinstance(power, int | float) and 0 <= power <= 1
    if not valid or Fraction(str(power)).denominator > FINEST:
        raise plugin.UserError(
            f"{where}.weight.power: got {power!r}, expected 0 (all alike) to 1 (by size), "
            f"with a denominator of at most {FINEST}"
        )
    return Member(where, source, weight.get("times", 1), by, power)


def _comparable(where: str, members: list[Member], all_: Mapping[str, Member]) -> None:
    """UserError for weights of unlike kinds side by side, here and in each group."""
    groups: dict[str, set] = {where: {(m.by, m.power) for m in members}}
    for member in all_.values():
        if member.group is not None:
            groups[where].add((None, 1.0))
            groups.setdefault(member.group, set()).add((member.by, member.power))
    for at, kinds in groups.items():
        if len(kinds) > 1:
            said = sorted("plain" if by is None else f"by {by}, power {p}" for by, p in kinds)
            raise plugin.UserError(
                f"{at}: weights of unlike kinds ({'; '.join(said)}) cannot be compared: weight all "
                "members alike, or put those by size in a group: NAME=dict(members={…}, weight=…)"
            )


def _table(
    where: str,
    *,
    named: str,
    root: str = "",
    weight: Any = 1,
    standardizer: str = "oxe",
    by: str | None = "samples",
    power: float = 1.0,
    without: tuple[str, ...] = (),
    type: str = "rlds",
    **source: Any,
) -> Iterator[tuple[str, dict]]:
    """The members of the mixture `named` in MIXTURES of a file of data/standardizers/.

    Its rows are folder -> weight, or folder -> dict(weight=, row=); row defaults to the folder.
    Weights multiply sizes (`by`, `power`), as Octo's balance_weights=True; by=None takes them as
    they are. `source` are further arguments of every source.
    """
    del weight  # the group's
    if not root:
        raise plugin.UserError(f"{where}: root is missing: the folder of the data sets' folders")
    module = plugin.module("data.standardizers", standardizer)
    tables = getattr(module, "MIXTURES", {})
    if named not in tables:
        raise plugin.UserError(plugin.unknown(f"{where}: named", named, tables))
    for name in without:
        if name not in tables[named]:
            raise plugin.UserError(plugin.unknown(f"{where}: without", name, tables[named]))
    for folder, entry in tables[named].items():
        entry = entry if isinstance(entry, Mapping) else {"weight": entry}
        row = dict(type=standardizer, row=entry.get("row", folder))
        spec = dict(type=type, path=f"{root.rstrip('/')}/{folder}", standardizer=row, **source)
        times = entry["weight"]
        if folder not in without:
            counted = times if by is None else dict(by=by, power=power, times=times)
            yield folder, dict(source=spec, weight=counted)


def _known(where: str, table: Mapping, known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise plugin.UserError(plugin.unknown(where, key, known))
