"""Pictures as they should be seen, whatever way a data set stored them.

How pictures lie is a property of the data set: a standardizer's row says it (Row.turned, Row.bgr),
the table of episodes carries it (Episodes.looks), and every source lays `upright` over its own
reader. Whoever reads by the row (samples, goals, caches, tools, conversions) sees them upright.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.data import images
from vla_jax.data.episodes import Episodes, FrameReader


@dataclasses.dataclass(frozen=True)
class Upright:
    """A FrameReader: views that were stored otherwise are decoded and set right.

    Attributes:
      table: whose rows `stored` knows.
      stored: the source's reader.
      method: by which pictures are decoded, see images.decode.
    """

    table: Episodes
    stored: FrameReader
    method: str = "area"

    def __call__(self, view: str, episode: int, rows: Sequence[int]) -> list[bytes | np.ndarray]:
        """See episodes.FrameReader. UserError for a broken picture that has to be decoded."""
        found, look = self.stored(view, episode, rows), self.table.looks.get(view, ())
        if not look:
            return found
        return [
            self._seen(data, look, view, int(row)) if len(data) else data
            for data, row in zip(found, rows, strict=True)
        ]

    def _seen(self, data, look: Sequence[str], view: str, row: int) -> np.ndarray:
        try:
            image = images.decode(data, self.method) if isinstance(data, bytes) else data
        except plugin.UserError as error:
            place = self.table.place(view, row)
            raise plugin.UserError(f"{self.table.where}: {place}: {error}") from error
        image = image[::-1, ::-1] if "turned" in look else image
        return np.ascontiguousarray(image[..., ::-1] if "bgr" in look else image)


def upright(table: Episodes, stored: FrameReader) -> FrameReader:
    """The reader of a source's pictures as they should be seen; `stored` itself if they are so."""
    return Upright(table, stored) if table.looks else stored


def decoded(read: FrameReader, method: str) -> FrameReader:
    """The same reader; what it has to decode is decoded by `method` of images.decode."""
    return dataclasses.replace(read, method=method) if isinstance(read, Upright) else read
