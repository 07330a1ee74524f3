"""Which episodes a split's name means, as TFDS has it: ``train[:95%]``, ``train[10:20]``, ``a+b``.

The grammar and its rounding are those of tensorflow_datasets/core/splits.py (percentages go to the
closest whole episode, halves to the even one), so that a slice here holds what it holds there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from vla_jax import plugin

PART = re.compile(r"(?P<name>[\w-]+)(\[(?P<slice>[\d\w%:._-]+)\])?")
BOUND = re.compile(r"((?P<value>-?[\d_.]+)(?P<unit>%|shard)?)?")
HINT = "expected e.g. 'train', 'train[:95%]', 'train[10:20]', 'train[-1%:]' or 'train+val'"


def resolve(where: str, split: str, shards: Mapping[str, Sequence[int]]) -> list[tuple]:
    """[(name, shard, first, last)]: the episodes [first, last) of each shard that `split` reads.

    Args:
      where: for messages.
      split: TFDS's words.
      shards: split -> how many episodes each of its shards holds.

    Raises UserError for other words, an unknown split, bounds that the split does not have, and a
    slice of nothing.
    """
    if split in shards:
        parts = [(split, None)]
    else:
        parts = [_part(where, split, text) for text in re.split(r"\s*\+\s*", split.strip())]
    if parts == [("all", None)] and "all" not in shards:
        parts = [(name, None) for name in shards]
    found = []
    for name, bounds in parts:
        if name not in shards:
            raise plugin.UserError(plugin.unknown(f"{where}: split", name, shards))
        first, last = _range(where, split, bounds, shards[name])
        begin = 0
        for shard, length in enumerate(shards[name]):
            low, high = max(first - begin, 0), min(last - begin, length)
            if low < high:
                found.append((name, shard, low, high))
            begin += length
    if not found:
        raise plugin.UserError(
            f"{where}: split {split!r} holds no episode; the splits hold "
            f"{ {name: sum(lengths) for name, lengths in shards.items()} }"
        )
    return found


def _part(where: str, split: str, text: str) -> tuple:
    match = PART.fullmatch(text)
    if not match:
        raise plugin.UserError(f"{where}: split {split!r}: cannot read {text!r}; {HINT}")
    if match["slice"] is None:
        return match["name"], None
    bounds = [BOUND.fullmatch(bound) for bound in match["slice"].split(":")]
    units = {bound["unit"] for bound in bounds if bound and bound["unit"]}
    one_shard = len(bounds) == 1 and units == {"shard"}
    if not all(bounds) or not any(b[0] for b in bounds) or not (len(bounds) == 2 or one_shard):
        raise plugin.UserError(f"{where}: split {split!r}: cannot read {text!r}; {HINT}")
    unit = next((b["unit"] for b in bounds if b["unit"]), "")
    number = float if unit == "%" else int
    try:
        values = [number(b["value"]) if b["value"] is not None else None for b in bounds]
    except ValueError:
        raise plugin.UserError(f"{where}: split {split!r}: cannot read {text!r}; {HINT}") from None
    if one_shard:
        values.append(values[0] + 1)
    return match["name"], (values[0], values[1], unit)


def _range(where: str, split: str, bounds, lengths: Sequence[int]) -> tuple[int, int]:
    total = sum(lengths)
    if bounds is None:
        return 0, total
    first, last, unit = bounds
    if unit == "%":
        if max(abs(first or 0), abs(last or 0)) > 100:
            raise plugin.UserError(f"{where}: split {split!r}: more than 100%; {HINT}")
        first = 0 if first is None else round(first * total / 100.0)
        last = total if last is None else round(last * total / 100.0)
    elif unit == "shard":
        first = 0 if first is None else sum(lengths[:first])
        if last is not None and last <= 0:
            last += len(lengths)
        last = total if last is None else sum(lengths[:last])
    first, last = (0 if first is None else first), (total if last is None else last)
    if max(abs(first), abs(last)) > total:
        raise plugin.UserError(
            f"{where}: split {split!r}: [{first}:{last}] of {total} episodes; shorten the slice"
        )
    return first + total * (first < 0), last + total * (last < 0)
