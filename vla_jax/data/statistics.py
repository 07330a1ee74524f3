"""Statistics of the training episodes, and the Normalizer made of them.

A chunk of C actions starts at every step, so step i of an episode stands in min(i + 1, C) of them:
rows are weighted by that count instead of being copied, and read in blocks: beside the table of
episodes, nothing grows with the data. Quantiles are exact (see quantiles.py) up to EXACT_ROWS rows
of a field, and from a sketch above; `vla data stats` writes them to a file (statistics_file.py).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from vla_jax import plugin
from vla_jax.codecs import normalizer as normalizer_lib
from vla_jax.data import quantiles
from vla_jax.data.episodes import Episodes

EXACT_ROWS = 2**28  # rows of one field; on one core 1e7 rows of 7 numbers take 7 s
BLOCK = 2**16  # rows read at a time
TAILS = (0.01, 0.99)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """One field of one data set, read block by block.

    Attributes:
      read: () -> blocks of (values [n, D], counts int64 [n]); a row counts `counts` times.
      rows: N, how many rows those are.
      active: bool [D]; False = left as it is (grippers).
      unit_scale: float [D]; value * unit_scale is in SI.
      chunk: how many chunks a step can stand in, C of an action, 1 of a reading.
    """

    read: quantiles.Reader
    rows: int
    active: np.ndarray
    unit_scale: np.ndarray
    chunk: int = 1

    @classmethod
    def of(cls, episodes: Episodes, selected: np.ndarray, values: np.ndarray, **rest) -> Column:
        """The steps of the `selected` episodes, of the table's `values` [N, D]; nothing copied."""
        rows = int(np.sum(episodes.lengths[selected]))
        chunk = rest.get("chunk", 1)
        read = functools.partial(_blocks, episodes.start, selected, values, chunk)
        return cls(read=read, rows=rows, **rest)

    @classmethod
    def whole(cls, values: np.ndarray, counts: np.ndarray | None = None) -> Column:
        """All rows of `values` [N, D], `counts` [N] times each (default once)."""
        counts = np.ones(len(values), np.int64) if counts is None else counts
        return cls(
            read=functools.partial(_parts, values, counts),
            rows=len(values),
            active=np.ones(values.shape[1], bool),
            unit_scale=np.ones(values.shape[1]),
        )


def moments(parts: Iterable[Column], sketch: int | None = None) -> normalizer_lib.Statistics:
    """Statistics of all rows of some columns together; exact, or quantiles of a sketch of size k.

    Means are of float64 sums; the deviation is taken around the mean, in a second pass. Raises
    ValueError for no rows.
    """
    read = _chained(list(parts))
    total, sums, low, high = 0, 0.0, np.inf, -np.inf
    for values, counts in read():
        seen = values[counts > 0]
        if len(seen):
            total += int(counts.sum())
            sums = sums + counts.astype(np.float64) @ values.astype(np.float64)
            low, high = np.minimum(low, seen.min(axis=0)), np.maximum(high, seen.max(axis=0))
    if total == 0:
        raise ValueError("statistics of no rows")
    mean = sums / total
    squares = sum(
        counts.astype(np.float64) @ np.square(values - mean[None]) for values, counts in read()
    )
    error = 0.0
    if sketch is None:
        q01, q99 = quantiles.exact(read, TAILS)
    else:
        (q01, q99), error = quantiles.sketched(read, TAILS, sketch)
    columns = (mean, np.sqrt(squares / total), low, high, q01, q99)
    lists = (tuple(map(float, column)) for column in columns)
    return normalizer_lib.Statistics(total, *lists, rank_error=error)


def gather(sources: Iterable) -> dict[str, dict[str, dict[str, Column]]]:
    """Dataset key -> data fingerprint -> field -> Column, of the training episodes of `sources`.

    Sources without a `statistics_columns` method (pictures) are passed over; two members over the
    same data count once; several data sets under one key are pooled. Raises UserError where those
    differ in their fields, sizes or action spaces.
    """
    tables: dict[str, dict[str, dict[str, Column]]] = {}
    spaces: dict[str, str] = {}
    for source in sources:
        if hasattr(source, "statistics_columns"):
            key, space = source.dataset_key, source.action_space.name
            if spaces.setdefault(key, space) != space:
                raise plugin.UserError(
                    f"statistics: dataset key {key!r}: its data sets have the action spaces "
                    f"{spaces[key]!r} and {space!r}; give each its own dataset_key"
                )
            data = tables.setdefault(key, {})
            if source.data_fingerprint not in data:
                data[source.data_fingerprint] = source.statistics_columns()
    for key, data in tables.items():
        shapes = {_shape(part) for part in data.values()}
        if len(shapes) > 1:
            raise plugin.UserError(
                f"statistics: dataset key {key!r}: its data sets have the fields and sizes "
                f"{sorted(shapes)}, expected the same; give each its own dataset_key"
            )
    # Sorted, so that sums are those of any other order of members.
    return {key: dict(sorted(tables[key].items())) for key in sorted(tables)}


def measure(
    tables: Mapping[str, Mapping[str, Mapping[str, Column]]],
    *,
    exact_rows: int = EXACT_ROWS,
    sketch: int | None = None,
) -> dict[str, dict[str, normalizer_lib.Statistics]]:
    """Dataset key -> field -> Statistics of what `gather` found.

    Args:
      tables: as `gather` returns them.
      exact_rows: above so many rows of a field its quantiles are sketched.
      sketch: k of the sketches. None: such a field is a UserError, since every process, and every
        resumed run, would come to other numbers; a finished file holds them once and for all.
    """
    found: dict[str, dict[str, normalizer_lib.Statistics]] = {}
    for key, data in tables.items():
        found[key] = {}
        for field in sorted(next(iter(data.values()))):
            parts = [part[field] for part in data.values()]
            rows = sum(part.rows for part in parts)
            large = rows > exact_rows
            if large and sketch is None:
                raise plugin.UserError(
                    f"statistics: dataset key {key!r}, {field}: {rows} rows, more than the "
                    f"{exact_rows} whose quantiles are made exactly at every start; make them once "
                    "with `vla data stats --config … --out FILE` and set "
                    "config.normalizer.stats=FILE"
                )
            found[key][field] = moments(parts, sketch if large else None)
    return found


def normalizer(
    tables: Mapping[str, Mapping[str, Mapping[str, Column]]],
    found: Mapping[str, Mapping[str, normalizer_lib.Statistics]],
    *,
    mode: str | Mapping[str, str] = "zscore",
    clip: float | None = None,
) -> normalizer_lib.Normalizer:
    """The Normalizer of the statistics `found` of `tables`; arguments as in `compute`."""
    entries: dict[str, dict[str, normalizer_lib.Entry]] = {}
    for key, data in tables.items():
        entries[key] = {}
        for field in sorted(next(iter(data.values()))):
            parts = [part[field] for part in data.values()]
            kind, bound = _mode(mode, field, clip)
            entry = normalizer_lib.Entry(
                mode=kind,
                statistics=found[key][field],
                active=tuple(map(bool, parts[0].active)),
                clip=bound,
                clipped=(0.0,) * len(parts[0].active),
                unit_scale=tuple(map(float, parts[0].unit_scale)),
            )
            entries[key][field] = dataclasses.replace(entry, clipped=_clipped(entry, parts))
    return normalizer_lib.Normalizer(entries)


def compute(
    sources: Iterable,
    *,
    mode: str | Mapping[str, str] = "zscore",
    clip: float | None = None,
    exact_rows: int = EXACT_ROWS,
) -> normalizer_lib.Normalizer:
    """The Normalizer of all dataset keys that `sources` have, from training episodes only.

    Args:
      sources: see `gather`.
      mode: a mode or another project's name of one (see codecs.normalizer.resolve), or
        field -> mode with "*" as the default, e.g. ``{"action": "q01_q99", "*": "zscore"}``.
      clip: bound of the normalized values; the share of values it changes is stored per dim.
      exact_rows: see `measure`.

    Raises:
      UserError: unknown mode; two data sets under one key that differ in their fields; more rows
        than `exact_rows`.
    """
    tables = gather(sources)
    found = measure(tables, exact_rows=exact_rows)
    return normalizer(tables, found, mode=mode, clip=clip)


def report(normalizer: normalizer_lib.Normalizer) -> str:
    """The statistics as text, one line per dim, with the share of clipped values."""
    lines = []
    for key, fields in normalizer.entries.items():
        for field, entry in fields.items():
            s = entry.statistics
            how = f"sketched, rank error {s.rank_error:.3%}" if s.rank_error else "exact"
            lines.append(
                f"{key} {field}: {entry.mode}, clip {entry.clip}, {s.count} rows, quantiles {how}"
            )
            lines.append(
                f"  {'dim':<4}" + "".join(f"{name:>11}" for name in (*_NUMBERS, "clipped"))
            )
            for dim, degenerate in enumerate(entry.degenerate()):
                numbers = "".join(f"{getattr(s, name)[dim]:>11.4g}" for name in _NUMBERS)
                note = "" if entry.active[dim] else "  not normalized"
                note += "  degenerate: not scaled" if degenerate and entry.active[dim] else ""
                lines.append(f"  {dim:<4}{numbers}{entry.clipped[dim]:>11.2%}{note}")
    return "\n".join(lines)


_NUMBERS = ("mean", "std", "min", "max", "q01", "q99")


def _mode(mode, field: str, clip: float | None) -> tuple[str, float | None]:
    chosen = mode if isinstance(mode, str) else mode.get(field, mode.get("*", "zscore"))
    kind, bound = normalizer_lib.resolve(f"normalizer mode of {field}", chosen)
    if None not in (clip, bound) and clip != bound:
        raise plugin.UserError(
            f"normalizer mode of {field}: {chosen!r} clips to {bound}, the config says "
            f"clip={clip}; leave clip out, or name the mode {kind!r}"
        )
    return kind, clip if bound is None else bound


def _clipped(entry: normalizer_lib.Entry, parts: list[Column]) -> tuple[float, ...]:
    """Per dim the share of the rows that the entry clips; a pass over the data."""
    if entry.clip is None:
        return (0.0,) * len(entry.active)
    shift, scale = entry.shift_and_scale()
    outside = sum(
        counts.astype(np.float64) @ (np.abs((values - shift) / scale) > entry.clip)
        for values, counts in _chained(parts)()
    )
    shares = np.where(entry.active, outside / entry.statistics.count, 0.0)
    return tuple(map(float, shares))


def _chained(parts: list[Column]) -> quantiles.Reader:
    return lambda: itertools.chain.from_iterable(part.read() for part in parts)


def _shape(part: Mapping[str, Column]) -> tuple:
    return tuple((field, len(part[field].active)) for field in sorted(part))


def _blocks(
    start: np.ndarray, selected: np.ndarray, values: np.ndarray, chunk: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Whole episodes, at least BLOCK rows of them at a time."""
    lengths = np.diff(start)[selected]
    block = np.cumsum(lengths) // BLOCK
    for group in np.split(selected, np.flatnonzero(np.diff(block)) + 1):
        count = np.diff(start)[group]
        # Step i of its episode: 0, 1, …, then 0 again.
        step = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        rows = np.repeat(start[group], count) + step
        yield values[rows], np.minimum(step + 1, chunk)


def _parts(values: np.ndarray, counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for begin in range(0, len(values), BLOCK):
        yield values[begin : begin + BLOCK], np.asarray(counts[begin : begin + BLOCK], np.int64)
