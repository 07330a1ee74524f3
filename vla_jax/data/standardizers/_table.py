"""The declarative row of a data set, and the standardizer that reads one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from vla_jax import plugin
from vla_jax.data import episodes


@dataclasses.dataclass(frozen=True)
class Field:
    """Dims [start:stop] of one step column; a vector is a tuple of fields, concatenated."""

    column: str
    start: int | None = None
    stop: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """How one data set maps to our nouns. Columns are named as in features.json, without `steps/`.

    Attributes:
      embodiment, action_space: names, see embodiments/.
      views: view -> image column.
      action: the action vector, in the order of the action space's groups.
      proprio: group -> its vector.
      language: text column.
      drop_first: leading steps to leave out.
      episode_id: columns of episode_metadata that name an episode together; none: its place does.
    """

    embodiment: str
    action_space: str
    views: Mapping[str, str]
    action: tuple[Field, ...]
    proprio: Mapping[str, tuple[Field, ...]]
    language: str
    drop_first: int = 0
    episode_id: tuple[str, ...] = ()


class TableStandardizer:
    """Reads raw episodes through one row."""

    def __init__(self, name: str, row: Row):
        self.name = name
        self.row = row

    def views(self, features: Iterable[str]) -> dict[str, str]:
        """View -> full name of its image column; UserError where the data set lacks it."""
        return {
            view: _known(self.name, column, features) for view, column in self.row.views.items()
        }

    def columns(self, features: Iterable[str]) -> set[str]:
        """Full names of the low-dimensional columns that `episode` reads; UserError if absent."""
        fields = [*self.row.action, *(f for group in self.row.proprio.values() for f in group)]
        wanted = [field.column for field in fields] + [self.row.language]
        names = {_known(self.name, column, features) for column in wanted}
        for column in self.row.episode_id:
            names.add(_known(self.name, column, features, "episode_metadata/"))
        return names

    def episode(self, columns: Mapping, length: int, where: str) -> episodes.Episode:
        """The episode in our nouns; `columns` are those named by `columns`."""
        keep = slice(self.row.drop_first, None)

        def vector(fields: tuple[Field, ...]) -> np.ndarray:
            parts = []
            for field in fields:
                column = columns[f"steps/{field.column}"]
                parts.append(column.reshape(length, -1)[keep, field.start : field.stop])
            return np.concatenate(parts, axis=1).astype(np.float32)

        if length <= self.row.drop_first:
            raise plugin.UserError(
                f"{where}: {length} steps, of which the row {self.name!r} drops the first "
                f"{self.row.drop_first}; remove this episode"
            )
        id_ = "#".join(str(columns[f"episode_metadata/{c}"]) for c in self.row.episode_id)
        return episodes.Episode(
            id=id_ or where,
            steps=np.arange(length)[keep],
            action=vector(self.row.action),
            proprio={group: vector(fields) for group, fields in self.row.proprio.items()},
            language=[text.strip() for text in columns[f"steps/{self.row.language}"][keep]],
            embodiment=self.row.embodiment,
            action_space=self.row.action_space,
        )


def _known(name: str, column: str, features: Iterable[str], prefix: str = "steps/") -> str:
    if prefix + column not in features:
        where = f"standardizer row {name!r}: the data set has no such column"
        known = [f.removeprefix(prefix) for f in features if f.startswith(prefix)]
        raise plugin.UserError(plugin.unknown(where, column, known))
    return prefix + column
