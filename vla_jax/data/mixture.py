"""A stream's weighted members, and sample n of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from vla_jax import plugin
from vla_jax.data import members as members_lib
from vla_jax.data import order
from vla_jax.types import SourceContext

SKIPS = 100  # broken samples in a row that are more than an accident
LABEL_ROWS = 16  # samples that are looked at before a member counts as unlabelled


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Members by name and the order of their samples; a pure function of n, safe in threads."""

    stream: str
    seed: int
    sources: Mapping[str, object]
    weights: Mapping[str, order.Weight]
    order: order.Order

    @classmethod
    def make(
        cls, members: Mapping[str, Mapping], context: SourceContext, *, seed: int = 0
    ) -> Mixture:
        """Builds every member: ``{name: dict(source=dict(type="rlds", …), weight=1.0)}``.

        Args:
          members: see members.py; `source` is a spec or a ready IndexedSource.
          context: the stream's; each source sees it under its member's name.
          seed: of order and augmentation.

        Raises:
          UserError: no members, an unknown key, an empty or unlabelled source, members whose rows
            differ in shape, or what a source itself refuses.
        """
        where = f"streams.{context.stream}.mixture"
        sources, weights = members_lib.build(members, context, where)
        mixture = cls(context.stream, seed, sources, weights, order.Order.make(weights))
        mixture._check_rows()
        return mixture

    @property
    def fingerprint(self) -> str:
        """Changes with the data, weights, seed or stream's name: what a resumed run checks."""
        parts = [(n, s.fingerprint, repr(self.weights[n])) for n, s in self.sources.items()]
        return f"{order.fold(self.stream, self.seed, parts):032x}"

    def locate(self, n: int) -> tuple[str, int]:
        """(member, index in its source) of sample n."""
        name, draw = self.order.locate(n)
        source = self.sources[name]
        runs = getattr(source, "runs", None)
        if runs is not None:
            return name, runs.permuted(draw, self.seed, self.stream, name)
        return name, order.permuted(draw, len(source), self.seed, self.stream, name)

    @property
    def skips(self) -> bool:
        """Whether a member lets a broken sample give way; rows then say how many did: `skipped`."""
        return any(getattr(source, "skips", False) for source in self.sources.values())

    def sample(self, n: int) -> dict:
        """Row n: nested dicts of numpy without a batch axis, with `row_id`.

        A broken sample of a source that `skips` gives way to the next index of that source. Raises
        UserError for any other, and where SKIPS indices in a row are broken.
        """
        row, skipped = self._row(*self.locate(n), n)
        row = {**row, "row_id": np.uint32(n)}
        return {**row, "skipped": np.int32(skipped)} if self.skips else row

    def _row(self, name: str, index: int, n: int) -> tuple[dict, int]:
        source = self.sources[name]
        tries = min(SKIPS, len(source)) if getattr(source, "skips", False) else 1
        for skipped in range(tries):
            rng = order.generator(self.seed, self.stream, name, n)
            try:
                return source.sample((index + skipped) % len(source), rng), skipped
            except plugin.UserError as error:
                if skipped + 1 == tries:
                    several = f" ({tries} samples in a row cannot be read)" if tries > 1 else ""
                    raise plugin.UserError(f"{error}{several}") from error

    def with_normalizer(self, normalizer) -> Mixture:
        """The same mixture under another normalizer; sources without one are shared."""
        sources = {
            name: s.with_normalizer(normalizer) if hasattr(s, "with_normalizer") else s
            for name, s in self.sources.items()
        }
        return dataclasses.replace(self, sources=sources)

    def summary(self, samples: int | None = None) -> list[dict]:
        """One dict per member: name, size, first weight, and epochs in the first `samples`."""
        rows, begin = [], self.order.root.curve.points[0]
        for name, source in self.sources.items():
            ideal = self.order.ideal(begin + 1)[name]
            row = {"member": name, "samples": len(source), "weight": float(ideal)}
            if samples is not None:
                share = self.order.ideal(samples)[name]
                row["epochs"] = float(Fraction(share) / len(source))
            extra = source.summary() if hasattr(source, "summary") else {}
            rows.append({**row, **{k: v for k, v in extra.items() if k not in row}})
        return rows

    def table(self, samples: int | None = None) -> str:
        """The members as text; `samples` (steps x batch size) adds the expected epochs."""
        rows = self.summary(samples)
        names = list(dict.fromkeys(key for row in rows for key in row))
        cells = [names] + [[_cell(row.get(name, "")) for name in names] for row in rows]
        widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in cells]
        return "\n".join([f"stream {self.stream}, fingerprint {self.fingerprint[:16]}", *lines])

    def _check_rows(self) -> None:
        first, expected = None, {}
        for name, source in self.sources.items():
            row, _ = self._row(name, 0, 0)
            if not _labelled(row):
                self._check_labels(name, source)
            shapes = _shapes(row)
            if first is None:
                first, expected = name, shapes
            if shapes != expected:
                differ = sorted(set(shapes.items()) ^ set(expected.items()))
                raise plugin.UserError(
                    f"streams.{self.stream}.mixture: rows of {name!r} and {first!r} differ: "
                    f"{differ[:6]}; one stream has one batch shape: give both the same targets and "
                    "image sizes, or two streams"
                )

    def _check_labels(self, name: str, source) -> None:
        places = sorted({len(source) * i // LABEL_ROWS for i in range(LABEL_ROWS)})
        for index in places:
            if _labelled(self._row(name, index, index)[0]):
                return
        raise plugin.UserError(
            f"streams.{self.stream}.mixture.{name}: unlabelled: none of {len(places)} samples, "
            f"spread over its {len(source)}, has a label for any target; leave the member out, or "
            "give it targets that it has labels for"
        )


def _labelled(row: Mapping) -> bool:
    """Whether a row can train anything; rows without targets are for objectives without."""
    masks = row.get("target_masks", {})
    return not masks or any(np.any(mask) for mask in masks.values())


def _shapes(row, prefix: str = "") -> dict[str, tuple]:
    if isinstance(row, Mapping):
        found = {}
        for name, value in row.items():
            found.update(_shapes(value, f"{prefix}/{name}" if prefix else name))
        return found
    array = np.asarray(row)
    return {prefix: (array.shape, array.dtype.name)}


def _cell(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
