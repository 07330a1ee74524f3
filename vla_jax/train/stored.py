"""Reads the arrays of a checkpoint's folder: as numpy, or each host its part of them.

Nothing here knows of a run; `train/checkpoint.py`, which saves and resumes one, hands this on.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vla_jax import config as config_lib
from vla_jax import plugin, storage, trees, types
from vla_jax.train import meta as metas
from vla_jax.train.meta import Meta, find, read_meta

UNREADABLE = Exception  # what Orbax raises when files fail; TensorStore raises ValueError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """A step's folder of which no array was opened."""

    meta: Meta
    folder: pathlib.PurePath  # of this step

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

    def shapes(self) -> dict[str, Any]:
        """{path: metadata with shape and dtype} of all parameters."""
        return shapes(self.folder, "params")

    def place(self, wanted: Mapping[str, tuple[str, jax.ShapeDtypeStruct]]) -> dict[str, jax.Array]:
        """{name: array} of `wanted`, {name: (path here, what it shall be, with a sharding)}.

        The moving average where there is one. Each host reads its devices' part of an array and no
        more. UserError where they cannot be read.
        """
        averaged = storage.is_dir(self.folder / "ema")
        average = set(shapes(self.folder, "ema")) if averaged else set()
        found: dict[str, jax.Array] = {}
        for item in ("params", "ema"):
            asked = {
                name: pair
                for name, pair in wanted.items()
                if (pair[0] in average) == (item == "ema")
            }
            found |= _place(self.folder / item, asked)
        return {name: found[name] for name in wanted}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded(Stored):
    """A checkpoint without mesh and optimizer: what policies and evaluations take."""

    variables: dict[str, Any]  # numpy; the moving average where there is one

    def shapes(self) -> dict[str, Any]:
        """{path: array} of all parameters."""
        return dict(trees.items(self.variables))


def look(folder: str, step: int | None = None) -> Stored:
    """What a run's folder (or one step's) says of itself; see `load` for the errors."""
    path = find(folder, step)
    return Stored(meta=read_meta(path), folder=path)


def load(folder: str, step: int | None = None, averaged: bool = True) -> Loaded:
    """The parameters of a run's folder (or of one step's) as numpy, without mesh and optimizer.

    The moving average where there is one, unless `averaged` is False. UserError for a folder
    without a checkpoint and for another format version.
    """
    path = find(folder, step)
    meta = read_meta(path)
    variables = _restore_numpy(path / "params")
    if averaged and storage.is_dir(path / "ema"):
        average = trees.flatten(_restore_numpy(path / "ema"))
        variables = trees.unflatten({**trees.flatten(variables), **average})
    return Loaded(variables=variables, meta=meta, folder=path)


def load_params(folder: str, step: int | None = None) -> dict[str, Any]:
    """The parameters alone, see `load`."""
    return load(folder, step).variables


def items(folder: pathlib.PurePath) -> list[str]:
    """The names of the items that hold arrays in one step's folder: params, optimizer, ema.

    As the save has listed them, whether or not their folders are still there.
    """
    folder = storage.path(folder)
    try:
        listed = json.loads(storage.read(folder / "_CHECKPOINT_METADATA"))["item_handlers"]
    except (OSError, ValueError, KeyError) as error:
        raise metas.damaged(folder, f"_CHECKPOINT_METADATA: {error!r}") from error
    return sorted(name for name in listed if name not in ("meta", "metrics"))


def shapes(folder: pathlib.PurePath, item: str) -> dict[str, Any]:
    """{path: metadata with shape and dtype} of one item of a step's folder; reads no array."""
    return dict(trees.items(_drop_empty(metadata(storage.path(folder) / item))))


def arrays(
    folder: pathlib.PurePath, item: str, only: Collection[str] | None = None
) -> Iterator[tuple[str, np.ndarray | Exception]]:
    """(path, array) of one item of a step's folder, one at a time; an Exception if unreadable.

    `only`: the paths wanted, all by default.
    """
    path = storage.path(folder) / item
    reader, tree = ocp.PyTreeCheckpointHandler(), metadata(path)
    leaves, structure = jax.tree.flatten(tree)
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    for i, (name, leaf) in enumerate(trees.items(tree)):
        if not hasattr(leaf, "shape") or (only is not None and name not in only):
            continue
        one = [ocp.PLACEHOLDER] * len(leaves)
        one[i] = leaf
        wanted = jax.tree.unflatten(structure, one)
        ask = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy)
        try:
            yield name, jax.tree.leaves(reader.restore(path, args=ask))[i]
        except UNREADABLE as error:
            yield name, error


def refused(folder: pathlib.PurePath, item: str, error: BaseException) -> plugin.UserError:
    """What to say of an error met while arrays were read onto devices."""
    said = f"{item}{first_line(error)}"
    # XLA's; TensorStore says RESOURCE_EXHAUSTED, too, of a disk and of open files.
    if re.search("RESOURCE_EXHAUSTED.*(allocat|[Oo]ut of memory)", str(error), re.DOTALL):
        return plugin.UserError(
            f"checkpoint {folder} does not fit into the devices' memory: {said}; use more devices "
            "or more config.mesh.fsdp (`vla plan` says what the config needs)"
        )
    return metas.damaged(folder, said)


def first_line(error: BaseException) -> str:
    """What TensorStore or Orbax said first; the rest are addresses in their sources."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    line = re.split(r" \[(?:source locations|tensorstore_spec)", line)[0]
    return line if len(line) < 500 else f"{line[:200]} … {line[-280:]}"


def metadata(path: pathlib.PurePath) -> Any:
    """The tree of an item's metadata; UserError where it cannot be read."""
    try:
        return ocp.PyTreeCheckpointHandler().metadata(path).tree
    except UNREADABLE as error:
        raise metas.damaged(path.parent, f"{path.name}: {first_line(error)}") from error


def check(folder: pathlib.PurePath, name: str, wanted: Any) -> None:
    """UserError with a readable difference unless the item's shapes are those of `wanted`."""
    path = folder / name
    if not storage.is_dir(path):
        raise plugin.UserError(
            f"checkpoint {folder} has no {name}; this config wants it (config.optimizer.ema?). "
            "Begin another run from its parameters with config.init_from"
        )
    stored = metadata(path)
    difference = trees.diff(wanted, _drop_empty(stored))
    if difference:
        raise plugin.UserError(
            f"checkpoint {folder}: its {name} are of another architecture:\n{difference}\n"
            "To resume, use the config and the version of vla_jax it was trained with; to begin "
            "from its parameters, another --workdir and config.init_from"
        )


def _drop_empty(tree: Any) -> Any:
    """Orbax lists empty nodes of named tuples; jax has no leaf for them."""
    return jax.tree.map(lambda leaf: leaf if hasattr(leaf, "shape") else None, tree)


def _restore_numpy(path: pathlib.PurePath) -> dict[str, Any]:
    reader, tree = ocp.PyTreeCheckpointHandler(), metadata(path)
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    try:
        return reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except UNREADABLE as error:
        raise metas.damaged(path.parent, f"{path.name}: {first_line(error)}") from error


def _place(path: pathlib.PurePath, wanted: Mapping) -> dict[str, jax.Array]:
    """`Stored.place` from one item."""
    if not wanted:
        return {}
    tree = metadata(path)
    leaves, structure = jax.tree.flatten(tree)
    at = {name: i for i, (name, _) in enumerate(trees.items(tree))}
    # An array that two names ask for is read twice: each may have another type and sharding.
    rounds: list[dict[int, str]] = []
    for name, (source, _) in wanted.items():
        fits = next((r for r in rounds if at[source] not in r), None)
        if fits is None:
            rounds.append(fits := {})
        fits[at[source]] = name
    found = {}
    for asked in rounds:
        holes = [leaf if i in asked else ocp.PLACEHOLDER for i, leaf in enumerate(leaves)]
        how = [ocp.RestoreArgs()] * len(leaves)
        for i, name in asked.items():
            leaf = wanted[name][1]
            how[i] = ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype)
        ask = ocp.args.PyTreeRestore(
            item=jax.tree.unflatten(structure, holes),
            restore_args=jax.tree.unflatten(structure, how),
        )
        try:
            got = jax.tree.leaves(ocp.PyTreeCheckpointHandler().restore(path, args=ask))
        except UNREADABLE as error:
            raise refused(path.parent, f"{path.name}: ", error) from error
        found |= {name: got[i] for i, name in asked.items()}
    return found
