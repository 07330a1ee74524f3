"""Contiguous access: samples in runs of neighbouring episodes, each read by one request.

    shard  ├ e0 ┼ e1 ┤├ e2 ┼ e3 ┼ e4 ┤├ e5 ┤ …      runs of about `run_bytes` bytes, whole episodes
    order     run 7 ┐ run 2 ┐ run 9 ┐  … num_runs   an epoch's permutation of the runs, in blocks
              └─ the samples of a block, permuted ─┘ (order.Contiguous)

A process keeps the bytes of the runs of two blocks at most: the one it is in and, where it reads
ahead, the next. What comes by URL also stands in files of the host as long, so that its worker
processes fetch a run once between them: a host reads each run once in an epoch, however small the
pictures are. But every host reads the runs that it draws a sample of, while `random` reads a
sample's pictures alone: with many hosts that is fewer bytes in more requests.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fcntl
import functools
import pathlib
import threading
from collections.abc import Callable, Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.data import looks, mapped, order
from vla_jax.data.episodes import Episodes, FrameReader
from vla_jax.data.reading import Reading

ACCESS = ("random", "contiguous")
NEEDED = ("places", "fetch")


def make(
    where: str,
    episodes: Episodes,
    samples: np.ndarray,
    views: Sequence[str],
    read: FrameReader,
    reading: Reading,
) -> tuple[order.Contiguous | None, FrameReader]:
    """(the runs of a source's samples, the reader that fetches whole runs); random: (None, `read`).

    Args:
      where: for messages.
      episodes: the table whose rows `read` knows.
      samples: int [S, 2], (episode, step) in order of storage.
      views: those whose images are read.
      read: a FrameReader with `places(view, episode, rows) -> [(offset, length)]` in the episode's
        shard, and `fetch(shard, offset, length) -> bytes`.
      reading: access, num_runs, run_bytes.

    Raises UserError for another access, a format that has no byte ranges, and numbers below 1.
    """
    if reading.access not in ACCESS:
        raise plugin.UserError(plugin.unknown(f"{where}: access", reading.access, ACCESS))
    if reading.access == "random":
        return None, read
    if reading.num_runs < 1 or reading.run_bytes < 1:
        raise plugin.UserError(
            f"{where}: num_runs={reading.num_runs}, run_bytes={reading.run_bytes}, expected >= 1"
        )
    if isinstance(read, looks.Upright):  # runs are of stored bytes
        runs, stored = make(where, episodes, samples, views, read.stored, reading)
        return runs, dataclasses.replace(read, stored=stored)
    if not all(hasattr(read, name) for name in NEEDED):
        raise plugin.UserError(
            f"{where}: access='contiguous': these data, or a cache of them, are not read by ranges "
            "of bytes; use access='random', or have them as RLDS in tfrecord"
        )
    used, first = np.unique(samples[:, 0], return_index=True)
    begin, end = _spans(episodes, views)
    starts, ranges = [], []  # of runs: their first sample; [shard, first byte, end]
    run_of = np.full(len(episodes), -1, np.int32)
    for episode, sample in zip(used.tolist(), first.tolist()):
        shard, low, high = int(episodes.shard[episode]), int(begin[episode]), int(end[episode])
        last = ranges[-1] if ranges else None
        if last and last[0] == shard and last[1] <= low and high - last[1] <= reading.run_bytes:
            last[2] = max(last[2], high)
        else:
            starts.append(sample)
            ranges.append([shard, low, high])
        run_of[episode] = len(ranges) - 1
    bounds = np.array([*starts, len(samples)], np.int64)
    reader = RunReader(read, run_of, np.array(ranges, np.int64), 2 * reading.num_runs)
    return order.Contiguous(bounds, reading.num_runs), reader


def _spans(episodes: Episodes, views: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(first byte, end) [E], in its shard, of all the images of each episode."""
    starts = episodes.start[:-1]
    begin = np.full(len(episodes), np.iinfo(np.int64).max)
    end = np.zeros(len(episodes), np.int64)
    for view in (view for view in views if view in episodes.frames):
        frames = episodes.frames[view]
        seen = frames.length > 0
        low = np.where(seen, frames.offset, np.iinfo(np.int64).max)
        high = np.where(seen, frames.offset + frames.length, 0)
        begin = np.minimum(begin, np.minimum.reduceat(low, starts))
        end = np.maximum(end, np.maximum.reduceat(high, starts))
    begin = np.where(end > 0, begin, 0)
    return begin + episodes.record_offset, end + episodes.record_offset


class RunReader:
    """A FrameReader that fetches the run an episode lies in and keeps the last `keep` of them.

    Runs of a reader that says `remote` are shared by the processes that it is pickled to.
    """

    def __init__(self, read: FrameReader, run_of: np.ndarray, ranges: np.ndarray, keep: int):
        self.read, self.run_of, self.ranges, self.keep = read, run_of, ranges, keep
        self.folder = mapped.scratch("runs") if getattr(read, "remote", False) else None
        self._clear()

    def __call__(self, view: str, episode: int, rows: Sequence[int]) -> list[bytes]:
        """See episodes.FrameReader."""
        run = int(self.run_of[episode])
        if run < 0:
            return self.read(view, episode, rows)
        data, begin = self.run(run), int(self.ranges[run, 1])
        places = self.read.places(view, episode, rows)
        return [data[at - begin : at - begin + size] if size else b"" for at, size in places]

    def run(self, run: int) -> bytes:
        """The bytes of a run, fetched once while it is kept."""
        with self._lock:
            kept = self._kept.setdefault(run, _Run())
            self._kept.move_to_end(run)
            while len(self._kept) > self.keep:
                self._kept.popitem(last=False)
        with kept.lock:  # two threads that want one run fetch it once
            if kept.data is None:
                shard, begin, end = (int(i) for i in self.ranges[run])
                fetch = functools.partial(self.read.fetch, shard, begin, end - begin)
                kept.data = fetch() if self.folder is None else self._shared(run, fetch)
        return kept.data

    def _shared(self, run: int, fetch: Callable[[], bytes]) -> bytes:
        """The bytes of a run from the host's files; who wants them first fetches them."""
        path = pathlib.Path(self.folder, str(run))
        with open(f"{path}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # goes with the process that holds it
            with contextlib.suppress(FileNotFoundError):
                return path.read_bytes()
            data = fetch()
            half = path.with_suffix(".half")
            half.write_bytes(data)
            half.rename(path)
        self._sweep()
        return data

    def _sweep(self) -> None:
        files = [p for p in pathlib.Path(self.folder).iterdir() if not p.suffix]
        with contextlib.suppress(FileNotFoundError):  # another process sweeps, too
            files.sort(key=lambda p: p.stat().st_mtime_ns)
        for old in files[: max(0, len(files) - self.keep)]:
            old.unlink(missing_ok=True)

    def _clear(self) -> None:
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[int, _Run] = collections.OrderedDict()

    def __getstate__(self):
        return self.read, self.run_of, self.ranges, self.keep, self.folder

    def __setstate__(self, state):
        self.read, self.run_of, self.ranges, self.keep, self.folder = state
        self._clear()


class _Run:
    def __init__(self):
        self.lock, self.data = threading.Lock(), None
