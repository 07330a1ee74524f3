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
        size = len(self.sources[name])
        return name, order.permuted(draw, size, self.seed, self.stream, name)

    def sample(self, n: int) -> dict:
        """Row n: nested dicts of numpy without a batch axis, with `row_id`."""
        name, index = self.locate(n)
        rng = order.generator(self.seed, self.stream, name, n)
        return {**self.sources[name].sample(index, rng), "row_id": np.uint32(n)}

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
            rng = order.generator(self.seed, self.stream, name, 0)
            row = source.sample(0, rng)
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
            rng = order.generator(self.seed, self.stream, name, index)
            if _labelled(source.sample(index, rng)):
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
