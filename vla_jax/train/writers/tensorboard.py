"""Metrics as TensorBoard event files in WORKDIR/tensorboard, without TensorFlow."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import tensorboardX


class Writer:
    """Writes one scalar per metric."""

    def __init__(self, workdir: str):
        self._writer = tensorboardX.SummaryWriter(str(pathlib.Path(workdir) / "tensorboard"))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One scalar per metric at `step`."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()


def make(workdir: str) -> Writer:
    """The writer of a run's folder."""
    return Writer(workdir)
