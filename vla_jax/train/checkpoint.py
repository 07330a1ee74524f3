"""Checkpoints: self-sufficient folders of separate items. The only file that imports orbax.

    WORKDIR/checkpoints/STEP/{params,optimizer,ema,meta}    resume points, the newest few
    WORKDIR/best/STEP/{params,ema,meta}                     the best few by a metric, kept apart

``params`` holds trained and frozen parameters in one tree, so that a run may freeze others.
``meta`` is JSON: step, n per stream, config, normalizers, action spaces, text tokenizer, provenance
and format_version. Serving, evaluation and fine-tuning need the folder alone. Saves are sharded and
asynchronous; a save that was interrupted has another name and is never read.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vla_jax import config as config_lib
from vla_jax import plugin, trees, types
from vla_jax.codecs.normalizer import Normalizer
from vla_jax.train import provenance
from vla_jax.train import state as states

FORMAT_VERSION = 1
RESUME, BEST = "checkpoints", "best"
ADVICE = "make room or choose another --workdir; the run goes on from its last checkpoint"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assets:
    """What a checkpoint keeps beside arrays, so that its folder is enough to act."""

    normalizer: str | None = None  # codecs.Normalizer.to_json()
    text_tokenizer: bytes | None = None  # see codecs/text_tokenizer.py
    action_spaces: tuple[types.ActionSpace, ...] = ()
    mixtures: Mapping[str, Mapping[str, str]] = dataclasses.field(
        default_factory=dict
    )  # stream -> {"fingerprint": …, "table": …}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta:
    """The JSON item of a checkpoint, parsed."""

    step: int
    n: dict[str, int]  # stream -> samples drawn
    config: config_lib.TrainConfig
    assets: Assets
    provenance: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """A checkpoint without mesh and optimizer: what policies, evaluations and fine-tuning take."""

    variables: dict[str, Any]  # numpy; the moving average where there is one
    meta: Meta
    folder: pathlib.Path  # of this step

    @property
    def config(self) -> config_lib.TrainConfig:
        """The config it was trained with."""
        return self.meta.config

    @property
    def normalizer(self) -> str | None:
        """The Normalizer's JSON."""
        return self.meta.assets.normalizer

    @property
    def text_tokenizer(self) -> bytes | None:
        """The SentencePiece model."""
        return self.meta.assets.text_tokenizer

    @property
    def action_spaces(self) -> tuple[types.ActionSpace, ...]:
        """The table that `Batch.action_space` indexes."""
        return self.meta.assets.action_spaces


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
        root = pathlib.Path(workdir).absolute()
        self._config, self._assets = config, assets
        self._provenance = {**provenance.collect(), **(origin or {})}
        keep = config.checkpoint
        folders = (root / BEST, root / RESUME, root)
        self._made = [folder for folder in folders if not folder.exists()]
        self._resume = _manager(root / RESUME, max_to_keep=keep.keep)
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

        `advice` ends the message.

        Orbax writes from threads of its own; what a full disk makes of them says nothing to people.
        """
        needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        place = pathlib.Path(self._resume.directory)
        free = shutil.disk_usage(next(p for p in (place, *place.parents) if p.exists())).free
        if free < needed:
            raise plugin.UserError(
                f"{place}: a checkpoint takes {needed / 1e6:.0f} MB, free are {free / 1e6:.0f} MB; "
                f"{advice}"
            )

    def latest(self) -> int | None:
        """The step of the newest resume point, None before the first."""
        return self._resume.latest_step()

    def save(self, step: int, state: states.TrainState, n: Mapping[str, int]) -> None:
        """Begins to save a resume point; nothing when this step is saved already."""
        if self.latest() == step:
            return
        self.check_space(state)
        arrays = {"params": state.variables, "optimizer": state.opt_state}
        self._save(self._resume, step, state, n, arrays)

    def save_best(
        self,
        step: int,
        state: states.TrainState,
        n: Mapping[str, int],
        metrics: Mapping[str, float],
    ) -> None:
        """Saves the parameters if `config.checkpoint.best_metric` is among the best so far.

        UserError when `metrics` do not hold it, or it is not finite.
        """
        if self._best is None:
            return
        name = self._config.checkpoint.best_metric
        if name not in metrics:
            raise plugin.UserError(plugin.unknown("config.checkpoint.best_metric", name, metrics))
        value = {"value": float(metrics[name])}
        if not math.isfinite(value["value"]):
            raise plugin.UserError(f"train_step {step}: the best metric {name} is {metrics[name]}")
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

    def _save(self, manager, step, state, n, arrays, metrics=None):
        if state.ema is not None:
            arrays["ema"] = state.ema
        self._write(manager, step, n, arrays, metrics)

    def _write(self, manager, step, n, arrays, metrics=None):
        items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        meta = _meta_json(step, n, self._config, self._assets, self._provenance)
        manager.save(
            step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items), metrics=metrics
        )

    def restore(
        self, abstract: states.TrainState, step: int | None = None
    ) -> tuple[states.TrainState, Meta]:
        """(state, meta) of a resume point, the newest by default, on the mesh of `abstract`.

        `abstract` holds ShapeDtypeStructs with shardings; the mesh may be another than at saving.
        UserError for another architecture, optimizer or format version.
        """
        step = self.latest() if step is None else step
        folder = self._resume.directory / str(step)
        meta = read_meta(folder)
        wanted = {"params": abstract.variables, "optimizer": abstract.opt_state}
        if abstract.ema is not None:
            wanted["ema"] = abstract.ema
        for name, tree in wanted.items():
            _check(folder, name, tree)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        got = self._resume.restore(step, args=ocp.args.Composite(**items))
        trained, frozen = states.split(got["params"], self._config.freeze)
        state = states.TrainState(
            step=jax.device_put(np.int32(meta.step), abstract.step.sharding),
            trained=trained,
            frozen=frozen,
            opt_state=got["optimizer"],
            ema=got["ema"] if abstract.ema is not None else None,
        )
        return state, meta

    def wait(self) -> None:
        """Returns when the saves begun are on disk; raises what went wrong with them."""
        for manager in filter(None, (self._resume, self._best)):
            manager.wait_until_finished()

    def close(self) -> None:
        """Waits for saves and frees their threads; a run that saved nothing leaves no folder."""
        for manager in filter(None, (self._resume, self._best)):
            manager.close()
        if jax.process_index() == 0:
            for folder in self._made:
                with contextlib.suppress(OSError):  # it is not empty
                    folder.rmdir()


def compare(ours: Assets, theirs: Assets) -> dict[str, bool]:
    """{asset: whether both agree}; statistics to 1e-6, since another CPU may sum otherwise."""
    normalizers = [
        Normalizer.from_json(assets.normalizer) if assets.normalizer else None
        for assets in (ours, theirs)
    ]
    if None in normalizers:
        same = normalizers[0] is normalizers[1]
    else:
        same = normalizers[0].close_to(normalizers[1])
    return {
        "statistics or modes of the normalizer": same,
        "pieces of the text tokenizer": ours.text_tokenizer == theirs.text_tokenizer,
        "action spaces of the embodiments": ours.action_spaces == theirs.action_spaces,
    }


def load(folder: str, step: int | None = None, averaged: bool = True) -> Loaded:
    """The parameters of a run's folder (or of one step's) as numpy, without mesh and optimizer.

    The moving average where there is one, unless `averaged` is False. UserError for a folder
    without a checkpoint and for another format version.
    """
    path = find(folder, step)
    meta = read_meta(path)
    variables = _restore_numpy(path / "params")
    if averaged and (path / "ema").is_dir():
        average = trees.flatten(_restore_numpy(path / "ema"))
        variables = trees.unflatten({**trees.flatten(variables), **average})
    return Loaded(variables=variables, meta=meta, folder=path)


def load_params(folder: str, step: int | None = None) -> dict[str, Any]:
    """The parameters alone, see `load`."""
    return load(folder, step).variables


def find(folder: str, step: int | None = None) -> pathlib.Path:
    """The folder of one step: `folder` itself, or the newest step (or `step`) of the run there."""
    root = pathlib.Path(folder).absolute()
    if (root / "meta").is_dir() and step is None:
        return root
    for place in (root / RESUME, root):
        steps = sorted(int(p.name) for p in place.glob("*") if _is_complete(p))
        if steps and step is None:
            return place / str(steps[-1])
        if steps and step not in steps:
            raise plugin.UserError(plugin.unknown(f"checkpoint step in {place}", str(step), steps))
        if steps:
            return place / str(step)
    state = "holds no complete checkpoint" if root.is_dir() else "does not exist"
    raise plugin.UserError(
        f"checkpoint {folder}: {state}; expected a run's folder with {RESUME}/STEP/params in it"
    )


def resumable(workdir: str) -> bool:
    """Whether a run in `workdir` would go on from a checkpoint there."""
    return any(_is_complete(path) for path in (pathlib.Path(workdir) / RESUME).glob("*"))


def read_meta(folder: pathlib.Path) -> Meta:
    """The parsed JSON item of one step's folder; UserError for another format version."""
    path = pathlib.Path(folder) / "meta" / "metadata"
    if not path.is_file():
        raise plugin.UserError(f"checkpoint {folder}: {path} is missing; the folder is damaged")
    try:
        raw = json.loads(path.read_text())
    except ValueError as error:
        raise plugin.UserError(
            f"checkpoint {folder}: {path} is no JSON ({error}); the folder is damaged, use another "
            "step of this run"
        ) from error
    version = raw["format_version"] if "format_version" in raw else None
    if version != FORMAT_VERSION:
        raise plugin.UserError(
            f"checkpoint {folder}: format_version {version}, this code reads {FORMAT_VERSION}; use "
            f"the version of vla_jax that wrote it (commit "
            f"{raw.get('provenance', {}).get('git_commit') or 'unknown'})"
        )
    return _parse_meta(raw)


def _manager(folder: pathlib.Path, **options) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        folder, options=ocp.CheckpointManagerOptions(create=True, **options)
    )


def _is_complete(path: pathlib.Path) -> bool:
    return path.name.isdigit() and (path / "meta").is_dir() and (path / "params").is_dir()


def _check(folder: pathlib.Path, name: str, wanted: Any) -> None:
    """UserError with a readable difference unless the item's shapes are those of `wanted`."""
    path = folder / name
    if not path.is_dir():
        raise plugin.UserError(
            f"checkpoint {folder} has no {name}; this config wants it (config.optimizer.ema?). "
            "Begin another run from its parameters with config.init_from"
        )
    stored = ocp.PyTreeCheckpointHandler().metadata(path).tree
    difference = trees.diff(wanted, _drop_empty(stored))
    if difference:
        raise plugin.UserError(
            f"checkpoint {folder}: its {name} are of another architecture:\n{difference}\n"
            "To resume, use the config it was trained with; to begin from its parameters, another "
            "--workdir and config.init_from"
        )


def _drop_empty(tree: Any) -> Any:
    """Orbax lists empty nodes of named tuples; jax has no leaf for them."""
    return jax.tree.map(lambda leaf: leaf if hasattr(leaf, "shape") else None, tree)


def _restore_numpy(path: pathlib.Path) -> dict[str, Any]:
    reader = ocp.PyTreeCheckpointHandler()
    tree = reader.metadata(path).tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def _meta_json(step, n, config, assets: Assets, provenance_: dict) -> dict[str, Any]:
    tokenizer = assets.text_tokenizer
    return {
        "format_version": FORMAT_VERSION,
        "step": step,
        "n": dict(n),
        "config": json.loads(config_lib.to_json(config)),
        "normalizer": assets.normalizer,
        "action_spaces": [dataclasses.asdict(space) for space in assets.action_spaces],
        "text_tokenizer": None if tokenizer is None else base64.b64encode(tokenizer).decode(),
        "mixtures": {stream: dict(mixture) for stream, mixture in assets.mixtures.items()},
        "provenance": provenance_,
    }


def _parse_meta(raw: Mapping[str, Any]) -> Meta:
    tokenizer = raw["text_tokenizer"]
    assets = Assets(
        normalizer=raw["normalizer"],
        text_tokenizer=None if tokenizer is None else base64.b64decode(tokenizer),
        action_spaces=tuple(
            config_lib.parse(types.ActionSpace, space, "checkpoint.action_spaces")
            for space in raw["action_spaces"]
        ),
        mixtures=raw["mixtures"],
    )
    config = config_lib.parse(config_lib.TrainConfig, raw["config"], "checkpoint.config")
    return Meta(
        step=raw["step"], n=raw["n"], config=config, assets=assets, provenance=raw["provenance"]
    )
