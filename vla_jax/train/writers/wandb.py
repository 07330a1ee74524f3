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
        check(workdir)
        wandb = _package()
        self._teardown = wandb.teardown
        self._close = contextlib.ExitStack()
        if storage.is_url(workdir):
            local = self._close.enter_context(tempfile.TemporaryDirectory())
        else:
            local = storage.absolute(workdir)
            os.makedirs(local, exist_ok=True)
        config = storage.join(workdir, "config.json")
        try:
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
        except wandb.errors.Error as error:
            self._close.close()
            raise plugin.UserError(
                f"config.writers: 'wandb' could not begin its run: {error}; give `wandb login`, or "
                "set WANDB_API_KEY, or WANDB_MODE=offline"
            ) from error
        self._run.define_metric("train_step")
        self._run.define_metric("*", step_metric="train_step")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One point per metric at `step`."""
        self._run.log({"train_step": step, **{name: float(v) for name, v in metrics.items()}})

    def close(self) -> None:
        """Waits until all has been sent, or written where the mode is offline."""
        self._run.finish()
        self._teardown()  # offline, the file is whole when the program that writes it has ended
        self._close.close()


def make(workdir: str) -> Writer:
    """The writer of a run's folder; UserError as `check`, and where nobody has logged in."""
    return Writer(workdir)


def check(workdir: str) -> None:
    """UserError without the package, and for an offline run whose folder is a bucket's."""
    _package()
    if storage.is_url(workdir) and os.environ.get("WANDB_MODE") == "offline":
        raise plugin.UserError(
            f"WANDB_MODE=offline: its files cannot lie in {workdir}, where --workdir is; leave "
            "'wandb' out of config.writers, or take a local --workdir"
        )


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
