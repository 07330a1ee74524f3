"""Metrics as TensorBoard event files in WORKDIR/tensorboard, without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping

import tensorboardX
from tensorboardX import record_writer

from vla_jax import storage


class Writer:
    """Writes one scalar per metric."""

    def __init__(self, workdir: str):
        folder = storage.join(workdir, "tensorboard")
        if storage.is_url(folder):  # tensorboardX has writers of its own for some URLs; ours is one
            record_writer.register_writer_factory(folder.split(":")[0], _Events())
        self._writer = tensorboardX.SummaryWriter(folder)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One scalar per metric at `step`."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()


class _Events:
    """What tensorboardX asks of a place that is no local folder."""

    def open(self, path: str) -> storage.Appending:
        return storage.Appending(path)

    def directory_check(self, path: str) -> None:
        """Nothing: object stores have no folders."""


def make(workdir: str) -> Writer:
    """The writer of a run's folder."""
    return Writer(workdir)
