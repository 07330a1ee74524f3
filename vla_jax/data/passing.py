"""Faults of the place, not of its content: what cannot be read now may be read another time.

Whatever is kept (a table, a cache) must not remember them: a far mount's one hiccup would hide
good data from every later run.
"""

from __future__ import annotations

import errno

from vla_jax import plugin

# Numbers of the system that say so; not those of a missing file, or of one that may not be read.
NUMBERS = frozenset({
    errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENOTCONN, errno.ENOMEM,
    errno.ENOBUFS, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH,
    errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET, errno.ECONNREFUSED,
    errno.ECONNABORTED,
})  # fmt: skip


class Passing(str):
    """What is said of an episode that was left out for a fault that may pass."""


def passes(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, is a read that may succeed later."""
    cause: BaseException | None = error
    while cause is not None:
        # Parsers raise OSError, too, for broken content: without a number of the system.
        lost = isinstance(cause, OSError) and cause.errno in NUMBERS
        if lost or isinstance(cause, TimeoutError | ConnectionError):
            return True
        cause = cause.__cause__
    return False


def fault(error: plugin.UserError) -> str:
    """The message of a fault; Passing where it `passes`."""
    return Passing(error) if passes(error) else str(error)
