"""Metrics as one JSON object per line, in WORKDIR/metrics.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from vla_jax import storage

FILE = "metrics.jsonl"


class Writer:
    """Appends a line per call; a resumed run goes on in the same file."""

    def __init__(self, workdir: str):
        self._file = storage.Appending(storage.join(workdir, FILE))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line {"step": …, name: number, …}; a number that is not finite is written as null."""
        finite = {k: float(v) if math.isfinite(v) else None for k, v in metrics.items()}
        self._file.write((json.dumps({"step": step, **finite}) + "\n").encode())
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def make(workdir: str) -> Writer:
    """The writer of a run's folder."""
    return Writer(workdir)


def read(workdir: str) -> list[dict]:
    """The lines written so far, as dicts; where a run was resumed, a step's last lines win."""
    rows: list[dict] = []
    for line in storage.read(storage.join(workdir, FILE)).decode().splitlines():
        row = json.loads(line)
        same_step = []
        while rows and rows[-1]["step"] >= row["step"]:
            # Train_steps that a crash lost and the resumed run did again.
            last = rows.pop()
            if last["step"] == row["step"] and set(last) & set(row) == {"step"}:
                same_step.insert(0, last)  # a step has a line for training, one for validation, …
        rows += [*same_step, row]
    return rows
