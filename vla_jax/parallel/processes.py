"""Several processes, one computation: joining `jax.distributed` where a launcher asks for it."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from absl import logging
from jax._src import (
    cloud_tpu_init,  # whether this machine has TPUs, before they are taken
    distributed,  # its store and barriers have no public door; Orbax uses it too
)

from vla_jax import plugin
from vla_jax.parallel import endings, launchers, watch

HEARTBEAT = 45  # seconds until jax itself gives a process up; `watch.SILENCE` comes before
SHUTDOWN = 300  # seconds that a process which has ended well waits for the others' end
ADDRESS = 300  # seconds until process 0's host must have an address
HOUR = 3600 * 1000  # ms; nobody waits so long, since the death of a process is noticed

PATIENCE = HOUR  # ms that the first run of a program waits for those who still compile it
SHOWN = 5  # differences of a process that are spelled out
NAMES = "vla_jax/name"  # / number: what a process is called

_watch: watch.Watch | None = None
_told, _met = itertools.count(), itertools.count()


class KnownToAll(plugin.UserError):
    """A mistake that every process has found and ends with: none is missed by the others."""


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

    When a process dies, the others say which, and end with exit code `watch.LOST`. When its block
    raises they say why, and end with its own code, `endings.MISTAKE` after a UserError and
    `watch.FAILED` after any other: begun again, it would end the same. See `watch.py`.
    """
    global _watch
    initialize()
    if jax.process_count() > 1:
        distributed.global_state.client.key_value_set(f"{NAMES}/{jax.process_index()}", name())
        host = distributed.global_state.coordinator_address.rsplit(":", 1)[0].strip("[]")
        if first():
            _watch = watch.Watch(0, host)
        address = tell(_watch.address if first() else "")
        if not first():
            _watch = watch.Watch(jax.process_index(), host, address)
        atexit.register(_watch.linger)
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
    if isinstance(error, KnownToAll) and _watch is not None:
        _watch.leave()
    elif error is not None and _watch is not None:
        mistake = isinstance(error, plugin.UserError)
        said = f"vla: {error}\n" if mistake else "".join(traceback.format_exception(error))
        _watch.failed(
            f"{kind.__name__}: {error}", endings.MISTAKE if mistake else watch.FAILED, said
        )


def tell(text: str) -> str:
    """What process 0 gave, on every process; all must call it, and equally often."""
    if jax.process_count() == 1:
        return text
    key, store = f"vla_jax/tell/{next(_told)}", distributed.global_state.client
    if first():
        store.key_value_set(key, f"={text}")  # an empty value is refused
    return store.blocking_key_value_get(key, HOUR)[1:]


def differences(facts: Mapping[str, str]) -> str:
    """What the processes do not agree about, named by host, the same text on each; "" if nothing.

    All must call it, and equally often.
    """
    if jax.process_count() == 1:
        return ""
    key, store = f"vla_jax/facts/{next(_told)}", distributed.global_state.client
    if not first():
        store.key_value_set(f"{key}/{jax.process_index()}", json.dumps([name(), dict(facts)]))
        return tell("")
    found = []
    for number in range(1, jax.process_count()):
        theirs = store.blocking_key_value_get(f"{key}/{number}", HOUR)
        who, theirs = json.loads(theirs)
        names = [each for each in {**facts, **theirs} if facts.get(each) != theirs.get(each)]
        lines = [
            f"  {each}: {theirs.get(each, 'absent')} there, {facts.get(each, 'absent')} here"
            for each in names[:SHOWN]
        ]
        more = [f"  and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
        found += [f"{who}, compared with {name()}:", *lines, *more] if names else []
    return tell("\n".join(found))


def meet(what: str) -> None:
    """Returns when every process has come here; all must call it, and equally often.

    TimeoutError after `PATIENCE`, on every process, that names those who have not come.
    """
    if jax.process_count() == 1:
        return
    store, key = distributed.global_state.client, f"vla_jax/meet/{next(_met)}"
    store.key_value_set(f"{key}/{jax.process_index()}", name())
    try:
        store.wait_at_barrier(key, PATIENCE)
    except jax.errors.JaxRuntimeError as error:
        come, names = _numbered(key), _numbered(NAMES)
        away = [names.get(n, f"process {n}") for n in range(jax.process_count()) if n not in come]
        # Said once, by the first that knows: by now who was late may have come.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            store.key_value_set(f"{key}/away", ", ".join(away) or f"none, but {error}")
        raise TimeoutError(
            f"{what}: within {PATIENCE / 1000:g} s these have not come: "
            f"{store.blocking_key_value_get(f'{key}/away', HOUR)}; see what they say or do"
        ) from error


def _numbered(key: str) -> dict[int, str]:
    """{number of a process: what it has left below `key`}."""
    left = distributed.global_state.client.key_value_dir_get(key)
    named = ((path.rsplit("/", 1)[1], text) for path, text in left)
    return {int(number): text for number, text in named if number.isdigit()}


def beginning_together(program: Any, what: str) -> Callable[..., Any]:
    """`program` (of jax.jit) such that the first run of what it compiles to waits for all.

    Gloo, which carries the collectives between CPUs, gives a peer 30 s to come to the first one,
    and processes compile for very different times: one may find the program in its cache, another
    may have a busy machine. `what` is the program's name in errors, see `meet`.
    """
    if jax.process_count() == 1:
        return program
    compiled: dict[Any, Any] = {}

    def run(*arguments):
        leaves, structure = jax.tree.flatten(arguments)
        key = (structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        if key not in compiled:
            compiled[key] = program.lower(*arguments).compile()
            meet(what)
        return compiled[key](*arguments)

    return run


def name() -> str:
    """What people are told this process is."""
    return watch.name(jax.process_index())


def first() -> bool:
    """Whether this process writes what only one may write."""
    return jax.process_index() == 0
