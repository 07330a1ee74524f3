"""How a training has ended, and what a launcher makes of it: one rule for all of them.

| exit code | the launcher |
|---|---|
| 0 | is done |
| 75: asked to stop, and saved | begins it again, at no cost |
| 76: another process is gone; a process that was killed by a signal | begins it again, and counts |
| 1, 2 and all others: a bug, a mistake | stops: begun again, it would end the same |

What is counted is bounded: what kills a training may kill it each time (memory, a bug in C++).
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterable, Sequence

from vla_jax.parallel import watch

MISTAKE = 2  # of a command that ends with a UserError, on every host
PREEMPTED = 75  # of a training that was asked to stop: saved, run me again
SIGNALS = ("SIGILL", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL", "SIGSEGV", "SIGTERM")
# As a shell gives them; 134 also when jax aborts a process because process 0 is dead. SLURM keeps
# 253 for a step that had no memory left.
KILLED = (*sorted(128 + getattr(signal, name) for name in SIGNALS), 253)
COUNTED = (watch.LOST, *KILLED)


def of(codes: Iterable[int]) -> int:
    """The code that tells most, of those of all processes: one's own error, then a death."""
    found = [code for code in codes if code]
    own = [code for code in found if code not in (PREEMPTED, *COUNTED)]
    killed = [code for code in found if code in KILLED]
    return (own or killed or found or [0])[0]


def workdir(words: Sequence[str]) -> str | None:
    """What `--workdir` says among the arguments of vla train; ValueError where it says nothing."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--workdir")
    try:
        return parser.parse_known_args(list(words))[0].workdir
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error


class Tries:
    """How often in a row a training was begun again without a newer checkpoint.

    `begun` is the train_step of the newest one when it began, -1 for none.
    """

    def __init__(self, most: int, begun: int, count: int = 0):
        self.most, self.begun, self.count = most, begun, count

    def again(self, code: int, newest: int) -> bool:
        """Whether to begin again after `code`, when the newest checkpoint is of `newest`."""
        if code in COUNTED:
            self.count = 0 if newest > self.begun else self.count + 1
        self.begun = newest
        return code == PREEMPTED or code in COUNTED and self.count <= self.most
