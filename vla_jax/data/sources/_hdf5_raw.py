"""Whole episodes of HDF5 files, decoded, in their own names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.data import images
from vla_jax.data.sources._hdf5_folder import STEPS, Folder


class Raw:
    """A split's episodes (recordings.Raw); a data set's path is its name, below `steps/`.

    `skipped` says which files were passed over, and why.
    """

    kind = "HDF5"

    def __init__(self, folder: Folder, split: str, skipped: tuple[str, ...] = ()):
        self._folder, self._chosen = folder, folder.split(split)
        self.name, self.skipped = folder.name, skipped
        self.splits = {name: len(members) for name, members in folder.splits.items()}
        self.fields = {
            name: dict(kind=f.kind, shape=f.shape, dtype=f.dtype)
            for name, f in folder.features.items()
        }

    def __len__(self) -> int:
        return len(self._chosen)

    def ids(self) -> list[str]:
        """The file's name and the episode's in it."""
        return [self._folder.places[number].id for number in self._chosen]

    def episode(
        self,
        index: int,
        fields: Sequence[str] | None = None,
        steps: Sequence[int] | None = None,
    ) -> dict[str, np.ndarray]:
        """The fields of one episode; see recordings.Raw."""
        folder, number = self._folder, self._chosen[index]
        wanted = list(self.fields if fields is None else fields)
        for name in wanted:
            if name not in self.fields:
                raise plugin.UserError(plugin.unknown(f"{folder.path}: field", name, self.fields))
        shown = [name for name in wanted if self.fields[name]["kind"] == "image"]
        plain = folder.columns(number, [name for name in wanted if name not in shown])
        chosen = range(folder.length(number)) if steps is None and shown else steps
        found = {}
        for name in wanted:
            if name not in shown:
                found[name] = np.asarray(plain[name])
                continue
            where = f"{folder.places[number]}: {name.removeprefix(STEPS)}"
            stored = folder.pictures(number, name, list(chosen))
            pictures = [picture(data, f"{where}, step {s}") for s, data in zip(chosen, stored)]
            if len({p.shape for p in pictures}) > 1:
                raise plugin.UserError(f"{where}: pictures of several sizes")
            found[name] = np.stack(pictures)
        return found


def picture(data: bytes | np.ndarray, where: str) -> np.ndarray:
    """uint8 [height, width, 3] of what is stored; UserError, with `where`, for what is no image."""
    if isinstance(data, np.ndarray):
        return data
    try:
        return images.decode(data)
    except plugin.UserError as error:
        raise plugin.UserError(f"{where}: {error}") from error
