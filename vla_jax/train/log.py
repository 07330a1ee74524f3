"""From metrics of single train_steps to means, writers, and a bar with the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress

from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.parallel import arrays, processes
from vla_jax.train import accounting

PATIENCE = 25  # updates in a row that may be left out


class Log:
    """Means of the metrics since the last line, exact over masks: Σ sum / Σ count.

    Only process 0 writes and draws. A loss or parameters that are not finite raise UserError; where
    such updates are left out (config.optimizer.skip), only PATIENCE of them in a row do. `once`
    stands in the first line alone.
    """

    def __init__(
        self,
        workdir: str,
        config: config_lib.TrainConfig,
        start: int,
        account: accounting.Account,
        once: Mapping[str, float] | None = None,
    ):
        self._left_out = 0  # updates in a row
        self._steps, self._every = config.steps, config.log_every
        self._first, self._account = jax.process_index() == 0, account
        modules = writer_modules(config.writers)
        self._writers = [module.make(workdir) for module in modules] if self._first else []
        self._sums: dict[str, np.ndarray] = {}
        self._since, self._wait, self._counted = time.perf_counter(), 0.0, 0
        self._skipped = 0
        self._once = dict(once or {})
        self._pending: tuple[int, Any] | None = None
        self._bar = _Bar(start, config.steps) if self._first else None

    def add(self, done: int, metrics: Any, wait: float, skipped: int = 0) -> None:
        """Takes the metrics of train_step `done`, and fetches those of the one before.

        So the device always has a train_step to work on. `wait`: seconds spent waiting for data.
        `skipped`: broken samples among this host's since the run went on, which gave way to others.
        """
        self._wait += wait
        self._skipped = skipped
        self._fetch()
        self._pending = (done, metrics)
        if done == self._steps:
            self.flush()

    def flush(self) -> None:
        """Fetches what is pending and closes the line, e.g. before a validation is timed."""
        self._fetch()
        self._pending = None

    def _fetch(self) -> None:
        if self._pending is None:
            return
        done, metrics = self._pending
        self._pending = None
        found = {k: np.asarray(pair, np.float64) for k, pair in arrays.fetch(metrics).items()}
        loss, skipped = found["loss"][0], "skipped" in found and found["skipped"][0] > 0
        self._check(done, loss, found["parameter_norm"][0], skipped)
        for name, pair in found.items():
            if not skipped or np.isfinite(pair).all():  # one bad train_step spoils no mean
                self._sums[name] = self._sums.get(name, np.zeros(2)) + pair
        self._counted += 1
        if self._bar:
            self._bar.move(done, loss)
        if done % self._every == 0 or done == self._steps:
            self._line(done)

    def _check(self, done: int, loss: float, norm: float, skipped: bool) -> None:
        # The loss is from before the update, the norm from after it: both before a save.
        self._left_out = self._left_out + 1 if skipped else 0
        if np.isfinite(norm) and (skipped or np.isfinite(loss)) and self._left_out < PATIENCE:
            return
        row = f", the {self._left_out}th update in a row that was left out" if skipped else ""
        raise processes.KnownToAll(  # metrics are replicated; a save in flight may come to its end
            f"train_step {done}: the loss is {loss}, the parameters' norm {norm}{row}; "
            "lower config.optimizer.lr, lengthen its warmup, or look for broken rows. The last "
            "checkpoint is as it was"
        )

    def _line(self, done: int) -> None:
        now = time.perf_counter()
        line = means(self._sums)
        line["seconds_per_step"] = max(now - self._since, 1e-9) / self._counted
        line |= self._account.line(line["seconds_per_step"]) | self._once
        self._once = {}
        line["data_wait"] = self._wait / max(now - self._since, 1e-9)
        if self._skipped:
            line["skipped_samples"] = float(self._skipped)
        self.write(done, line)
        self._sums, self._wait, self._counted = {}, 0.0, 0
        self._since = now

    def write(self, done: int, metrics: Mapping[str, float]) -> None:
        """Hands numbers, if there are any, to all writers."""
        if not metrics:
            return
        for writer in self._writers:
            writer.write(done, metrics)

    def pause(self, kind: str, seconds: float) -> None:
        """Leaves out of the step time what compiling, a validation, a hook or a save took."""
        self._account.spend(kind, seconds)
        self._since += seconds

    def close(self) -> None:
        """Closes writers and bar."""
        for writer in self._writers:
            writer.close()
        if self._bar:
            self._bar.close()


def writer_modules(names: Sequence[str]) -> list[ModuleType]:
    """The files of writers/ (or dotted modules) of these names; UserError for an unknown one."""
    return [plugin.module("train.writers", name) for name in names]


def check_writers(names: Sequence[str], workdir: str) -> None:
    """UserError, before anything is made, for a writer that is unknown or cannot work there."""
    for module in writer_modules(names):
        if hasattr(module, "check"):
            module.check(workdir)


def means(sums: Mapping[str, Any]) -> dict[str, float]:
    """{name: sum / count}; what counted nothing is left out."""
    return {name: float(s / c) for name, (s, c) in sums.items() if c > 0}


class _Bar:
    """A line with train_step, loss and time left: drawn on terminals, printed now and then else."""

    def __init__(self, start: int, steps: int):
        console = rich.console.Console(stderr=True)
        self._steps, self._begin, self._start = steps, time.perf_counter(), start
        self._said, self._console = self._begin, console
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("train_step {task.completed}/{task.total}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("loss {task.fields[loss]:.4f}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=steps, completed=start, loss=float("nan"))
        self._progress.start()

    def move(self, done: int, loss: float) -> None:
        self._progress.update(self._task, completed=done, loss=loss)
        now = time.perf_counter()
        if not self._console.is_terminal and (now - self._said > 15 or done == self._steps):
            left = (now - self._begin) / max(done - self._start, 1) * (self._steps - done)
            text = f"train_step {done}/{self._steps}  loss {loss:.4f}  left {left:.0f} s"
            print(text, file=sys.stderr, flush=True)
            self._said = now

    def close(self) -> None:
        self._progress.stop()
