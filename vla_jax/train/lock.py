"""One run at a time in a workdir: a lock that the system lets go of when its process is dead."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator
from typing import TextIO

from vla_jax import plugin
from vla_jax.parallel import processes

FILE = "run.lock"


@contextlib.contextmanager
def hold(workdir: str) -> Iterator[None]:
    """Holds WORKDIR/run.lock (process 0 does, for all) and leaves neither it nor an empty folder.

    UserError, on every process, when another run holds it or nothing can be written there.
    """
    root, file, problem = pathlib.Path(workdir).absolute(), None, ""
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    if processes.first():
        try:
            file = _take(root)
        except plugin.UserError as error:
            problem = str(error)
    problem = processes.tell(problem)
    if problem:
        raise processes.KnownToAll(problem)
    try:
        yield
    finally:
        if file is not None:
            with contextlib.suppress(OSError):  # the folder was deleted meanwhile
                (root / FILE).unlink()
            file.close()
            for folder in made:
                with contextlib.suppress(OSError):  # it is not empty
                    folder.rmdir()


def _take(root: pathlib.Path) -> TextIO:
    """The open and locked file, with who holds it written into it."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        while True:
            file = open(root / FILE, "a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise plugin.UserError(_held(root, file)) from None
            # Whoever held it may have deleted the file between our two calls.
            if (root / FILE).exists() and os.path.samestat(
                os.fstat(file.fileno()), os.stat(root / FILE)
            ):
                break
            file.close()
        file.truncate(0)
        who = dict(pid=os.getpid(), host=socket.gethostname(), command=sys.argv)
        file.write(json.dumps(who | dict(since=time.strftime("%Y-%m-%d %H:%M:%S"))))
        file.flush()
    except OSError as error:
        raise plugin.UserError(
            f"--workdir {root}: nothing can be written there: {error}; choose another, or see to "
            "its rights and its disk"
        ) from error
    return file


def _held(root: pathlib.Path, file: TextIO) -> str:
    file.seek(0)
    try:
        who = json.loads(file.read())
        who = f"process {who['pid']} on {who['host']} since {who['since']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    file.close()
    return (
        f"--workdir {root}: {who} trains there, and two runs would overwrite each other's "
        f"checkpoints; wait for it, stop it, or choose another folder. (Who holds {FILE} is alive: "
        "a dead run leaves no lock.)"
    )
