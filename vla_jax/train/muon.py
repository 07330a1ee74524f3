"""Muon for matrices, AdamW for the rest; which is which says a first-match table.

A matrix's momentum is replaced by the nearest matrix whose singular values are all about 1, found
by five Newton-Schulz iterations (Jordan et al. 2024; optax.contrib). It is multiplied by
0.2 · sqrt(max(inputs, outputs)), so that an entry moves as far as AdamW moves it and both share one
learning rate and weight decay (Liu et al. 2025, arXiv 2502.16982). Each layer of a stacked
parameter is a matrix of its own; heads of attention are part of one:

    query  [layer, D, N, H]   inputs (1,)    outputs (2, 3)      D x NH, for each layer
    out    [layer, N, H, D]   inputs (1, 2)  outputs (3,)        NH x D
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import optax
from optax import contrib

from vla_jax import config as config_lib
from vla_jax import plugin, trees

RMS = 0.2  # of an entry of the update, as AdamW's
ITERATIONS = 5
KEYS = ("inputs", "outputs")


def make(
    config: config_lib.OptimizerConfig, variables: Mapping[str, Any]
) -> optax.GradientTransformation:
    """The directions of both, before learning rate and decay; `variables` as in optimizer.make.

    The momentum has its parameter's path and shape, and so its sharding. UserError for a row that
    does not fit, and when none says that anything is a matrix.
    """
    default = {pattern for pattern, _ in config_lib.OptimizerConfig().muon}  # fits no network whole
    typed = tuple(row for row in config.muon if row[0] not in default)
    trees.check_rows("config.optimizer.muon", typed, variables)
    found = {path: axes(config, path, leaf.shape) for path, leaf in trees.items(variables)}
    if not any(found.values()):
        raise plugin.UserError(
            "config.optimizer.muon: no row names a matrix among the parameters; expected one like "
            '(r"params/trunk/.*/mlp/.*/kernel", {"inputs": (1,), "outputs": (2,)})'
        )

    def label(path: str, _: Any) -> str:
        return "muon" if found[path] else "adamw"

    def numbers(tree: Any) -> Any:
        return trees.map_with_path(lambda path, _: found[path], tree)

    directions = contrib.scale_by_muon(
        ns_steps=ITERATIONS, beta=config.momentum, weight_dimension_numbers=numbers
    )
    adamw = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    return optax.partition(
        {"muon": optax.chain(directions, _scale(found)), "adamw": adamw},
        lambda tree: trees.map_with_path(label, tree),
    )


def axes(
    config: config_lib.OptimizerConfig, path: str, shape: tuple[int, ...]
) -> contrib.MuonDimensionNumbers | None:
    """Which axes of a parameter are a matrix's inputs and outputs; None: it is AdamW's.

    The other axes count matrices. UserError for axes that the shape has not.
    """
    row = trees.first_match((*config.muon, (".*", None)), path)
    if row is None:
        return None
    where = f"config.optimizer.muon at {path}"
    if not isinstance(row, Mapping) or set(row) != set(KEYS):
        raise plugin.UserError(
            f"{where}: got {row!r}, expected None or axes by {' and '.join(KEYS)}"
        )
    ins, outs = (tuple(row[key]) for key in KEYS)
    named = [*ins, *outs]
    right = all(isinstance(axis, int) and 0 <= axis < len(shape) for axis in named)
    if not ins or not outs or not right or len(set(named)) != len(named):
        raise plugin.UserError(
            f"{where}: inputs {ins} and outputs {outs} of shape {tuple(shape)}; expected axes from "
            f"0 to {len(shape) - 1}, each once"
        )
    return contrib.MuonDimensionNumbers(reduction_axis=ins, output_axis=outs)


def _scale(found: Mapping[str, Any]) -> optax.GradientTransformation:
    """Multiplies each update by RMS · sqrt(max(inputs, outputs)) of its matrices."""

    def one(path: str, update: jax.Array) -> jax.Array:
        sides = (math.prod(update.shape[axis] for axis in side) for side in found[path])
        return update * (RMS * math.sqrt(max(sides)))

    return optax.stateless(lambda updates, params: trees.map_with_path(one, updates))
