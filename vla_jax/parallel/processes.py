"""Several processes, one computation: joining `jax.distributed` where a launcher asks for it."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

import jax
from jax._src import distributed  # its key-value store has no public door; Orbax uses it too

from vla_jax.parallel import watch

LAUNCHERS = ("SLURM_JOB_ID", "TPU_WORKER_HOSTNAMES", "JOBSET_NAME", "OMPI_MCA_orte_hnp_uri")
HEARTBEAT = 45  # seconds until jax itself gives a process up; `watch.SILENCE` comes before
SHUTDOWN = 300  # seconds that a process which has ended well waits for the others' end
HOUR = 3600 * 1000  # ms; nobody waits so long, since the death of a process is noticed

_watch: watch.Watch | None = None
_told = itertools.count()


def initialize() -> None:
    """Joins the other processes of this run; does nothing when this is the only one.

    `launch/local.py` sets VLA_COORDINATOR (host:port), VLA_PROCESSES and VLA_PROCESS; on SLURM,
    GKE and Cloud TPU jax finds the others by itself. Call it before anything touches the devices.
    """
    limits = dict(heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=SHUTDOWN)
    if "VLA_COORDINATOR" in os.environ:
        jax.distributed.initialize(
            os.environ["VLA_COORDINATOR"],
            num_processes=int(os.environ["VLA_PROCESSES"]),
            process_id=int(os.environ["VLA_PROCESS"]),
            **limits,
        )
    elif any(name in os.environ for name in LAUNCHERS) and "VLA_SINGLE" not in os.environ:
        jax.distributed.initialize(**limits)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Joins the others for the work in the block: none of them waits for one that is gone.

    When a process dies or its block raises, the others say which and why, and end with exit code
    `watch.LOST`. See `watch.py`.
    """
    global _watch
    initialize()
    if jax.process_count() > 1:
        host = distributed.global_state.coordinator_address.rsplit(":", 1)[0].strip("[]")
        if first():
            _watch = watch.Watch(0, host)
        address = tell(_watch.address if first() else "")
        if not first():
            _watch = watch.Watch(jax.process_index(), host, address)
    try:
        yield
    except BaseException as error:
        note_error(type(error), error, None)
        raise
    if _watch is not None:
        _watch.leave()


def note_error(kind: type | None, error: BaseException | None, _) -> None:
    """Tells the others of an error on its way out, before what it leaves may wait for them.

    Has the arguments of `__exit__`, for `ExitStack.push`.
    """
    if error is not None and _watch is not None:
        _watch.failed(f"{kind.__name__}: {error}")


def tell(text: str) -> str:
    """What process 0 gave, on every process; all must call it, and equally often."""
    if jax.process_count() == 1:
        return text
    key, store = f"vla_jax/tell/{next(_told)}", distributed.global_state.client
    if first():
        store.key_value_set(key, f"={text}")  # an empty value is refused
    return store.blocking_key_value_get(key, HOUR)[1:]


def first() -> bool:
    """Whether this process writes what only one may write."""
    return jax.process_index() == 0
