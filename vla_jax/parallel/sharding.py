"""First-match table from parameter paths to PartitionSpecs, for any tree that holds parameters.

A row is ``(regex, axes)`` over whole paths (``params/trunk/attention/query/kernel``). ``axes`` is

    (None, "fsdp", "tensor")            mesh axes (or tuples of them) of the leading dimensions
    {"axes": (…), "or_replicate": True} the same; a dimension that does not divide stays whole
    "fsdp"                              this axis on the largest dimension that it divides, or none
    None or ()                          replicated

An optimizer moment or moving average of a parameter has a path that ends in the parameter's, and
its shape: it takes the same spec. A factored moment (Adafactor's) lacks one of its axes, and takes
the spec without it. Everything else (counters) is replicated, small parameters too.

Trap: with fsdp and tensor on two dimensions of one weight, and batches over (data, fsdp), XLA's
partitioner silently returns WRONG gradients where the layer's output is left unconstrained (2x2x2,
jax 0.10.2 and 0.12.0.1, CPU). Such rows are for layers that constrain the batch of what they
return, as the trunk's blocks do; test_sharding.py and `vla smoke` compare with one device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vla_jax import plugin, trees

Rules = Sequence[tuple[str, Any]]


def specs(params: Any, rules: Rules, mesh: Mesh, small: int = 2**16) -> Any:
    """The tree of PartitionSpecs of a parameter tree (arrays or shapes).

    Parameters of fewer than `small` numbers are replicated. UserError for a parameter that no row
    matches, an unknown axis, and a dimension that its axes do not divide.
    """
    return trees.map_with_path(lambda path, leaf: _spec(path, leaf, rules, mesh, small), params)


def state_shardings(
    state: Any, params: Mapping, rules: Rules, mesh: Mesh, small: int = 2**16
) -> Any:
    """The tree of NamedShardings of a state whose leaf paths end in paths of `params`."""
    flat = dict(trees.items(params))
    table = dict(zip(flat, jax.tree.leaves(specs(params, rules, mesh, small), is_leaf=_is_spec)))

    def sharding(path, leaf):
        name = owner(path, flat)
        if name is None:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, _of_moment(path, leaf.shape, flat[name].shape, table[name]))

    return trees.map_with_path(sharding, state)


def _of_moment(path: str, shape: tuple, of: tuple, spec: PartitionSpec) -> PartitionSpec:
    """The spec of a leaf of `shape` that belongs to a parameter of shape `of` and this spec."""
    if tuple(shape) == tuple(of):
        return spec
    axes = [*spec, *[None] * (len(of) - len(spec))]
    # optax factors the two largest axes: v_row lacks the largest (the last of equals), v_col the
    # other.
    order = np.argsort(of, kind="stable")[::-1]
    lacks = order[1:2] if "v_col" in path.split("/") else order[:1]
    for axis in lacks.tolist():
        if tuple(np.delete(of, axis)) == tuple(shape):
            return PartitionSpec(*np.delete(np.asarray(axes, object), axis))
    return PartitionSpec()


def owner(path: str, params: Mapping[str, Any]) -> str | None:
    """The longest suffix of `path` that is a parameter's path (of a moment, say), or None."""
    parts = path.split("/")
    suffixes = ("/".join(parts[i:]) for i in range(len(parts)))
    return next((suffix for suffix in suffixes if suffix in params), None)


def report(params: Any, shardings: Any) -> str:
    """A table of every parameter: path, shape, axes, numbers, bytes per device; then their sums."""
    rows, total, held = [("parameter", "shape", "sharding", "numbers", "bytes per device")], 0, 0
    pairs = zip(trees.items(params), jax.tree.leaves(shardings))
    for (path, leaf), sharding in pairs:
        shard = math.prod(sharding.shard_shape(tuple(leaf.shape)))
        size = np.dtype(leaf.dtype).itemsize
        total, held = total + size * math.prod(leaf.shape), held + size * shard
        axes = ", ".join("+".join(_names(axis)) or "-" for axis in sharding.spec) or "replicated"
        numbers = f"{math.prod(leaf.shape):,}"
        rows.append((path, f"{list(leaf.shape)}", axes, numbers, f"{size * shard:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join(f"{cell:{'<<<>>'[i]}{widths[i]}}" for i, cell in enumerate(row)) for row in rows
    ]
    count = trees.count(params)
    return "\n".join([*lines, f"{count:,} numbers, {total:,} bytes, {held:,} bytes per device"])


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, PartitionSpec)


def _names(axis: str | Sequence[str] | None) -> tuple[str, ...]:
    return (axis,) if isinstance(axis, str) else tuple(axis or ())


def _spec(path: str, leaf: Any, rules: Rules, mesh: Mesh, small: int) -> PartitionSpec:
    row, shape = trees.first_match(rules, path), tuple(leaf.shape)
    axes, or_replicate = _axes(path, row, mesh)
    if math.prod(shape) < small:
        return PartitionSpec()
    if isinstance(axes, str):
        return _largest(shape, axes, mesh.shape[axes])
    if len(axes) > len(shape):
        raise plugin.UserError(f"sharding of {path}: {len(axes)} axes {axes} for shape {shape}")
    chosen = []
    for size, axis in zip(shape, axes):
        ways = math.prod(mesh.shape[name] for name in _names(axis))
        if size % ways and not or_replicate:
            raise plugin.UserError(
                f"sharding of {path}: dimension {size} of shape {shape} is not divisible by {ways} "
                f"({'+'.join(_names(axis))}); choose a mesh or width that divides, or let the row "
                f'say {{"axes": {axes}, "or_replicate": True}}'
            )
        chosen.append(axis if ways > 1 and size % ways == 0 else None)
    return PartitionSpec(*chosen)


def _axes(path: str, row: Any, mesh: Mesh) -> tuple[str | tuple, bool]:
    """(axes, or_replicate) of a row, checked."""
    or_replicate = False
    if isinstance(row, Mapping):
        if set(row) != {"axes", "or_replicate"}:
            raise plugin.UserError(
                f"sharding of {path}: row {dict(row)}; its keys are axes, or_replicate"
            )
        row, or_replicate = row["axes"], row["or_replicate"]
    axes = row if isinstance(row, str) else tuple(row or ())
    for name in _names(axes) if isinstance(axes, str) else sum(map(_names, axes), ()):
        if name not in mesh.shape:
            raise plugin.UserError(plugin.unknown(f"sharding of {path}", name, mesh.shape))
    return axes, or_replicate


def _largest(shape: tuple[int, ...], axis: str, ways: int) -> PartitionSpec:
    fits = [i for i, size in enumerate(shape) if ways > 1 and size % ways == 0]
    if not fits:
        return PartitionSpec()
    best = max(
        fits, key=lambda i: (shape[i], i)
    )  # the last of equals: never the layer axis of them
    return PartitionSpec(*[axis if i == best else None for i in range(len(shape))])
