"""One recorded episode as an .npz file, for `vla data dump`."""

from __future__ import annotations

import os

import numpy as np

from vla_jax import plugin, storage
from vla_jax.data import recordings


def dump(
    path: str | os.PathLike, episode: str | int, out: str | os.PathLike, split: str | None = None
) -> dict:
    """Writes every field of one episode to `out`; {"id", "number", "steps", "fields": {…}}.

    Names are the source's, nesting joined by `/`. Step fields have the step first, pictures are
    uint8 [T, height, width, 3], texts str. The file is there whole or not at all. Raises UserError
    where there is no such data set, split or episode, or `out` cannot be written.
    """
    if not str(out).endswith(".npz"):
        raise plugin.UserError(f"--out: got {out}, expected a name that ends in .npz")
    storage.check_parent("--out", out)
    source = recordings.raw(path, split)
    number = recordings.number(source, episode)
    arrays = source.episode(number)
    lengths = {len(arrays[name]) for name in recordings.step_fields(source) if name in arrays}
    if len(lengths) != 1:
        raise plugin.UserError(
            f"{path}: episode {number}: fields of {sorted(lengths)} steps, expected one length"
        )
    _write(out, arrays)
    return {
        "path": str(path),
        "out": str(out),
        "id": recordings.title(source, number),
        "number": number,
        "steps": lengths.pop(),
        "fields": {n: [str(a.dtype), list(a.shape)] for n, a in sorted(arrays.items())},
    }


def _write(out: storage.Path, arrays: dict[str, np.ndarray]) -> None:
    """np.load gives back the names as they are."""

    def save(path: str) -> None:
        with open(path, "wb") as file:  # savez adds an ending to a name that has none
            np.savez_compressed(file, **arrays)

    try:
        storage.write(out, save)
    except OSError as error:
        raise plugin.UserError(f"--out: {out}: {error.strerror}") from error
