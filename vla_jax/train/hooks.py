"""What the loop does besides training: hooks from above, and the wish to stop."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Mapping

import jax
from jax.experimental import multihost_utils

from vla_jax.train import state as states


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hook:
    """An evaluation that upper floors hand to the loop: called every so many train_steps."""

    name: str
    every: int
    # (train_steps done, state) -> {metric: value}, logged as NAME/metric
    call: Callable[[int, states.TrainState], Mapping[str, float]]


def due(done: int, every: int | None, steps: int) -> bool:
    """Whether something that happens every so many train_steps, and after the last, happens now."""
    return every is not None and (done % every == 0 or done == steps)


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a wish that the loop asks for after each train_step.

    A second Ctrl-C interrupts at once. With several processes jax agrees on one train_step, after
    which all of them stop; it listens to SIGTERM itself then.
    """

    def __init__(self):
        self._wished = threading.Event()
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        signals = [signal.SIGINT, signal.SIGTERM][: 1 if jax.process_count() > 1 else 2]
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            self._before = {number: signal.signal(number, self._note) for number in signals}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self._wished.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._wished.set()
        if jax.process_count() > 1:  # jax hears of SIGTERM only, and tells the other hosts
            os.kill(os.getpid(), signal.SIGTERM)

    def wished(self, step: int) -> bool:
        """Whether to save and stop after train_step `step`; the same answer on every host."""
        if jax.process_count() == 1:
            return self._wished.is_set()
        return multihost_utils.reached_preemption_sync_point(step)
