"""Masks and embeddings of every token group, in all forms that a folder holds."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from tools.octo_golden.golden import OUTPUTS, Golden, ours
from vla_jax.models.importers import octo
from vla_jax.nn import layout as layouts
from vla_jax.nn import visibility

# Prefix -> what is changed in Octo's config["model"].
OLDER = {
    "legacy_attention": dict(use_correct_attention=False),
    "no_repeat": dict(repeat_task_tokens=False),
}
JOINED = {"obs": 4, "task": 3}  # all groups of the observation, of the task; axes of their tokens


def compare(golden: Golden) -> None:
    """Every array below transformer…/, attention_mask, legacy_attention/, no_repeat/."""
    for prefix in sorted({name.split("/")[0] for name in golden.outputs}):
        if prefix == "attention_mask":
            golden.attempt(_mask)
        elif prefix in OLDER:
            golden.attempt(_older, prefix)
        elif prefix.split("_")[0] == "transformer":
            golden.attempt(_form, prefix)


def _mask(golden: Golden) -> None:
    native = golden.native()
    outputs = golden.ask(native, "encode", golden.batch())
    golden.compare("attention_mask", mask(native, outputs)[:, None])


def _older(golden: Golden, prefix: str) -> None:
    native = golden.native(**OLDER[prefix])
    groups(golden, prefix, native, golden.ask(native, "encode", golden.batch()))


def _form(golden: Golden, prefix: str) -> None:
    found = form(golden, prefix)
    if found is not None:  # else its arrays stay unaccounted for
        groups(golden, prefix, found[0], golden.ask(found[0], "encode", found[1]))


def form(golden: Golden, prefix: str):
    """(network, batch) of a form of the network, None for an unknown one.

    transformer, transformer_h1 (the newest steps), transformer_noX (X left out).
    """
    what = prefix.removeprefix("transformer").removeprefix("_")
    steps = re.fullmatch(r"h(\d+)", what)
    if not what:
        return golden.native(), golden.batch()
    if steps:
        return recent(golden, int(steps[1]))
    return without(golden, what.removeprefix("no")) if what.startswith("no") else None


def told(golden: Golden, prefix: str):
    """(network, batch, outputs) of a form; where Octo's embeddings are stored, outputs are they."""
    native, batch = form(golden, prefix)
    outputs = dict(golden.ask(native, "encode", batch))
    for name in golden.names(f"{prefix}/"):
        group, tokens = ours(name.split("/")[1]), golden.outputs[name]
        if name.endswith("/tokens") and group in outputs:
            if outputs[group].final.shape == tokens.shape:
                outputs[group] = dataclasses.replace(outputs[group], final=tokens)
    return native, batch, outputs


def recent(golden: Golden, steps: int):
    """(network, batch) of the newest steps of the window."""
    return golden.native(window=steps), golden.batch(steps=slice(-steps, None))


def without(golden: Golden, what: str):
    """(network, batch) without a goal ("goalwrist"), the goals, the language, a camera, a reading.

    Without its goal an image tokenizer sees black; a tokenizer that has nothing to read is not
    there, nor are its tokens.
    """
    if what.startswith("goal"):
        begin = f"task/image_{what.removeprefix('goal')}"
        paths = [p for p in golden.inputs if p == begin or (what == "goal" and p.startswith(begin))]
        return golden.native(), golden.batch(drop=_there(what, paths))
    model, changes = golden.checkpoint.config["model"], {}
    if what == "language":
        paths = [p for p in golden.inputs if p.startswith("task/language_instruction")]
        changes = dict(task_tokenizers={})
    else:
        key = what if f"observation/{what}" in golden.inputs else f"image_{what}"
        paths = [p for p in golden.inputs if p == f"observation/{key}"]
        changes = dict(
            observation_tokenizers={
                name: spec
                for name, spec in model["observation_tokenizers"].items()
                if not _reads(spec["kwargs"], key)
            }
        )
    native = golden.native(partial=True, **changes)
    return native, golden.batch(drop=_there(what, paths))


def _there(what: str, paths: list[str]) -> tuple[str, ...]:
    if not paths:
        raise ValueError(f"inputs.npz has nothing called {what!r} that could be left out")
    return tuple(paths)


def _reads(kwargs: dict, key: str) -> bool:
    """Whether a tokenizer stacks the observation `key`: Octo's keys are regexes of beginnings."""
    patterns = kwargs.get("obs_stack_keys", kwargs.get("obs_keys", ("image_.*", "depth_.*")))
    return any(re.match(pattern, key) for pattern in patterns)


def groups(
    golden: Golden, prefix: str, native: octo.Native, outputs: dict, file: str = OUTPUTS
) -> None:
    """Embeddings and masks of the groups below a prefix, and its attention_mask."""
    order = native.config.streams["robot"].groups  # jax sorts the keys of dicts
    below = [name.removeprefix(f"{prefix}/") for name in golden.names(f"{prefix}/", file)]
    for name in {name.split("/")[0] for name in below}:
        if name == "attention_mask":
            golden.compare(f"{prefix}/{name}", mask(native, outputs)[:, None], file=file)
            continue
        read = [ours(name)]
        if name in JOINED:
            read = [group for group in order if outputs[group].final.ndim == JOINED[name]]
        if not set(read) <= set(outputs):
            continue  # no group of ours: its arrays stay unaccounted for
        final = np.concatenate([outputs[group].final for group in read], -2)
        valid = np.concatenate([outputs[group].valid for group in read], -1)
        golden.compare(f"{prefix}/{name}/tokens", final, file=file)
        golden.compare(f"{prefix}/{name}/mask", valid, file=file)


def mask(native: octo.Native, outputs: dict) -> np.ndarray:
    """Bool [B, L, L]: what each token saw."""
    layout = native.network.layout("robot")
    valid = layouts.join_valid(layout, {name: output.valid for name, output in outputs.items()})
    rules = visibility.make(native.config.model.rules)
    return visibility.mask(layout, rules)[None] & np.asarray(valid)[:, None]
