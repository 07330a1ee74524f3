"""One run at a time in a workdir.

On a local disk the system lets go of the lock when its process is dead. A bucket has no such
system: there the lock is an object that only one can create, and that its holder renews while it
lives (a lease). Who finds one watches it, and takes it over when it has not changed for LEASE
seconds; no clocks are compared. A holder that finds another's lock in its place ends at once. Not
guaranteed: between these two moments, a holder that had stood still (a paused machine) may finish
a save that it had begun.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from absl import logging

from vla_jax import plugin, storage
from vla_jax.parallel import processes
from vla_jax.train import meta as metas

FILE = "run.lock"
RENEW = 10.0  # s between two signs of life
LEASE = 45.0  # s without one, after which a holder counts as dead
SETTLE = 3.0  # s after which the last of several that took a dead holder's lock is known


@contextlib.contextmanager
def hold(workdir: str) -> Iterator[None]:
    """Holds WORKDIR/run.lock (process 0 does, for all) and leaves neither it nor an empty folder.

    UserError, on every process, when another run holds it or nothing can be written there.
    """
    root, held, problem = metas.place(workdir), None, ""
    if storage.is_url(root):
        made, kind = [], _Lease
    else:
        made = [folder for folder in (root, *root.parents) if not storage.is_dir(folder)]
        kind = _File
    if processes.first():
        try:
            held = kind(root)
        except plugin.UserError as error:
            problem = str(error)
    problem = processes.tell(problem)
    if problem:
        raise processes.KnownToAll(problem)
    try:
        yield
    finally:
        if held is not None:
            held.release()
            for folder in made:
                with contextlib.suppress(OSError):  # it is not empty
                    os.rmdir(folder)


class _File:
    """The lock of a local folder: `flock`, which ends with its process."""

    def __init__(self, root: pathlib.PurePath):
        self._path = os.fspath(root / FILE)
        try:
            os.makedirs(root, exist_ok=True)
            self._file = self._take(root)
            self._file.truncate(0)
            self._file.write(json.dumps(_who()))
            self._file.flush()
        except OSError as error:
            raise _unwritable(root, error) from error

    def _take(self, root: pathlib.PurePath) -> TextIO:
        while True:
            file = open(self._path, "a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                held = _refused(root, file.read(), "a dead run leaves no lock.")
                file.close()
                raise held from None
            # Whoever held it may have deleted the file between our two calls.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self._path)):
                    return file
            file.close()

    def release(self) -> None:
        with contextlib.suppress(OSError):  # the folder was deleted meanwhile
            os.unlink(self._path)
        self._file.close()


class _Lease:
    """The lock of a bucket: an object with a token of its own, renewed by a thread."""

    def __init__(self, root: pathlib.PurePath):
        self._path, self._token, self._turn = root / FILE, secrets.token_hex(8), 0
        try:
            self._take(root)
        except plugin.UserError:
            raise
        except Exception as error:  # each file system has its own way to refuse
            raise _unwritable(root, error) from error
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._thread.start()

    def _take(self, root: pathlib.PurePath) -> None:
        if self._create():
            return
        now = seen = self._found()
        logging.info("%s is there; watching whether its holder is alive", self._path)
        until = time.monotonic() + LEASE
        while now is not None and now == seen and time.monotonic() < until:
            time.sleep(LEASE / 20)
            now = self._found()
        if now is not None and now != seen:
            raise _refused(root, now, f"a dead run's lock is taken over after {LEASE:g} s.")
        if now is not None:
            storage.remove(self._path)
        if self._create():
            time.sleep(SETTLE)  # another that saw the same may have removed ours
            if self._mine():
                return
        raise _refused(root, self._found() or b"", "it was quicker than this one.")

    def _create(self) -> bool:
        try:
            storage.create(self._path, self._content())
        except FileExistsError:
            return False
        return True

    def _content(self) -> bytes:
        self._turn += 1
        return json.dumps(_who() | dict(token=self._token, turn=self._turn)).encode()

    def _found(self) -> bytes | None:
        try:
            return storage.read(self._path)
        except plugin.UserError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            return None

    def _mine(self) -> bool:
        return self._token.encode() in (self._found() or b"")

    def _renew(self) -> None:
        while not self._done.wait(RENEW):
            try:
                found = self._found()
                if found is None and self._create():  # somebody has swept the bucket
                    continue
                if not self._mine():
                    self._lost()
                storage.write(self._path, self._content())
            except Exception as error:  # the network: once it is back, the lock is looked at first
                logging.warning("%s could not be renewed: %s", self._path, error)

    def _lost(self) -> None:
        print(
            f"{self._path} is another run's now: this one stood still for more than {LEASE:g} s "
            "and counted as dead. It ends, lest both write the same checkpoints",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    def release(self) -> None:
        self._done.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # it ends by itself, LEASE seconds later
            if self._mine():
                storage.remove(self._path)


def _who() -> dict:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return dict(pid=os.getpid(), host=socket.gethostname(), command=sys.argv, since=since)


def _refused(root: pathlib.PurePath, content: str | bytes, why: str) -> plugin.UserError:
    try:
        who = json.loads(content)
        who = f"process {who['pid']} on {who['host']} since {who['since']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return plugin.UserError(
        f"--workdir {root}: {who} trains there, and two runs would overwrite each other's "
        f"checkpoints; wait for it, stop it, or choose another folder. (Who holds {FILE} is alive: "
        f"{why})"
    )


def _unwritable(root: pathlib.PurePath, error: Exception) -> plugin.UserError:
    return plugin.UserError(
        f"--workdir {root}: nothing can be written there: {error}; choose another, or see to "
        "its rights and its disk"
    )
