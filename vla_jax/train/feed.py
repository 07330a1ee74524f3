"""Batches on the devices ahead of the train_step, so that reading and copying overlap it.

    thread   pull k+2, check, place ─▶ [one batch] ─▶ pull k+3 …
    loop     take k ─▶ dispatch train_step k ─▶ metrics of k-1 ─▶ take k+1 …

While the devices work on k, k+1 may be taken and k+2 be placed: `AHEAD` of them beside k.

What is drawn and not yet taken is no part of a run's state: the loop counts what it has taken.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from vla_jax import types
from vla_jax.parallel import arrays

AHEAD = 2  # batches at most on the devices beside the one that a train_step works on
POLL = 0.002  # s between two looks at whether the devices have run dry
PATIENCE = 10.0  # s that closing waits for a batch that is being read


def placed(stream: Iterator[dict[str, Any]], mesh: Mesh) -> types.Batch:
    """The stream's next batch over the mesh; checked here, in the parent of the data workers."""
    return arrays.global_batch(types.Batch.make(**next(stream)), mesh)


class Feed:
    """The next `count` batches of all streams, in order, each placed while the one before is used.

    Args:
      streams: name -> an iterator; `skipped` of one, if it has it, is how many broken samples of
        this host gave way since it was opened. They are drawn from in one thread, and closed by
        whoever opened them.
      mesh: where batches are placed.
      count: how many are drawn at most.
    """

    def __init__(self, streams: Mapping[str, Iterator[dict[str, Any]]], mesh: Mesh, count: int):
        self._streams, self._mesh, self._count = dict(streams), mesh, count
        self._ready: queue.Queue = queue.Queue()
        self._free = threading.Semaphore(1)  # places for batches that nobody has taken
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="feed", daemon=True)
        self._thread.start()

    def take(self, running: Any = None) -> tuple[dict[str, types.Batch], float, int]:
        """(stream -> its next batch, s that the devices waited for it, samples skipped so far).

        `running`: arrays that the train_step before makes; until they are there, nothing waits.
        Raises what drawing the batch raised.
        """
        idle, begin = None, time.perf_counter()
        while True:
            try:
                found = self._ready.get(timeout=POLL)
                break
            except queue.Empty:
                if idle is None and all(x.is_ready() for x in jax.tree.leaves(running)):
                    idle = begin if running is None else time.perf_counter()
        waited = 0.0 if idle is None else time.perf_counter() - idle
        self._free.release()
        if isinstance(found, BaseException):
            raise found
        return found[0], waited, found[1]

    def ahead(self) -> int:
        """How many batches are placed and not yet taken: 0 or 1."""
        return self._ready.qsize()

    def close(self) -> None:
        """Ends the thread; call it before the streams are closed."""
        self._closed.set()
        self._free.release()
        self._thread.join(PATIENCE)

    def _draw(self) -> None:
        for _ in range(self._count):
            self._free.acquire()
            if self._closed.is_set():
                return
            try:
                batches = {name: placed(s, self._mesh) for name, s in self._streams.items()}
                skipped = sum(getattr(stream, "skipped", 0) for stream in self._streams.values())
            except BaseException as error:  # it is the loop's to raise
                self._ready.put(error)
                return
            self._ready.put((batches, skipped))
