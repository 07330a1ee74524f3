"""What a run's time goes to: rates, utilisation, and the part that brought training forward.

    wall     ├─ compile ─┼─ train_steps ─┼ validation, hooks, saves ┼─ train_steps ─┤  crash  ├─ …
    goodput  = seconds of the train_steps that count / seconds since the run's first start

MFU is the model's operations (flops.py) over what the chips could do in the same time (PaLM,
Chowdhery et al. 2022), against the table of parallel/chips.py.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping

import jax

from vla_jax import config as config_lib
from vla_jax import storage
from vla_jax.parallel import chips
from vla_jax.train import flops as flops_lib

STARTED = "started.json"  # in the workdir: when the run began for the first time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one train_step is, all streams and devices together."""

    samples: Mapping[str, int]  # stream -> rows
    tokens: int = 0  # of the trunk
    flops: float = 0.0  # the model's; 0: not known
    peak: float | None = None  # operations per second of all chips; None: not known


def work(config: config_lib.TrainConfig, network, vocabulary_size: int) -> Work:
    """The Work of a config's train_step on all devices; operations where the chip is known."""
    sizes = {name: stream.batch_size for name, stream in config.streams.items()}
    chip = chips.of_kind(jax.devices()[0].device_kind)
    peak = None
    if chip is not None and chip.flops is not None:
        rate = chip.flops if config.model.dtype == "bfloat16" else chip.flops_float32
        peak = rate * jax.device_count()
    return Work(
        samples=sizes,
        tokens=sum(rows * network.layout(name).length for name, rows in sizes.items()),
        flops=sum(flops_lib.train_step(config, network, vocabulary_size).values()) if peak else 0.0,
        peak=peak,
    )


class Account:
    """Counts seconds by what they were spent on, from its making on.

    `init`: those that the state took, made or restored.
    """

    def __init__(self, workdir: str, work: Work | None, init: float = 0.0):
        self._work, self._spent = work, {"init": init}
        self._started = _first_start(workdir)
        self._begun = time.perf_counter()

    def spend(self, kind: str, seconds: float) -> None:
        """Adds seconds to "compile", "evaluate" or "save"."""
        self._spent[kind] = self._spent.get(kind, 0.0) + seconds

    def line(self, done: int, seconds_per_step: float) -> dict[str, float]:
        """Metrics at train_step `done`, given what one takes now.

        Rates per second; `goodput`; seconds of this process by kind.
        """
        found = {f"seconds/{kind}": spent for kind, spent in sorted(self._spent.items())}
        since = max(time.time() - self._started, time.perf_counter() - self._begun)
        found["goodput"] = min(1.0, done * seconds_per_step / max(since, 1e-9))
        if self._work is None:
            return found
        for stream, rows in self._work.samples.items():
            found[f"samples_per_second/{stream}"] = rows / seconds_per_step
        if self._work.tokens:
            found["tokens_per_second"] = self._work.tokens / seconds_per_step
        if self._work.peak:
            found["mfu"] = self._work.flops / seconds_per_step / self._work.peak
        return found


def _first_start(workdir: str) -> float:
    """Seconds since 1970 at which the run in `workdir` first began; process 0 writes it down."""
    path = storage.join(workdir, STARTED)
    if storage.is_file(path):
        return float(json.loads(storage.read(path))["unix_time"])
    now = time.time()
    if jax.process_index() == 0:
        storage.write(path, json.dumps({"unix_time": now}) + "\n")
    return now
