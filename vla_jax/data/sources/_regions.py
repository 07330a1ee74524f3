"""The labelled regions of a picture: places and what they are called, from texts or from fields.

No plug-in (leading underscore).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vla_jax.data.sources import _places

Called = tuple[tuple[float, ...], str]  # a box or point as it stands there, its name or ""


def of_texts(said: str, answer: str) -> list[Called]:
    """The places in an answer, called what stands right before them, and those in its question.

    The only one in a question is called what the answer is: "what is at [0.1, 0.2]", "a cat".
    """
    asked = _places.found(said)
    called = _places.name(answer) if len(asked) == 1 else ""
    return [*_places.named(answer), *((place, called) for place in asked)]


def of_fields(record: Mapping, place: str, names: str | None) -> list[Called]:
    """The places in a field and their names in another, one each; ValueError for what is none."""
    places = given(record, place)
    if names is None:
        return [(numbers, "") for numbers in places]
    found = _field(record, names)
    told = [found] if isinstance(found, str) else found
    texts = isinstance(told, list) and all(isinstance(name, str) for name in told)
    if not texts or len(told) != len(places):
        raise ValueError(
            f"field {names!r}: got {str(found)[:80]}, expected {len(places)} texts, one for each "
            f"of {place!r}"
        )
    return [(numbers, _places.name(name)) for numbers, name in zip(places, told)]


def given(record: Mapping, field: str) -> list:
    """The places in a record's field, at least one; ValueError for what is none."""
    found = _field(record, field)
    places = [found] if _is_place(found) else found
    if not isinstance(places, list) or not places or not all(map(_is_place, places)):
        raise ValueError(
            f"field {field!r}: got {str(found)[:80]}, expected 2 or 4 numbers, or a list of them"
        )
    return places


def shown(called: Iterable[Called], unit: str, form: str, shape, part) -> list[tuple]:
    """(middle float64 [2] in fractions of the `part`, name) of the places that are seen in it."""
    found = []
    for numbers, name in called:
        place = _places.seen(_places.fractions(numbers, unit, form, shape), shape, part)
        if place is not None:
            found.append((place.reshape(-1, 2).mean(axis=0), name))
    return found


def label(regions: list[tuple], rows: Mapping[str, int], targets: dict, masks: dict, rng) -> None:
    """Writes regions into `region_point` and `region_name` of the newest step, K at most.

    `rows`: name -> row of the stream's table; what it does not have stays without a name. Of more
    than K regions `rng` draws.
    """
    points, names = targets.get("region_point"), targets.get("region_name")
    if points is None and names is None:
        return
    most = (names if points is None else points).shape[1]
    if len(regions) > most:
        kept = rng.permutation(len(regions))[:most]
        regions = [regions[i] for i in sorted(kept.tolist())]
    for k, (middle, name) in enumerate(regions):
        if points is not None:
            points[-1, k], masks["region_point"][-1, k] = middle, True
        if names is not None and name in rows:
            names[-1, k], masks["region_name"][-1, k] = rows[name], True


def _field(record: Mapping, path: str):
    """record[path]; of "list.field" the field of every entry of the list."""
    outer, _, inner = path.partition(".")
    if path in record or not inner:
        return record.get(path)
    entries = record.get(outer)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"field {outer!r}: got {str(entries)[:80]}, expected a list of tables")
    return [entry.get(inner) for entry in entries]


def _is_place(numbers) -> bool:
    flat = isinstance(numbers, list | tuple) and len(numbers) in (2, 4)
    return flat and all(isinstance(v, int | float) for v in numbers)
