"""What a run's time goes to: rates, utilisation, and the part that brought training forward.

    wall     ├─ init, compile ─┼─ train_steps ─┼ validation, hooks, saves ┼ train_steps ─┤ crash ├ …
    goodput  = seconds of the train_steps that count / seconds since the run's first start

The sums stand in every resume point: a train_step that a crash took away counts as `restarts`, as
does the time until the run went on, and one on another mesh counts what it took there.

MFU is the model's operations (flops.py) over what the chips could do in the same time (PaLM,
Chowdhery et al. 2022), against the table of parallel/chips.py.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

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
    """Counts seconds of a run by what they were spent on; what no `spend` claims are train_steps.

    `made`: {"init" or "restore": seconds that this process's state took}; `before`: the `seconds`
    of the resume point that it goes on from.
    """

    def __init__(
        self,
        workdir: str,
        work: Work | None,
        made: Mapping[str, float] | None = None,
        before: Mapping[str, float] | None = None,
    ):
        made, before = made or {}, before or {}
        self._work = work
        self._begun, self._claimed = time.perf_counter(), 0.0
        passed = time.time() - _first_start(workdir, sum(made.values()))
        # Hosts' clocks differ, and the first start is only as exact as a file's writing.
        lost = max(passed - sum(made.values()) - sum(before.values()), 0.0)
        self._spent = {"train_steps": 0.0, "restarts": 0.0, **before}
        self._spent["restarts"] += lost
        for kind, seconds in made.items():
            self._spent[kind] = self._spent.get(kind, 0.0) + seconds

    def spend(self, kind: str, seconds: float) -> None:
        """Adds seconds to "init", "compile", "evaluate" or "save"."""
        self._spent[kind] = self._spent.get(kind, 0.0) + seconds
        self._claimed += seconds

    def seconds(self) -> dict[str, float]:
        """{kind: seconds} since the run's first start, all its processes in turn together."""
        mine = max(time.perf_counter() - self._begun - self._claimed, 0.0)
        return self._spent | {"train_steps": self._spent["train_steps"] + mine}

    def line(self, seconds_per_step: float) -> dict[str, float]:
        """Metrics, given what a train_step takes now.

        Rates per second; `goodput`; seconds of the run by kind.
        """
        seconds = self.seconds()
        found = {f"seconds/{kind}": spent for kind, spent in sorted(seconds.items())}
        found["goodput"] = seconds["train_steps"] / max(sum(seconds.values()), 1e-9)
        if self._work is None:
            return found
        for stream, rows in self._work.samples.items():
            found[f"samples_per_second/{stream}"] = rows / seconds_per_step
        if self._work.tokens:
            found["tokens_per_second"] = self._work.tokens / seconds_per_step
        if self._work.peak:
            found["mfu"] = self._work.flops / seconds_per_step / self._work.peak
        return found


def restored(state: Any, seconds: float) -> dict[str, float]:
    """Metrics of a restore: its seconds, the state's bytes, and those that this host read.

    Process 0 also says them.
    """
    leaves = jax.tree.leaves(state)
    whole = sum(leaf.nbytes for leaf in leaves)
    # Devices that hold the same part share what was read.
    parts = [{str(part.index): part.data.nbytes for part in x.addressable_shards} for x in leaves]
    here = sum(sum(sizes.values()) for sizes in parts)
    if jax.process_index() == 0:
        print(
            f"restored train_step {int(state.step)}: {whole / 1e6:,.1f} MB in {seconds:.1f} s, "
            f"{here / 1e6:,.1f} MB of them on this host",
            flush=True,
        )
    return {"restore/seconds": seconds, "restore/bytes": whole, "restore/host_bytes": here}


def _first_start(workdir: str, ago: float) -> float:
    """Seconds since 1970 at which the run in `workdir` first began; process 0 writes it down.

    A run that begins now has begun `ago` seconds before.
    """
    path = storage.join(workdir, STARTED)
    if storage.is_file(path):
        return float(json.loads(storage.read(path))["unix_time"])
    now = time.time() - ago
    if jax.process_index() == 0:
        storage.write(path, json.dumps({"unix_time": now}) + "\n")
    return now
