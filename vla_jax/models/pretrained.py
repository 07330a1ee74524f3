"""Partial loading: parameters of an earlier stage into a new network, with a report of every path.

A change of stage (pretraining → co-fine-tuning → a new embodiment) keeps what both networks have
and starts the rest fresh. Nothing is fresh by accident: a parameter that the checkpoint lacks, or
has in another shape, must match the `fresh` table, otherwise the load is refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vla_jax import plugin, trees


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Which parameter paths were loaded, which start fresh, which of the checkpoint went unused."""

    mapped: tuple[str, ...]
    missing: tuple[str, ...]  # in the new network, not loaded: fresh
    unused: tuple[str, ...]  # in the checkpoint, not in the new network

    def __str__(self) -> str:
        lines = [
            f"loaded {len(self.mapped)} parameters, {len(self.missing)} fresh, "
            f"{len(self.unused)} of the checkpoint unused"
        ]
        lines += [f"  fresh   {path}" for path in self.missing]
        lines += [f"  unused  {path}" for path in self.unused]
        return "\n".join(lines)


def match(
    target: Any,
    source: Any,
    *,
    fresh: Sequence[str] = (),
    rename: Sequence[tuple[str, str]] = (),
) -> tuple[dict[str, str], Report]:
    """({path of `target`: path of `source` whose value it takes}, Report); only shapes are read.

    `fresh` are regexes over paths that keep their initial value where the checkpoint has none or
    another shape; `rename` are (regex, replacement) pairs that turn a path of `target` into one of
    `source`, first match wins. Raises UserError listing every path that is missing or of another
    shape without being declared fresh.
    """
    have = {path: tuple(leaf.shape) for path, leaf in trees.items(source)}
    taken, missing, wrong = {}, [], []
    for path, leaf in trees.items(target):
        name = _renamed(path, rename)
        is_fresh = any(re.fullmatch(pattern, path) for pattern in fresh)
        if name in have and have[name] == tuple(leaf.shape) and not is_fresh:
            taken[path] = name
            continue
        missing.append(path)
        if not is_fresh:
            got = f"shape {have[name]}" if name in have else "nothing"
            wrong.append(f"  {path}: checkpoint has {got}, this network needs {tuple(leaf.shape)}")
    if wrong:
        raise plugin.UserError(
            "the checkpoint is of another architecture; declare what may start fresh "
            "(init_from.fresh = (regex, …)) or fix the config:\n" + "\n".join(wrong)
        )
    used = set(taken.values())
    unused = tuple(path for path in have if path not in used)
    return taken, Report(mapped=tuple(taken), missing=tuple(missing), unused=unused)


def _renamed(path: str, rename: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rename:
        if re.search(pattern, path):
            return re.sub(pattern, replacement, path)
    return path


def fresh_paths(source: Mapping, target: Mapping) -> tuple[str, ...]:
    """Paths of `target` that `source` lacks or has in another shape: what a new embodiment adds."""
    have = {path: tuple(leaf.shape) for path, leaf in trees.items(source)}
    return tuple(path for path, leaf in trees.items(target) if have.get(path) != tuple(leaf.shape))


def encoder(tokenizer: str) -> str:
    """The folder of a tokenizer's encoder in the tree of parameters."""
    return f"params/tokenizers_{tokenizer}/encoder/"


def load_encoder(target: Any, tokenizer: str, spec: Mapping[str, Any], folder: str) -> Any:
    """`target` with the parameters of a tokenizer's encoder from Hugging Face's files in `folder`.

    UserError for a tokenizer without an encoder that reads such files, and for files that lack a
    parameter or have it in another shape.
    """
    where = f"config.init_from.encoders.{tokenizer}"
    sizes = {k: v for k, v in (spec.get("encoder") or {}).items() if k not in ("type", "dtype")}
    module = plugin.module("backbones", spec["encoder"]["type"]) if sizes else None
    if not hasattr(module, "from_safetensors"):
        raise plugin.UserError(
            f"{where}: config.model.tokenizers.{tokenizer} has no encoder that is read from "
            "Hugging Face's files; t5 is"
        )
    read = trees.flatten(module.from_safetensors(folder, sizes=sizes).params)
    have = {encoder(tokenizer) + path: leaf for path, leaf in read.items()}
    return trees.map_with_path(lambda path, leaf: have.get(path, leaf), target)
