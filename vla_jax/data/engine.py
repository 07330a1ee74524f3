"""Batches of a mixture through Grain: reading threads or worker processes, prefetch, exact resume.

    batch k  =  rows  start + k*B + r  for r in `rows` (those this host loads)
    Mixture.sample(n) ─▶ stacked batch ─▶ grain.MapDataset ─▶ threads | processes ─▶ next()

One element of the Grain data set is one host's whole batch: a pure function of its number, so that
the sequence is the same for any number of hosts, threads and workers, and the state is n alone.
Grain imports jax in its worker processes where jax is installed; our own code does not.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import signal
from collections.abc import Mapping, Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.data import workers as workers_lib
from vla_jax.data.mixture import Mixture

ENDLESS = 2**40
ROW_IDS = 2**32
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
SHARED = 2**16  # bytes from which an array goes through shared memory


@dataclasses.dataclass(frozen=True)
class Batches:
    """Random access to the batches of one host, from sample `start` on; what Grain reads from."""

    mixture: Mixture
    batch_size: int
    rows: tuple[int, ...]
    start: int

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, k: int) -> dict:
        """Batch k, nested dicts of stacked numpy: {"observation": …, "row_id": uint32 [rows]}."""
        base = self.start + k * self.batch_size
        if base + self.batch_size > ROW_IDS:
            raise plugin.UserError(
                f"stream {self.mixture.stream}: more than {ROW_IDS} samples drawn"
            )
        return stack([self.mixture.sample(base + row) for row in self.rows])


class Stream:
    """An endless iterator over one host's share of the batches of a mixture.

    Args:
      mixture: what to draw from.
      batch_size: B, rows of the global batch.
      rows: which of them this host loads (default all), from the sharding of the batch.
      start_n: samples drawn before, 0 or what `n` said when the run stopped.
      workers: processes; 0 reads in threads of this one.
      threads: reading threads where `workers` is 0.
      prefetch: batches kept ready (per worker).

    `n` is the whole state: samples drawn so far. `skipped` is how many broken samples gave way to
    others (see Mixture.sample) among the `rows` of this host since the stream was opened; it is no
    part of the state, a resumed run counts from 0. Use as a context manager or call `close`.
    """

    def __init__(
        self,
        mixture: Mixture,
        batch_size: int,
        rows: Sequence[int] | None = None,
        start_n: int = 0,
        *,
        workers: int = 0,
        threads: int = 2,
        prefetch: int = 2,
    ):
        rows = tuple(range(batch_size)) if rows is None else tuple(int(r) for r in rows)
        if not rows or not all(0 <= row < batch_size for row in rows):
            raise ValueError(
                f"rows {rows[:8]}… of a batch of {batch_size}: expected some of 0..B-1"
            )
        self.batch_size, self.n, self.skipped = batch_size, int(start_n), 0
        self._iterator = _iterate(
            Batches(mixture, batch_size, rows, self.n), workers, threads, prefetch
        )

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> dict:
        batch = next(self._iterator)
        self.n += self.batch_size
        self.skipped += int(np.sum(batch.pop("skipped", 0)))
        return batch

    def close(self) -> None:
        """Stops workers and threads and frees shared memory; may be called twice."""
        iterator, self._iterator = self._iterator, iter(())
        if hasattr(iterator, "close"):
            iterator.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def stack(rows: Sequence):
    """Nested dicts of arrays -> the same with a leading batch axis."""
    if isinstance(rows[0], Mapping):
        return {name: stack([row[name] for row in rows]) for name in rows[0]}
    return np.stack(rows)


class _Copies:
    """Plain arrays of ours in place of Grain's views of shared memory, which then goes back."""

    def __init__(self, iterator):
        self._iterator = iterator

    def __next__(self) -> dict:
        return _copy(next(self._iterator))

    def close(self) -> None:
        self._iterator.close()


def _copy(batch):
    if isinstance(batch, Mapping):
        return {name: _copy(value) for name, value in batch.items()}
    return np.array(batch)


def _iterate(batches: Batches, workers: int, threads: int, prefetch: int):
    import grain

    _one_thread_each()
    _keep_memory()
    if workers:
        parse_absl_flags()
        # No second thread in a worker: the two would wait for each other at every small call.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        processes = grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=prefetch
        )
        dataset = grain.MapDataset.source(batches).to_iter_dataset(options)
        # Small arrays are pickled: a shared memory of its own costs each of them more.
        small = grain.experimental.DatasetOptions(min_shm_size=SHARED)
        dataset = grain.experimental.WithOptionsIterDataset(dataset, small)
        return _Copies(iter(dataset.mp_prefetch(processes, worker_init_fn=_begin)))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(batches).to_iter_dataset(options))


def _begin(worker: int, workers: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole group: the parent decides, and ends us.

    A parent that was killed decides nothing any more: then we end ourselves.
    """
    del worker, workers
    _one_thread_each()
    _keep_memory()
    gc.freeze()  # tables of episodes are no garbage: looking through them took 4% of a worker
    workers_lib.end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _one_thread_each() -> None:
    """Rows are read in parallel already: a resize that asks for all cores waits for the others."""
    import threadpoolctl

    threadpoolctl.threadpool_limits(limits=1, user_api="blas")


def _keep_memory() -> None:
    """Tells glibc's malloc to keep what is freed: a batch's pages anew cost as much as its rows."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have no such setting and need none
        mallopt(M_MMAP_THRESHOLD, 2**25)
        mallopt(M_TRIM_THRESHOLD, 2**30)


def parse_absl_flags() -> None:
    """Grain's workers read absl flags, which raise unless someone has parsed a command line."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
