"""Several processes, one computation: joining `jax.distributed` where a launcher asks for it."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Iterator

import jax
from absl import logging
from jax._src import (
    cloud_tpu_init,  # whether this machine has TPUs, before they are taken
    distributed,  # its key-value store has no public door; Orbax uses it too
)

from vla_jax import plugin
from vla_jax.parallel import launchers, watch

HEARTBEAT = 45  # seconds until jax itself gives a process up; `watch.SILENCE` comes before
SHUTDOWN = 300  # seconds that a process which has ended well waits for the others' end
ADDRESS = 300  # seconds until process 0's host must have an address
HOUR = 3600 * 1000  # ms; nobody waits so long, since the death of a process is noticed

_watch: watch.Watch | None = None
_told = itertools.count()


def initialize() -> None:
    """Joins the other processes of this run; does nothing when this is the only one.

    `launchers.find` says which one this is; on a Cloud TPU machine where nothing does, jax asks the
    machine's metadata. Call it before anything touches the devices. UserError for an environment
    that is half set, and where process 0's host has no address.
    """
    limits = dict(heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=SHUTDOWN)
    seat = launchers.find(os.environ)
    if seat is None:
        if _asks_metadata():
            jax.distributed.initialize(**limits)
        return
    logging.info("process %d of %d, by %s", seat.process, seat.processes, seat.launcher)
    if seat.coordinator is None:
        jax.distributed.initialize(**limits)
        return
    _await_address(seat.coordinator.rsplit(":", 1)[0].strip("[]"))
    jax.distributed.initialize(
        seat.coordinator,
        num_processes=seat.processes,
        process_id=seat.process,
        local_device_ids=seat.devices,
        cluster_detection_method="deactivate",  # else jax looks at the variables again
        **limits,
    )


def _asks_metadata() -> bool:
    """Whether this is a Cloud TPU machine whose TPUs are to be used, and nobody said anything."""
    single = os.environ.get("VLA_SINGLE", "0") not in ("", "0")
    platforms = os.environ.get("JAX_PLATFORMS", "tpu")
    # The first: GKE has said that there is one host. The second: there is no metadata.
    said = "TPU_WORKER_HOSTNAMES" in os.environ or "TPU_SKIP_MDS_QUERY" in os.environ
    return cloud_tpu_init.running_in_cloud_tpu_vm and "tpu" in platforms and not (single or said)


def _await_address(host: str) -> None:
    """Returns when `host` has an address: a pod gets its name some time after it has begun."""
    limit = time.monotonic() + ADDRESS
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except socket.gaierror as error:
            if time.monotonic() > limit:
                raise plugin.UserError(
                    f"process 0's host {host!r} has no address after {ADDRESS} s ({error}); does "
                    "it run, and is the headless service there?"
                ) from error
            time.sleep(1.0)


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
