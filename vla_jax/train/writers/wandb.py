"""Metrics in Weights & Biases, with the run's config (extra `wandb`).

The run's id stands in WORKDIR/wandb.json: a resumed run goes on as the same one, and train_steps
that a crash lost and that are done again appear twice there (`metrics.jsonl` has them once). What
Weights & Biases keeps locally lies in WORKDIR/wandb, for a bucket in a temporary folder. Its own
variables say the rest: WANDB_PROJECT (default vla_jax), WANDB_ENTITY, WANDB_MODE=offline.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from types import ModuleType

from vla_jax import plugin, storage

FILE = "wandb.json"


class Writer:
    """Logs all metrics over `train_step`."""

    def __init__(self, workdir: str):
        wandb = _package()
        self._close = contextlib.ExitStack()
        if storage.is_url(workdir):
            local = self._close.enter_context(tempfile.TemporaryDirectory())
        else:
            local = storage.absolute(workdir)
            os.makedirs(local, exist_ok=True)
        config = storage.join(workdir, "config.json")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "vla_jax"),
            name=storage.name(storage.absolute(workdir)),
            id=_id(workdir),
            resume="allow",
            dir=local,
            config=json.loads(storage.read(config)) if storage.is_file(config) else None,
            # No second copy of the terminal's text, no links that point to the newest run.
            settings=wandb.Settings(console="off", silent=True, symlink=False),
        )
        self._run.define_metric("train_step")
        self._run.define_metric("*", step_metric="train_step")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One point per metric at `step`."""
        self._run.log({"train_step": step, **{name: float(v) for name, v in metrics.items()}})

    def close(self) -> None:
        """Waits until all has been sent, or written where the mode is offline."""
        self._run.finish()
        self._close.close()


def make(workdir: str) -> Writer:
    """The writer of a run's folder; UserError where the package is not installed."""
    return Writer(workdir)


def _id(workdir: str) -> str:
    """The run's id there, made at its first start."""
    path = storage.join(workdir, FILE)
    if not storage.is_file(path):
        storage.write(path, json.dumps({"id": secrets.token_hex(4)}) + "\n")
    return json.loads(storage.read(path))["id"]


def _package() -> ModuleType:
    try:
        import wandb
    except ImportError as error:
        raise plugin.UserError(
            f"config.writers: 'wandb' needs the package wandb ({error}): pip install -e .[wandb]"
        ) from error
    return wandb
