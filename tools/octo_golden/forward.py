"""Masks and embeddings of every token group, in all forms that a folder holds."""

from __future__ import annotations

import re

import numpy as np

from tools.octo_golden.golden import Golden, encoded, ours
from vla_jax.models.importers import octo
from vla_jax.nn import layout as layouts
from vla_jax.nn import visibility

# Prefix -> what is changed in Octo's config["model"].
OLDER = {
    "legacy_attention": dict(use_correct_attention=False),
    "no_repeat": dict(repeat_task_tokens=False),
}


def compare(golden: Golden) -> None:
    """Every array below transformer…/, attention_mask, legacy_attention/, no_repeat/."""
    prefixes = sorted({name.split("/")[0] for name in golden.outputs})
    for prefix in prefixes:
        if prefix == "attention_mask":
            native = golden.native()
            golden.compare(prefix, mask(native, encoded(native, golden.batch()))[:, None])
        elif prefix in OLDER:
            native = golden.native(**OLDER[prefix])
            _groups(golden, prefix, native, encoded(native, golden.batch()))
        elif prefix == "transformer" or prefix.startswith("transformer_"):
            _form(golden, prefix)


def _form(golden: Golden, prefix: str) -> None:
    """transformer, transformer_h1 (the newest steps), transformer_noX (X left out)."""
    form = prefix.removeprefix("transformer").removeprefix("_")
    steps = re.fullmatch(r"h(\d+)", form)
    if not form:
        native, batch = golden.native(), golden.batch()
    elif steps:
        native = window(golden, int(steps[1]))
        batch = golden.batch(steps=slice(-int(steps[1]), None))
    elif form.startswith("no"):
        native, batch = without(golden, form.removeprefix("no"))
    else:
        golden.excuse(f"{prefix}/", f"no comparison knows the form {form!r}")
        return
    _groups(golden, prefix, native, encoded(native, batch))


def window(golden: Golden, steps: int) -> octo.Native:
    """The network over a shorter window, with the same parameters."""
    return octo.translate(golden.checkpoint, window=steps)


def without(golden: Golden, what: str):
    """(network, batch) without a goal ("goalwrist"), a camera or a reading ("wrist", "proprio")."""
    if what.startswith("goal"):
        return golden.native(), golden.batch(drop=f"task/image_{what.removeprefix('goal')}")
    key = what if f"observation/{what}" in golden.inputs else f"image_{what}"
    tables = golden.checkpoint.config["model"]["observation_tokenizers"]
    kept = {}
    for name, spec in tables.items():
        kwargs = spec["kwargs"]
        wanted = kwargs.get("obs_stack_keys", kwargs.get("obs_keys", ()))
        if not any(re.match(pattern, key) for pattern in wanted):
            kept[name] = spec
    native = golden.native(partial=True, observation_tokenizers=kept)
    return native, golden.batch(drop=f"observation/{key}")


def _groups(golden: Golden, prefix: str, native: octo.Native, outputs: dict) -> None:
    order = native.config.streams["robot"].groups  # jax sorts the keys of dicts
    for name in {name.split("/")[1] for name in golden.names(f"{prefix}/")}:
        if name == "attention_mask":
            golden.compare(f"{prefix}/{name}", mask(native, outputs)[:, None])
            continue
        axes, read = {"obs": 4, "task": 3}, [ours(name)]
        if name in axes:  # all of the observation's or the task's groups
            read = [group for group in order if outputs[group].final.ndim == axes[name]]
        final = np.concatenate([outputs[group].final for group in read], -2)
        valid = np.concatenate([outputs[group].valid for group in read], -1)
        golden.compare(f"{prefix}/{name}/tokens", final)
        golden.compare(f"{prefix}/{name}/mask", valid)


def mask(native: octo.Native, outputs: dict) -> np.ndarray:
    """Bool [B, L, L]: what each token saw."""
    layout = native.network.layout("robot")
    valid = layouts.join_valid(layout, {name: output.valid for name, output in outputs.items()})
    rules = visibility.make(native.config.model.rules)
    return visibility.mask(layout, rules)[None] & np.asarray(valid)[:, None]
