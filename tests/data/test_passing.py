"""Which faults may pass: those of the place, by their kind or number, wherever in the chain."""

import errno

import pytest

from vla_jax import plugin
from vla_jax.data import passing


def raised(cause):
    try:
        try:
            raise plugin.UserError("a.hdf5: cannot be read") from cause
        except plugin.UserError as error:
            raise plugin.UserError(f"{error} (episode 3)") from error
    except plugin.UserError as error:
        return error


@pytest.mark.parametrize(
    "cause, passes",
    [
        *((OSError(n, "x"), True) for n in (errno.EIO, errno.ESTALE, errno.EMFILE)),
        *((kind("x"), True) for kind in (TimeoutError, ConnectionResetError)),
        *(
            (OSError(getattr(errno, n), "x"), False)
            for n in ("EACCES", "EISDIR", "ENOENT", "EPERM")
        ),
        *((OSError(getattr(errno, n), "x"), False) for n in ("ENAMETOOLONG", "EINVAL", "EFBIG")),
        (OSError("no gzip"), False),
        (ValueError("no picture"), False),
        (None, False),
    ],
    ids=repr,
)
def test_a_fault_of_the_place_passes_and_one_of_the_content_does_not(cause, passes):
    error = raised(cause)
    told = passing.fault(error)
    assert (passing.passes(error), isinstance(told, passing.Passing)) == (passes, passes)
    assert told == "a.hdf5: cannot be read (episode 3)"
