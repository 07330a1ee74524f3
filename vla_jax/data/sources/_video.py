"""Frames of video files by their time, through PyAV; what is decoded is thrown away.

A window's frames are found by one seek to the key frame before the first of them. Each process
keeps a few decoders open, each used by one thread at a time; nothing here is ever pickled.
"""

from __future__ import annotations

import bisect
import collections
import os
import threading
from collections.abc import Sequence

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from vla_jax import plugin
from vla_jax.data.sources import _files

KEPT = 16  # open decoders per process; a 200 MB file of 640 x 480 takes about 10 MB
TOLERANCE = 1e-4  # s, LeRobot's own
SEEK = 8  # frames that are decoded as fast as a seek


def frames(
    path: str, times: Sequence[float], where: str, tolerance: float = TOLERANCE
) -> list[np.ndarray]:
    """uint8 [height, width, 3] of the frames at `times` (s), in their order.

    Raises UserError, beginning with `where`, for a file that is missing, broken or no video, and
    for a time that no frame is nearer to than `tolerance` (s).
    """
    path, decoder = str(path), None
    try:
        decoder = _take(path)
        found = decoder.frames(times, tolerance)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if decoder is not None:
            decoder.close()
        said = "no such file" if isinstance(error, FileNotFoundError) else error
        raise plugin.UserError(
            f"{where}: {path}: {said}; copy the video again or remove this episode"
        ) from error
    _give(decoder)
    return found


class _Decoder:
    """One open file and the frame decoded last."""

    def __init__(self, path: str):
        self.path = path
        self._container = av.open(_files.File(path).open() if _files.is_url(path) else path)
        if not self._container.streams.video:
            self._container.close()
            raise ValueError("no video stream in this file")
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1  # rows are read in parallel already
        self._unit = float(self._stream.time_base)
        # Decoding times: in step with the frames' own, before them by the reordering of B frames.
        entries = [(e.timestamp, e.is_keyframe) for e in self._stream.index_entries]
        self._times = sorted(time for time, _ in entries)
        self._keys = sorted(time for time, key in entries if key)
        self._colours = VideoReformatter()
        # One generator for all seeks: PyAV 18 loses a packet's memory with each that is let go.
        self._packets, self._ended = self._container.demux(self._stream), False
        self._decoded, self._last, self._pixels = collections.deque(), None, None

    def frames(self, times: Sequence[float], tolerance: float) -> list[np.ndarray]:
        """See the module's `frames`; ValueError where no frame is near enough."""
        found = {}
        for time in sorted(set(times)):
            first, final = (time - tolerance) / self._unit, (time + tolerance) / self._unit
            if self._last is None or not self._leads_to(first, final):
                self._seek(first)
            while self._last is not None and self._last.pts < first:
                self._next()
            if self._last is None or self._last.pts > final:
                raise ValueError(self._missing(time, tolerance))
            if self._pixels is None:
                picture = self._colours.reformat(self._last, format="rgb24", threads=1)
                self._pixels = picture.to_ndarray()
                self._pixels.setflags(write=False)  # it may be given out again
            found[time] = self._pixels
        return [found[time] for time in times]

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def _leads_to(self, first: float, final: float) -> bool:
        """Whether decoding on from the last frame is no dearer than a seek."""
        if self._last.pts >= first:
            return self._last.pts <= final  # else the frame lies behind
        if not self._keys:
            return False
        key = self._keys[max(bisect.bisect_right(self._keys, first) - 1, 0)]
        here, there, from_key = (
            bisect.bisect_left(self._times, t) for t in (self._last.pts, first, key)
        )
        return there - here <= there - from_key + SEEK

    def _seek(self, first: float) -> None:
        start = self._times[0] if self._times else 0
        target, back = int(np.ceil(first)), 0
        while True:
            place = max(target - back, start)
            self._container.seek(place, stream=self._stream, backward=True)
            if self._ended:
                self._packets, self._ended = self._container.demux(self._stream), False
            self._decoded.clear()
            self._next()
            if place <= start or (self._last is not None and self._last.pts <= max(first, place)):
                return
            back = max(2 * back, round(1 / self._unit))  # the key frame was shown after it

    def _next(self) -> None:
        while not self._decoded and not self._ended:
            packet = next(self._packets, None)
            self._ended = packet is None
            self._decoded.extend(packet.decode() if packet else ())
        self._last = self._decoded.popleft() if self._decoded else None
        self._pixels = None
        if self._last is not None and self._last.is_corrupt:
            raise ValueError(f"the frame at {self._last.time} s is damaged")

    def _missing(self, time: float, tolerance: float) -> str:
        if self._last is None:
            end = float((self._stream.duration or 0) * self._unit)
            return f"no frame at {time:.6f} s, the video ends at {end:.6f} s"
        near = self._last.pts * self._unit
        return (
            f"no frame at {time:.6f} s, the next is at {near:.6f} s "
            f"({abs(near - time):.2g} s off, tolerance {tolerance:g} s)"
        )


_idle: list[_Decoder] = []  # the one used last at the end
_lock = threading.Lock()


def _take(path: str) -> _Decoder:
    with _lock:
        for place in range(len(_idle) - 1, -1, -1):
            if _idle[place].path == path:
                return _idle.pop(place)
    return _Decoder(path)


def _give(decoder: _Decoder) -> None:
    with _lock:
        _idle.append(decoder)
        surplus = [_idle.pop(0) for _ in range(len(_idle) - KEPT)]
    for old in surplus:
        old.close()


def _forget() -> None:
    """A forked process begins without decoders: an open file's position would be the parent's.

    They are put aside, not freed: freeing waits for threads that the child does not have.
    """
    global _lock
    _lock = threading.Lock()
    _parents.extend(_idle)
    _idle.clear()


_parents: list[_Decoder] = []
os.register_at_fork(after_in_child=_forget)
