"""``checksums.json`` in a step's folder: the size and SHA-256 of every file a save has written.

Written by one thread of process 0 when the save has been committed, so that training does not wait;
a save that was killed before has none, and is verified by reading its arrays alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import queue
import threading
from typing import Any

from vla_jax import plugin, storage
from vla_jax.train import meta as metas

FILE = "checksums.json"
CHUNK = 2**22  # bytes read at once


class Writer:
    """Writes the checksums of the folders added as soon as they appear under their final names."""

    def __init__(self):
        self._folders: queue.Queue[pathlib.PurePath | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def add(self, folder: pathlib.PurePath) -> None:
        """Takes a step's folder that is being saved."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="checksums", daemon=True)
            self._thread.start()
        self._folders.put(folder)

    def finish(self) -> None:
        """Returns when all are written; call it when the saves have ended.

        UserError when one could not be written.
        """
        if self._thread is None:
            return
        self._folders.put(None)  # what has not appeared by now never will
        self._thread.join()
        self._thread = None
        if self._error is not None:
            raise plugin.UserError(f"{FILE} could not be written: {self._error}")

    def _work(self) -> None:
        waiting: list[pathlib.PurePath] = []
        ended = False
        while not ended:
            pause = None  # s; none waits: until one comes
            if waiting:
                pause = 2.0 if storage.is_url(waiting[0]) else 0.1
            with contextlib.suppress(queue.Empty):
                folder = self._folders.get(timeout=pause)
                ended = folder is None
                waiting += [] if ended else [folder]
            waiting = [folder for folder in waiting if not self._settled(folder)]

    def _settled(self, folder: pathlib.PurePath) -> bool:
        """Whether it need not be waited for any longer: written, or dropped by the retention."""
        if not metas.is_complete(folder):
            newer = [step for step in metas.steps(folder.parent) if step > int(folder.name)]
            if not newer:  # saves end in their order
                return False
        try:
            if metas.is_complete(folder):
                write(folder)
        except (OSError, plugin.UserError) as error:
            if metas.is_complete(folder):  # else the retention has dropped it meanwhile
                self._error = error
        return True


def write(folder: pathlib.PurePath) -> None:
    """Writes ``checksums.json`` of all files below `folder`, whole or not at all.

    FileNotFoundError when the folder goes meanwhile: it is not made again, a step without arrays.
    """
    found = {name: _of(folder / name) for name in _files(folder)}
    storage.write(folder / FILE, json.dumps(found, indent=1, sort_keys=True), make=False)
    if storage.is_url(folder) and not metas.is_complete(folder):  # there a file is its folder
        storage.remove(folder / FILE)


def check(folder: pathlib.PurePath) -> list[str] | None:
    """What differs from ``checksums.json``, one line per file; None where there is no such file."""
    if not storage.is_file(folder / FILE):
        return None
    try:
        expected = json.loads(storage.read(folder / FILE))
    except ValueError as error:
        return [f"{FILE}: no JSON ({error})"]
    found = set(_files(folder))
    wrong = [f"{name}: is missing" for name in sorted(set(expected) - found)]
    wrong += [f"{name}: was not there when it was saved" for name in sorted(found - set(expected))]
    for name in sorted(found & set(expected)):
        got = _of(folder / name)
        if got != expected[name]:
            sizes = [entry["bytes"] for entry in (expected[name], got)]
            what = f"{sizes[0]} bytes were written, it has {sizes[1]}"
            wrong.append(f"{name}: {what if sizes[0] != sizes[1] else 'its content has changed'}")
    return wrong


def _files(folder: pathlib.PurePath) -> list[str]:
    """The files below a folder, by path from there; not the checksums themselves."""
    own = (FILE, f".{FILE}.partial-")  # the second: what a killed writer left
    return [name for name in storage.sizes(folder) if not name.startswith(own)]


def _of(path: pathlib.PurePath) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with storage.reader(path) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}
