"""What writers of data sets share: a hidden folder in the making, and episodes laid down in it.

    writers (any process) ─lay()─▶ .NAME.partial-…/spool/000000.pickle ─▶ …/built ─rename─▶ NAME

Until the rename there is nothing at NAME (or what was there before).
"""

from __future__ import annotations

import os
import pathlib
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from vla_jax import storage
from vla_jax.plugin import UserError

REPLACED = "replaced"
KEPT = "kept-"  # before the key of a folder that a rerun goes on from
CHUNK = 50  # episodes of an iterable that are laid down together


class Folder:
    """A folder in the making; as a context manager it leaves nothing half-written behind.

    Args:
      out: where it will be. Raises UserError when it is a file, or not empty and not `replaces`.
      name: of the data set; None = the folder's.
      replaces: whether a data set that is there already is to be taken up.
      key: None, or of a folder that a program that was killed may have begun.
    """

    def __init__(
        self,
        out: str | os.PathLike,
        name: str | None = None,
        replaces: bool = False,
        key: str | None = None,
    ):
        self.out = storage.local("--out", out).resolve()
        if replaces:
            _restore(self.out)
        self.old = self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir()))
        if self.old and (not replaces or not self.out.is_dir()):
            raise UserError(
                f"{self.out}: exists and is not empty; give another folder or remove it"
            )
        self.name = plain_name(name or self.out.name)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        if key is None:
            hidden = f".{self.out.name}.partial-"
            self.folder = pathlib.Path(tempfile.mkdtemp(prefix=hidden, dir=self.out.parent))
        else:
            self.folder = kept(out, key)
            self.folder.mkdir(exist_ok=True)
        self.built = self.folder / "built"
        self.spool = self.folder / "spool"
        self.spool.mkdir(exist_ok=True)

    def __enter__(self):
        """Itself."""
        return self

    def __exit__(self, *error) -> None:
        """Removes what is not part of the finished data set."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def publish(self) -> None:
        """Moves `built` to `out`, where it is seen whole or not at all."""
        for path in self.built.rglob("*"):
            if path.is_file():
                storage.flush(path)
        self.built.chmod(0o755)
        replaced = self.folder / REPLACED
        if self.old:
            self.out.rename(replaced)
        elif self.out.exists():
            self.out.rmdir()  # empty, as __init__ saw it
        try:
            self.built.rename(self.out)
        except BaseException:
            if self.old:
                replaced.rename(self.out)
            raise
        storage.flush(self.out.parent)


def kept(out: str | os.PathLike, key: str) -> pathlib.Path:
    """The hidden folder of a key, which a rerun goes on from."""
    place = storage.local("--out", out).resolve()
    return place.parent / f".{place.name}.partial-{KEPT}{key}"


def plain_name(name: str) -> str:
    """As an identifier may be."""
    return re.sub(r"\W+", "_", name.lower()).strip("_") or "episodes"


def lay(folder: str | os.PathLike, index: int, episodes: list[Mapping]) -> None:
    """Lays chunk `index` of the data set down; any process may, in any order."""
    path = pathlib.Path(folder) / f"{index:06d}.pickle"
    path.with_suffix(".partial").write_bytes(pickle.dumps(episodes, protocol=5))
    path.with_suffix(".partial").rename(path)


def chunks(episodes: Iterable[Mapping]) -> Iterator[tuple[int, list[Mapping]]]:
    """(number, at most CHUNK episodes), in order."""
    chunk, index = [], 0
    for episode in episodes:
        chunk.append(episode)
        if len(chunk) == CHUNK:
            yield index, chunk
            chunk, index = [], index + 1
    if chunk:
        yield index, chunk


def laid(folder: pathlib.Path) -> Iterator[Mapping]:
    """The episodes laid down, in order."""
    for path in sorted(folder.glob("*.pickle")):
        yield from pickle.loads(path.read_bytes())


def check(episode: Mapping) -> int:
    """T of an episode in our nouns; UserError when lengths, dtypes or values do not fit."""
    action = np.asarray(episode["action"])
    length = len(action)
    arrays = {"action": action, **{f"proprio/{g}": v for g, v in episode["proprio"].items()}}
    for key, value in arrays.items():
        if value.dtype != np.float32 or value.ndim != 2 or len(value) != length or length == 0:
            raise UserError(
                f"episode {key}: got {value.dtype} {value.shape}, expected float32 [{length}, …]"
            )
        if not np.all(np.isfinite(value)):
            where = np.flatnonzero(~np.isfinite(value).all(1)).tolist()
            raise UserError(f"episode {key}: not finite at steps {where}")
    for view, pictures in episode["images"].items():
        if len(pictures) != length:
            raise UserError(f"episode images/{view}: {len(pictures)} pictures, expected {length}")
    return length


def _restore(out: pathlib.Path) -> None:
    """Brings back what a writer that was killed between its two renames had put aside."""
    for replaced in out.parent.glob(f".{out.name}.partial-*/{REPLACED}"):
        if not out.exists():
            replaced.rename(out)
