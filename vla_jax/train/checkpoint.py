"""Checkpoints: self-sufficient folders of separate items. This and stored.py alone import orbax.

    WORKDIR/checkpoints/STEP/{params,optimizer,ema,meta}    resume points: the newest, every n-th
    WORKDIR/best/STEP/{params,ema,meta}                     the best few by a metric, kept apart

``params`` holds trained and frozen parameters in one tree, so that a run may freeze others.
``meta`` is JSON: step, n per stream, config, normalizers, action spaces, text tokenizer, provenance
and format_version. Serving, evaluation and fine-tuning need the folder alone. Saves are sharded and
asynchronous; a save that was interrupted has another name and is never read.
"""

from __future__ import annotations

import contextlib
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vla_jax import config as config_lib
from vla_jax import plugin, storage
from vla_jax.parallel import processes
from vla_jax.train import checksums, provenance, stored, trash
from vla_jax.train import meta as metas
from vla_jax.train import state as states
from vla_jax.train.meta import BEST, RESUME, Assets, Meta, compare, find, read_meta, resumable
from vla_jax.train.stored import (
    UNREADABLE,
    Loaded,
    Stored,
    arrays,
    items,
    load,
    load_params,
    look,
    shapes,
)

__all__ = [
    "ADVICE",
    "BEST",
    "RESUME",
    "Assets",
    "Checkpoints",
    "Loaded",
    "Meta",
    "Stored",
    "arrays",
    "compare",
    "find",
    "items",
    "load",
    "load_params",
    "look",
    "read_meta",
    "resumable",
    "shapes",
]
ADVICE = "make room or choose another --workdir; the run goes on from its last checkpoint"


class Checkpoints:
    """The saves of one run; `close` waits for the last one.

    `origin` stands in every save's provenance beside what `train/provenance.py` collects.
    """

    def __init__(
        self,
        workdir: str,
        config: config_lib.TrainConfig,
        assets: Assets,
        origin: Mapping[str, Any] | None = None,
    ):
        root = metas.place(workdir)
        self._config, self._assets = config, assets
        self._provenance = {**provenance.collect(), **(origin or {})}
        keep = config.checkpoint
        folders = (root / BEST, root / RESUME, root)
        buckets = storage.is_url(root)  # which have no empty folders
        self._made = [] if buckets else [f for f in folders if not storage.is_dir(f)]
        self._checksums = checksums.Writer() if keep.checksums else None
        processes.meet("the folder of checkpoints")  # Orbax's barriers are collectives
        kept = (RESUME, BEST) if processes.first() and not buckets else ()
        self._trash = [trash.Trash(root / name) for name in kept]
        self._resume = _manager(root / RESUME, max_to_keep=keep.keep, keep_period=keep.keep_every)
        self._best = None
        if keep.best_metric:
            self._best = _manager(
                root / BEST,
                max_to_keep=keep.best_keep,
                best_fn=lambda metrics: metrics["value"],
                best_mode=keep.best_mode,
            )

    def check_space(self, state: Any, advice: str = ADVICE) -> None:
        """UserError when the disk cannot hold one more save of `state` (arrays or shapes).

        `advice` ends it. Process 0 looks, all hear: what Orbax's threads say of it nobody reads.
        """
        place = storage.path(self._resume.directory)
        needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

        def short() -> str:
            free = storage.free(place)
            sizes = f"takes {needed / 1e6:.0f} MB, free are {free / 1e6:.0f} MB"
            text = f"{place}: a checkpoint {sizes}; {advice}"
            return processes.tell("" if free >= needed else text)

        if short():  # perhaps until the save before has dropped another, and that is deleted
            self._await_saves()
            for dropped in self._trash:
                dropped.empty(wait=True)
            if problem := short():
                raise processes.KnownToAll(problem)

    def latest(self) -> int | None:
        """The step of the newest resume point, None before the first."""
        return self._resume.latest_step()

    def save(
        self,
        step: int,
        state: states.TrainState,
        n: Mapping[str, int],
        seconds: Mapping[str, float] | None = None,
    ) -> None:
        """Begins to save a resume point; nothing when this step is saved already.

        `seconds`: what the run has taken so far, see accounting.Account.
        """
        if self.latest() == step:
            return
        self.check_space(state)
        arrays = {"params": state.variables, "optimizer": state.opt_state}
        self._save(self._resume, step, state, n, arrays, seconds=seconds)

    def save_best(
        self,
        step: int,
        state: states.TrainState,
        n: Mapping[str, int],
        metrics: Mapping[str, float],
    ) -> None:
        """Saves the parameters if `config.checkpoint.best_metric` is among the best so far.

        UserError when `metrics`, the same on every process, do not hold it, or it is not finite.
        """
        if self._best is None:
            return
        name = self._config.checkpoint.best_metric
        if name not in metrics:
            text = plugin.unknown("config.checkpoint.best_metric", name, metrics)
            raise processes.KnownToAll(text)
        value = {"value": float(metrics[name])}
        if not math.isfinite(value["value"]):
            text = f"train_step {step}: the best metric {name} is {metrics[name]}"
            raise processes.KnownToAll(text)
        # Left by a run that went further, broke off and began again: Orbax would refuse this step.
        for stale in [s for s in self._best.all_steps() if s >= step]:
            self._best.delete(stale)
        self._save(self._best, step, state, n, {"params": state.variables}, value)

    def save_parameters(self, step: int, variables: Mapping[str, Any]) -> None:
        """Saves parameters alone (an import): for policies and fine-tuning, no run goes on here.

        UserError when the disk cannot hold them.
        """
        self.check_space(variables, "make room, or choose another folder")
        self._write(self._resume, step, {}, {"params": variables})

    def _save(self, manager, step, state, n, arrays, metrics=None, seconds=None):
        if state.ema is not None:
            arrays["ema"] = state.ema
        self._write(manager, step, n, arrays, metrics, seconds)

    def _write(self, manager, step, n, arrays, metrics=None, seconds=None):
        items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        meta = metas.to_json(step, n, self._config, self._assets, self._provenance, seconds or {})
        items["meta"] = ocp.args.JsonSave(meta)
        for dropped in self._trash:
            dropped.empty()
        with _write_errors(manager):
            manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)
        if self._checksums and jax.process_index() == 0:
            self._checksums.add(storage.path(manager.directory) / str(step))

    def restore(
        self, abstract: states.TrainState, step: int | None = None
    ) -> tuple[states.TrainState, Meta]:
        """(state, meta) of a resume point, the newest by default, on the mesh of `abstract`.

        `abstract` holds ShapeDtypeStructs with shardings; the mesh may be another than at saving.
        UserError for another architecture, optimizer or format version.
        """
        step = self.latest() if step is None else step
        folder = storage.path(self._resume.directory) / str(step)
        meta = read_meta(folder)
        wanted = {"params": abstract.variables, "optimizer": abstract.opt_state}
        if abstract.ema is not None:
            wanted["ema"] = abstract.ema
        for name, tree in wanted.items():
            stored.check(folder, name, tree)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        try:
            got = self._resume.restore(step, args=ocp.args.Composite(**items))
        except UNREADABLE as error:
            raise stored.refused(folder, "", error) from error
        trained, frozen = states.split(got["params"], self._config.freeze)
        state = states.TrainState(
            # Not device_put, which first compares the value between processes: a collective.
            step=jax.make_array_from_callback(
                (), abstract.step.sharding, lambda _: np.int32(meta.step)
            ),
            trained=trained,
            frozen=frozen,
            opt_state=got["optimizer"],
            ema=got["ema"] if abstract.ema is not None else None,
        )
        return state, meta

    def wait(self) -> None:
        """Returns when the saves begun are on disk; raises what went wrong with them."""
        self._await_saves()
        if self._checksums:
            self._checksums.finish()

    def _await_saves(self) -> None:
        for manager in filter(None, (self._resume, self._best)):
            with _write_errors(manager):
                manager.wait_until_finished()

    def close(self) -> None:
        """Waits for saves and frees their threads; a run that saved nothing leaves no folder."""
        for manager in filter(None, (self._resume, self._best)):
            with _write_errors(manager):
                manager.close()
        for dropped in self._trash:
            dropped.close()
        if self._checksums:
            self._checksums.finish()
        if jax.process_index() == 0:
            for folder in self._made:
                with contextlib.suppress(OSError):  # it is not empty
                    folder.rmdir()


@contextlib.contextmanager
def _write_errors(manager: ocp.CheckpointManager) -> Iterator[None]:
    """What Orbax and its threads raise becomes a UserError that names the last good checkpoint."""
    try:
        yield
    except plugin.UserError:
        raise
    except UNREADABLE as error:
        saved = metas.steps(storage.path(manager.directory))
        last = f"the last whole one is train_step {saved[-1]}" if saved else "it holds none yet"
        raise plugin.UserError(
            f"{manager.directory}: a checkpoint could not be written: {stored.first_line(error)}; "
            f"{last}. Is the disk full, or may you not write there? Give the same command again "
            "when it is mended"
        ) from error


def _manager(folder: pathlib.PurePath, **options) -> ocp.CheckpointManager:
    # In a bucket to move is to copy: Orbax deletes there by itself.
    moved = None if storage.is_url(folder) else trash.FOLDER
    try:
        return ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(create=True, todelete_subdir=moved, **options),
        )
    except OSError as error:
        raise plugin.UserError(
            f"{folder}: checkpoints cannot be written there: {error}; choose another --workdir"
        ) from error
