"""Named paths over pytrees, first-match regex tables, split and merge, readable differences.

Importing this module registers the dataclasses of ``types.py`` as pytrees (their file must not
import jax). A path joins keys with "/": ``params/trunk/attention/query/kernel``. It begins with the
collection (``params/``, ``lora/``). Sharding, optimizer groups and freezing are all tables of rows
``(regex, value)``: the first row whose regex matches the *whole* path decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax import plugin, types

Tree = Any
Table = Sequence[tuple[str, Any]]


def _register() -> None:
    for cls in (types.Observation, types.Task, types.Batch):
        jax.tree_util.register_dataclass(cls)
    for cls, data in (
        (types.TokenGroup, ["tokens", "valid", "stem"]),
        (types.Output, ["stem", "final", "valid"]),
    ):
        jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=["grid"])


_register()


def path_string(path: Iterable[Any]) -> str:
    """The keys of a jax key path joined with "/"."""
    names = []
    for key in path:
        for attribute in ("key", "name", "idx"):
            if hasattr(key, attribute):
                names.append(str(getattr(key, attribute)))
                break
        else:
            names.append(str(key))
    return "/".join(names)


def items(tree: Tree) -> list[tuple[str, Any]]:
    """(path, leaf) pairs in jax's order; None is no leaf."""
    return [(path_string(p), leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def paths(tree: Tree) -> list[str]:
    """Paths of the leaves in jax's order, e.g. ``params/trunk/attention/query/kernel``."""
    return [path for path, _ in items(tree)]


def map_with_path(f: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """The tree of ``f(path, leaf, *leaves_of_rest)``."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: f(path_string(path), *leaves), tree, *rest
    )


def first_match(table: Table, path: str) -> Any:
    """The value of the first row whose regex matches the whole path; UserError if none does."""
    for pattern, value in table:
        if re.fullmatch(pattern, path):
            return value
    patterns = ", ".join(repr(pattern) for pattern, _ in table) or "none"
    raise plugin.UserError(
        f"no row of the table matches {path!r} (rows: {patterns}); end the table with a row '.*'"
    )


def table(tree: Tree, rules: Table) -> Tree:
    """The tree of first-match values, one per leaf; UserError names a leaf that no row matches."""
    return map_with_path(lambda path, _: first_match(rules, path), tree)


def check_rows(where: str, rules: Table, tree: Tree) -> None:
    """Raises UserError for a row whose regex is broken or matches no path of the tree (a typo)."""
    known = paths(tree)
    for pattern, _ in rules:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise plugin.UserError(
                f"{where}: {pattern!r} is no regular expression: {error}"
            ) from None
        if not any(compiled.fullmatch(path) for path in known):
            raise plugin.UserError(
                plugin.unknown(
                    f"{where}: row {pattern!r} matches no parameter", pattern, known[:40]
                )
            )


def split(tree: Mapping, predicate: Callable[[str], bool]) -> tuple[dict, dict]:
    """(leaves whose path satisfies the predicate, the others), nested, without empty branches."""
    chosen, others = {}, {}

    def walk(node, prefix):
        for key, value in node.items():
            path = (*prefix, key)
            if isinstance(value, Mapping):
                walk(value, path)
            else:
                _insert(chosen if predicate("/".join(path)) else others, path, value)

    walk(tree, ())
    return chosen, others


def merge(a: Mapping, b: Mapping) -> dict:
    """The union of two nested dicts; ValueError where both hold a leaf at, or below, one path."""
    merged = dict(a)
    for key, value in b.items():
        if key not in merged:
            merged[key] = value
        elif isinstance(merged[key], Mapping) and isinstance(value, Mapping):
            merged[key] = merge(merged[key], value)
        else:
            raise ValueError(f"merge: both trees hold {key!r}")
    return merged


def flatten(tree: Mapping) -> dict[str, Any]:
    """Nested dicts to {path: leaf}, in the order of the dicts."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{path}": leaf for path, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict:
    """{path: leaf} to nested dicts; the inverse of `flatten`."""
    tree: dict = {}
    for path, leaf in flat.items():
        _insert(tree, path.split("/"), leaf)
    return tree


def _insert(tree: dict, path: Sequence[str], leaf: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf


def diff(expected: Tree, got: Tree, limit: int = 12) -> str:
    """What differs in paths, shapes and dtypes, one line each; empty when the trees agree.

    Leaves may be arrays, ShapeDtypeStructs or metadata with ``shape`` and ``dtype``.
    """
    want, have = dict(items(expected)), dict(items(got))
    lines = [f"missing     {path}  {_signature(want[path])}" for path in want if path not in have]
    lines += [f"unexpected  {path}  {_signature(have[path])}" for path in have if path not in want]
    lines += [
        f"differs     {path}  expected {_signature(want[path])}, got {_signature(have[path])}"
        for path in want
        if path in have and _signature(want[path]) != _signature(have[path])
    ]
    if len(lines) > limit:
        lines = [*lines[:limit], f"… and {len(lines) - limit} more"]
    return "\n".join(lines)


def _signature(leaf: Any) -> str:
    shape = tuple(getattr(leaf, "shape", None) or np.shape(leaf))
    dtype = getattr(leaf, "dtype", None)
    return f"{np.dtype(dtype).name if dtype is not None else type(leaf).__name__}{list(shape)}"


def stack_layers(layers: Sequence[Tree]) -> Tree:
    """Trees of single layers to one tree with a leading layer axis; numpy stays numpy."""
    return jax.tree.map(lambda *leaves: _numpy_of(leaves).stack(leaves), *layers)


def unstack_layers(tree: Tree) -> list[Tree]:
    """The inverse of `stack_layers`: one tree per index of the leading axis."""
    lengths = {np.shape(leaf)[0] for leaf in jax.tree.leaves(tree)}
    if len(lengths) != 1:
        raise ValueError(f"unstack_layers: leading axes differ: {sorted(lengths)}")
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(lengths.pop())]


def _numpy_of(leaves: Sequence[Any]):
    return np if all(isinstance(leaf, np.ndarray) for leaf in leaves) else jnp


def count(tree: Tree) -> int:
    """Numbers held by the tree's leaves."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
