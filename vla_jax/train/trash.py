"""Saves that retention drops: out of sight at once, since half a save must not look like one.

A deletion takes time, and a run may be killed in the middle of it. So Orbax only moves a step's
folder to FOLDER beside the others, which is one rename, and it is deleted from there.
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import threading

FOLDER = ".deleted"


class Trash:
    """The dropped saves in a folder of steps; what a run that was killed has left goes at once."""

    def __init__(self, place: pathlib.Path):
        self._folder, self._thread = place / FOLDER, None
        self._work()

    def empty(self, wait: bool = False) -> None:
        """Begins to delete what lies there; training need not wait for that, unless for room."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="trash", daemon=True)
            self._thread.start()
        if wait:
            self._thread.join()
            self._work()  # what came since it began to look

    def close(self) -> None:
        """Returns when all is deleted."""
        if self._thread is not None:
            self._thread.join()
        self._work()
        with contextlib.suppress(OSError):  # there is none; or it is not ours to delete
            self._folder.rmdir()

    def _work(self) -> None:
        for dropped in self._folder.glob("*"):  # never the folder: Orbax may be moving to it
            shutil.rmtree(dropped, ignore_errors=True)
