"""A data set as its standardizer has it, in the names of our own format (docs/native_rlds.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.data import images, recordings
from vla_jax.data.sources import _rlds_table
from vla_jax.data.standardizers import native
from vla_jax.types import SourceContext

ACTION, LANGUAGE = "steps/action", "steps/language_instruction"
FLAGS = {
    "steps/is_first": "bool",
    "steps/is_last": "bool",
    "steps/is_terminal": "bool",
    "steps/reward": "float32",
    "steps/discount": "float32",
}
SCALARS = (str, bool, int, float, np.bool_, np.integer, np.floating)
GREY = 127  # of a picture that was not taken


class Standardized:
    """Episodes in our nouns through the seam of recorded ones (recordings.Raw).

    Args:
      path: the data set.
      split: one that `recordings.recorded` takes; None: `train`.
      standardizer: as `recordings.standardizer` reads it, "oxe:bridge".
      bad_episodes: "error", or "skip" to leave out, and name in `skipped`, those that do not fit.

    `made_by` changes with the standardizer's row and with the code that reads it. Raises UserError
    as `recordings.recorded` does.
    """

    kind = "standardized"

    def __init__(
        self, path: str, split: str | None, standardizer: str, bad_episodes: str = "error"
    ):
        spec = recordings.standardizer(standardizer)
        self.made_by = _made_by(path, spec)
        self.splits = recordings.raw(path, None, bad_episodes).splits
        split = split or recordings.default_split(self.splits)
        how = dict(standardizer=spec, split=split, bad_samples=bad_episodes)
        table, self._read = recordings.recorded(path, **how)
        self._table, self.name, self.skipped = table, table.name, table.skipped
        self._metadata = {
            name: list(values)
            for name, values in table.metadata.items()
            if all(isinstance(value, SCALARS) for value in values)
        }
        self._metadata |= {
            "episode_id": list(table.ids),
            "embodiment": [table.embodiment] * len(table),
            "action_space": [table.action_space] * len(table),
        }
        self.fields = {**self._step_fields(), **self._episode_fields()}

    def __len__(self) -> int:
        return len(self._table)

    @property
    def stride(self) -> int:
        """How many recorded steps lie between two that the standardizer keeps."""
        gaps = np.delete(np.diff(self._table.step), np.asarray(self._table.start[1:-1]) - 1)
        return int(gaps.min()) if len(gaps) else 1

    def ids(self) -> list[str]:
        """What the standardizer calls each episode."""
        return list(self._table.ids)

    def episode(
        self,
        index: int,
        fields: Sequence[str] | None = None,
        steps: Sequence[int] | None = None,
    ) -> dict[str, np.ndarray]:
        """The fields of one episode; see recordings.Raw."""
        found = {}
        for name in self.fields if fields is None else fields:
            if name not in self.fields:
                where = f"{self._table.where}: field"
                raise plugin.UserError(plugin.unknown(where, name, self.fields))
            found[name] = self._value(name, index, steps)
        return found

    def _value(self, name: str, index: int, steps) -> np.ndarray:
        table = self._table
        rows = slice(int(table.start[index]), int(table.start[index + 1]))
        if name == ACTION:
            return np.asarray(table.action[rows])
        if name == LANGUAGE:
            said = [table.language[i] if i >= 0 else "" for i in table.language_index[rows]]
            return np.asarray(said)
        if name in FLAGS:
            return self._flag(name.removeprefix("steps/"), index, rows.stop - rows.start)
        if name.startswith(native.PROPRIO):
            return np.asarray(table.proprio[name.removeprefix(native.PROPRIO)][rows])
        if name.startswith(native.IMAGE_MASKS):
            return table.frames[name.removeprefix(native.IMAGE_MASKS)].length[rows] > 0
        if name.startswith(native.IMAGES):
            chosen = np.arange(rows.start, rows.stop)[slice(None) if steps is None else steps]
            return self._pictures(name, index, chosen.tolist())
        said = name.removeprefix(native.METADATA)
        if said.startswith("camera/"):
            return np.asarray(table.cameras[said.removeprefix("camera/")][index])
        return np.asarray(self._metadata[said][index])

    def _flag(self, name: str, index: int, length: int) -> np.ndarray:
        """RLDS' own columns, as our writer fills them (writers/rlds.py)."""
        step = np.arange(length)
        if name == "discount":
            return np.ones(length, np.float32)
        if name in ("is_first", "is_last"):
            return step == (0 if name == "is_first" else length - 1)
        success = bool(self._metadata.get("success", [False] * len(self))[index])
        ended = (step == length - 1) & success
        return ended if name == "is_terminal" else ended.astype(np.float32)

    def _pictures(self, name: str, index: int, rows: list[int]) -> np.ndarray:
        view = name.removeprefix(native.IMAGES)
        where = f"{self._table.where}: episode {self._table.ids[index]}, {view}"
        made = []
        for row, data in zip(rows, self._read(view, index, rows), strict=True):
            try:
                decoded = images.decode(data) if isinstance(data, bytes) and data else data
            except plugin.UserError as error:
                place = self._table.place(view, row)
                raise plugin.UserError(f"{self._table.where}: {place}: {error}") from error
            made.append(decoded)
        shapes = {image.shape for image in made if not isinstance(image, bytes)}
        if len(shapes) > 1:
            raise plugin.UserError(f"{where}: pictures of several sizes {sorted(shapes)}")
        shape = shapes.pop() if shapes else self._size(view, index)
        grey = np.full(shape, GREY, np.uint8)
        return np.stack([grey if isinstance(image, bytes) else image for image in made])

    def _size(self, view: str, index: int) -> tuple[int, ...]:
        """That of the episode's first picture, else of the data set's."""
        start, length = self._table.start, self._table.frames[view].length
        for number in (index, *range(len(self))):
            there = np.flatnonzero(length[start[number] : start[number + 1]])
            if len(there):
                data = self._read(view, number, [int(start[number] + there[0])])[0]
                return (images.decode(data) if isinstance(data, bytes) else data).shape
        raise plugin.UserError(f"{self._table.where}: view {view}: not one picture")

    def _step_fields(self) -> dict:
        table = self._table
        found = {ACTION: _tensor(table.action), LANGUAGE: _text()}
        found |= {name: dict(kind="tensor", shape=(), dtype=d) for name, d in FLAGS.items()}
        found |= {native.PROPRIO + g: _tensor(v) for g, v in table.proprio.items()}
        for view, frames in table.frames.items():
            found[native.IMAGES + view] = dict(kind="image", shape=(-1, -1, 3), dtype="uint8")
            if not np.all(frames.length):
                found[native.IMAGE_MASKS + view] = dict(kind="tensor", shape=(), dtype="bool")
        return found

    def _episode_fields(self) -> dict:
        found = {}
        for name, values in self._metadata.items():
            dtype = np.asarray(values[0]).dtype.name if values else "str"
            text = values and isinstance(values[0], str)
            found[native.METADATA + name] = (
                _text() if text else dict(kind="tensor", shape=(), dtype=dtype)
            )
        for view, values in self._table.cameras.items():
            found[f"{native.METADATA}camera/{view}"] = _tensor(values)
        return found


def opened(
    path: str, split: str | None, standardizer: str | None = None, bad_episodes: str = "error"
) -> recordings.Raw:
    """The episodes of a split as recorded or, with a standardizer, in our nouns and upright.

    Raises UserError as `recordings.raw` and `Standardized` do.
    """
    if standardizer is None:
        return recordings.raw(path, split, bad_episodes)
    return Standardized(str(path), split, standardizer, bad_episodes)


def _made_by(path: str, spec: str | Mapping) -> list[str]:
    spec = {"type": spec} if isinstance(spec, str) else spec
    built = plugin.build("data.standardizers", spec, SourceContext(name=path, stream=""))
    return [_rlds_table.described(built), _rlds_table.code(built)]


def _tensor(values: np.ndarray) -> dict:
    return dict(kind="tensor", shape=tuple(values.shape[1:]), dtype=values.dtype.name)


def _text() -> dict:
    return dict(kind="text", shape=(), dtype="string")
