"""Several processes, one computation: joining `jax.distributed` where a launcher asks for it."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import itertools
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

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
# Seconds to join: until process 0's host has an address, and then until all have come. A cluster
# that begins a run again takes many minutes from its first host to its last: nodes are made, images
# read.
JOIN = 1800
PATIENCE = 900.0  # seconds that a process waits for one that lives but does not come
GRACE = 10.0  # and so long more, for that one to say itself where it hangs
SHOWN = 5  # differences of a process that are spelled out
NAMES = "vla_jax/name"  # / number: what a process is called
WAITS = "vla_jax/waits"  # / number: it has waited for the others for too long

_watch: watch.Watch | None = None
_told, _met = itertools.count(), itertools.count()


class KnownToAll(plugin.UserError):
    """A mistake that every process has found and ends with: none is missed by the others."""


class NotCome(TimeoutError):
    """Another process lives, but has not done its part within PATIENCE; again, it may go well."""


def initialize() -> None:
    """Joins the other processes of this run; does nothing when this is the only one.

    `launchers.find` says which one this is; on a Cloud TPU machine where nothing does, jax asks the
    machine's metadata. Call it before anything touches the devices. UserError for an environment
    that is half set; where the others do not come, it ends the process with `watch.LOST`.
    """
    seat = launchers.find(os.environ)
    if seat is not None:
        logging.info("process %d of %d, by %s", seat.process, seat.processes, seat.launcher)
    elif not _asks_metadata():
        return
    if seat is not None and seat.coordinator is not None:
        _await_address(seat.coordinator.rsplit(":", 1)[0].strip("[]"))
    # jax itself ends with an abort and a page of addresses, so it is not to come first.
    text = f"within {JOIN} s not all processes have come; see what the others say or do"
    timer = threading.Timer(JOIN, _lost, (text,))
    timer.daemon = True
    timer.start()
    try:
        _join(seat)
    finally:
        timer.cancel()


def _join(seat: launchers.Seat | None) -> None:
    limits = dict(heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=SHUTDOWN)
    limits |= dict(initialization_timeout=JOIN + 60)  # `initialize` comes before
    if seat is None or seat.coordinator is None:
        jax.distributed.initialize(**limits)
        return
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
    limit = time.monotonic() + JOIN
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except socket.gaierror as error:
            if time.monotonic() > limit:
                _lost(
                    f"process 0's host {host!r} has no address after {JOIN} s ({error}); does it "
                    "run, and is the headless service there?"
                )
            time.sleep(1.0)


def _lost(text: str) -> NoReturn:
    """Ends this process, which waits where nothing comes: begun again, all may go well."""
    try:
        print(f"vla: {text} (exit code {watch.LOST})", file=sys.stderr, flush=True)
        sys.stdout.flush()
    finally:  # whoever read what this says may be gone
        os._exit(watch.LOST)


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
        try:
            address = tell(_watch.address if first() else "")
        except NotCome as error:  # nobody is watched yet who could be told
            _lost(str(error))
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
        code = endings.MISTAKE if mistake else watch.FAILED
        _watch.failed(
            f"{kind.__name__}: {error}", watch.LOST if isinstance(error, NotCome) else code, said
        )


def tell(text: str) -> str:
    """What process 0 gave, on every process; all must call it, and equally often."""
    if jax.process_count() == 1:
        return text
    key, store = f"vla_jax/tell/{next(_told)}", distributed.global_state.client
    if first():
        store.key_value_set(key, f"={text}")  # an empty value is refused
    return _get(store, key, 0)[1:]


def _get(store: Any, key: str, number: int) -> str:
    """What process `number` puts at a key; NotCome, which names it, after PATIENCE."""
    try:
        return store.blocking_key_value_get(key, round(PATIENCE * 1000))
    except jax.errors.JaxRuntimeError as error:
        who = _numbered(NAMES).get(number, f"process {number}")
        raise NotCome(
            f"nothing came from {who} within {PATIENCE:g} s; see what it says or does"
        ) from error


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
        theirs = _get(store, f"{key}/{number}", number)
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

    NotCome after PATIENCE, on every process, that names those who have not come.
    """
    if jax.process_count() == 1:
        return
    store, key = distributed.global_state.client, f"vla_jax/meet/{next(_met)}"
    store.key_value_set(f"{key}/{jax.process_index()}", name())
    try:
        store.wait_at_barrier(key, round(PATIENCE * 1000))
    except jax.errors.JaxRuntimeError as error:
        away = _absent(key)
        # Said once, by the first that knows: by now who was late may have come.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            store.key_value_set(f"{key}/away", ", ".join(away) or f"none, but {error}")
        raise NotCome(
            f"{what}: within {PATIENCE:g} s these have not come: "
            f"{store.blocking_key_value_get(f'{key}/away', 60_000)}; see what they say or do"
        ) from error


def _numbered(key: str) -> dict[int, str]:
    """{number of a process: what it has left below `key`}."""
    left = distributed.global_state.client.key_value_dir_get(key)
    named = ((path.rsplit("/", 1)[1], text) for path, text in left)
    return {int(number): text for number, text in named if number.isdigit()}


def _absent(key: str) -> list[str]:
    """The names of the processes that have left nothing below `key`."""
    come, names = _numbered(key), _numbered(NAMES)
    return [names.get(n, f"process {n}") for n in range(jax.process_count()) if n not in come]


class Progress:
    """Ends the run when a process lives but does not move on: its watcher would beat for ever.

    The one that hangs in its own work says so, with its stack, after `patience` seconds. Those that
    wait for others come `GRACE` later, and name who does not say that it waits too (it may be
    stopped). All end with exit code `watch.LOST`; so does a process that is alone, with its stack.
    It sets what `meet` and the like wait, too.
    """

    def __init__(self, patience: float):
        global PATIENCE
        PATIENCE = patience
        self._at: tuple[str, bool] | None = None
        self._left = threading.Event()

    def __enter__(self) -> Progress:
        threading.Thread(target=self._look, name="progress", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._left.set()

    def at(self, what: str | None, others: bool = False) -> None:
        """Notes what this process does from now on; None: what may take as long as it likes.

        `others`: whether it is done only when the other processes do it.
        """
        self._at = (what, others) if what else None  # a new tuple each time

    def _look(self) -> None:
        tick, last, stood = min(5.0, PATIENCE / 4), None, 0.0
        while not self._left.wait(tick):
            at = self._at
            # Counted, not read from a clock: who was stopped (Ctrl-Z) and goes on has not hung.
            stood = stood + tick if at is last else 0.0
            last = at
            if at is None or stood < PATIENCE:
                continue
            what, others = at
            said = f"{name()} hangs, for {PATIENCE:g} s (config.patience), at {what}"
            if others and _watch is not None:
                said = self._wait(at)
            if said and self._at is at:
                faulthandler.dump_traceback()
                if _watch is None:
                    _lost(said)
                _watch.failed(said, watch.LOST)
                return

    def _wait(self, at: tuple[str, bool]) -> str:
        """Who hangs while this process waits for it; "" when it goes on after all."""
        store, key = distributed.global_state.client, f"{WAITS}/{jax.process_index()}"
        store.key_value_set(key, at[0], allow_overwrite=True)
        self._left.wait(GRACE)
        away = ", ".join(_absent(WAITS)) or "no process by itself: they wait for one another"
        if self._at is not at or self._left.is_set():
            store.key_value_delete(key)
            return ""
        return f"{name()} has waited {PATIENCE + GRACE:g} s at {at[0]}; what hangs is {away}"


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
