"""An Octo checkpoint's folder in this project's words (Octo, Ghosh et al. 2024; octo_model.py).

    FOLDER/config.json              ModuleSpecs               → config (`_octo_config.py`)
    FOLDER/example_batch.msgpack    cameras, sizes, lengths   → config
    FOLDER/dataset_statistics.json  per dataset, or flat      → Normalizer (`_octo_statistics.py`)
    FOLDER/STEP/default/checkpoint  parameters                → parameters (`_octo_params.py`)

`read` opens the folder (`_octo_folder.py`), `translate` makes the native parts; nothing is written.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vla_jax import config as config_lib
from vla_jax import plugin, trees, types
from vla_jax.backbones import t5
from vla_jax.codecs import normalizer as normalizer_lib
from vla_jax.codecs import text_tokenizer as text_tokenizer_lib
from vla_jax.embodiments import widowx
from vla_jax.models import build, contract, pretrained, specs
from vla_jax.models.importers import (
    _octo_config,
    _octo_heads,
    _octo_params,
    _octo_statistics,
)
from vla_jax.models.importers._octo_folder import Octo, read

__all__ = ["Native", "Octo", "batch", "check_words", "read", "statistics", "translate"]

SHOWN = 12  # parameters that an error names
TEXT_ENCODER = "octo_transformer/task_tokenizers_language/hf_model/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Native:
    """An Octo checkpoint in this project's words: what a checkpoint of ours holds."""

    config: config_lib.TrainConfig
    network: build.Network
    variables: dict[str, Any]
    spaces: tuple[types.ActionSpace, ...]
    normalizer: normalizer_lib.Normalizer
    text_tokenizer: text_tokenizer_lib.TextTokenizer | None
    report: pretrained.Report
    left_out: tuple[str, ...]  # settings of Octo's that have no counterpart here

    @property
    def contract(self) -> dict[str, Any]:
        """What a policy of it expects and answers, for people and for JSON."""
        return contract.of(
            self.config,
            _octo_config.STREAM,
            normalizer=self.normalizer,
            spaces=self.spaces,
            text_tokenizer=self.text_tokenizer,
        )


def translate(
    octo: Octo,
    *,
    text_tokenizer: text_tokenizer_lib.TextTokenizer | None = None,
    partial: bool = False,
    window: int | None = None,
    **changes: Any,
) -> Native:
    """The native form of a checkpoint; `changes` are laid over Octo's config["model"].

    `window` is another than it was trained with, at most its position tables' length.

    UserError naming every parameter that is missing, left over or of another shape; with `partial`
    missing ones begin fresh and those left over are dropped, both named in the report.
    """
    config = {**octo.config, "model": {**octo.config["model"], **changes}}
    if window is not None:
        config["window_size"] = window
    encoder, text = _text_encoder(octo)
    try:
        made = _octo_config.Translation(config, _facts(octo, encoder))
        heads, objectives = _heads(config["model"]["heads"], made.seen)
    except (AttributeError, KeyError, TypeError) as error:
        raise plugin.UserError(
            f"octo checkpoint: {octo.folder}/config.json is not as Octo writes it: "
            f"{type(error).__name__} {error}"
        ) from error
    space, normalizer = _space(octo), statistics(octo)
    tree = _tree(octo, made, heads, objectives) | dict(normalizer=_modes(normalizer))
    native = config_lib.parse(config_lib.TrainConfig, tree)
    parameters, unused = _octo_params.place(octo.parameters)
    parameters |= {f"params/tokenizers_language/encoder/{path}": leaf for path, leaf in text}
    unused = tuple(path for path in unused if not path.startswith(TEXT_ENCODER))
    network = build.network(
        native,
        spaces=(space,),
        text_tokenizer=text_tokenizer,
        proprio_constants=build.constants(normalizer),
    )
    example = {_octo_config.STREAM: batch(_cut(octo.example, made.window))}
    init = functools.partial(network.init, jax.random.key(0), example)
    origins = _octo_params.origins(octo.parameters)
    variables, report = _fit(jax.eval_shape(init), parameters, unused, partial, origins)
    if report.missing:

        def missing():  # the rest is never computed
            return {path: leaf for path, leaf in trees.items(init()) if path in report.missing}

        variables |= jax.device_get(jax.jit(missing)())
    return Native(
        config=native,
        network=network,
        variables=trees.unflatten(variables),
        spaces=(space,),
        normalizer=normalizer,
        text_tokenizer=text_tokenizer,
        report=report,
        left_out=made.left_out(config["model"]["heads"]),
    )


def _heads(table: Mapping[str, Mapping], seen: Sequence[str]) -> tuple[dict, dict]:
    """(specs of the heads, of their objectives)."""
    heads, objectives = {}, {}
    for name, spec in table.items():
        kwargs = _octo_config.arguments(spec)
        heads[name], objectives[name] = _octo_heads.translate(name, spec["name"], kwargs, seen)
    return heads, objectives


def check_words(octo: Octo, words: text_tokenizer_lib.TextTokenizer | None) -> None:
    """UserError unless there is a T5's text tokenizer where the checkpoint has a T5, else none."""
    encoder, _ = _text_encoder(octo)
    if encoder is None:
        return
    table = octo.config["model"].get("task_tokenizers") or {}
    named = [str(_octo_config.arguments(spec).get("encoder")) for spec in table.values()]
    said = f"it reads sentences by a text encoder ({', '.join(named)})"
    whose = f"octo checkpoint {octo.folder}: {said}"
    if words is None:
        raise plugin.UserError(
            f"{whose}; give --text-tokenizer the spiece.model or tokenizer.json of this encoder"
        )
    if not words.ends_texts:
        raise plugin.UserError(
            f"{whose}, and the text tokenizer given is none of T5's; give the spiece.model or "
            "tokenizer.json of this encoder"
        )


def _cut(example: Mapping[str, Any], window: int) -> dict[str, Any]:
    """The example batch with the newest steps of its window."""

    def newest(tree):
        return jax.tree.map(lambda leaf: leaf[:, -window:], tree)

    return {name: tree if name == "task" else newest(tree) for name, tree in example.items()}


def batch(nested: Mapping[str, Any]) -> types.Batch:
    """A Batch of Octo's nested arrays (its example batch, its training batches)."""
    seen, task = nested["observation"], nested["task"]
    real = np.asarray(seen["timestep_pad_mask"], bool)  # [B, W]
    rows = real.shape[0]
    here, asked = seen.get("pad_mask_dict", {}), task.get("pad_mask_dict", {})
    pictures = {n.removeprefix("image_"): n for n in seen if n.startswith("image_")}
    values, masks = {}, {}
    for name in (n for n in task if n.startswith("image_")):
        values["goal_" + name.removeprefix("image_")] = task[name]
        masks["goal_" + name.removeprefix("image_")] = np.asarray(asked[name], bool)
    if "language_instruction" in task:
        language, there = task["language_instruction"], np.asarray(asked["language_instruction"])
        if isinstance(language, Mapping):
            values["language"] = np.asarray(language["input_ids"], np.int32)
            masks["language"] = np.asarray(language["attention_mask"], bool) & there[:, None]
        else:
            values["language_embedding"] = np.asarray(language, np.float32)
            masks["language_embedding"] = there
    targets, target_masks = {}, {}
    if "action" in nested:
        targets["action"] = np.asarray(nested["action"], np.float32)
        mask = np.asarray(nested["action_pad_mask"], bool)
        target_masks["action"] = mask & real[:, :, None, None]
    return types.Batch.make(
        observation=dict(
            images={view: seen[name] for view, name in pictures.items()},
            image_masks={v: np.asarray(here.get(n, real), bool) for v, n in pictures.items()},
            proprio={_octo_statistics.PROPRIO: seen[_octo_statistics.PROPRIO]}
            if _octo_statistics.PROPRIO in seen
            else {},
            timestep_mask=real,
        ),
        task=dict(values=values, masks=masks),
        targets=targets,
        target_masks=target_masks,
        row_id=np.arange(rows, dtype=np.uint32),
        action_space=np.zeros(rows, np.int32),
        dataset_key=np.zeros(rows, np.int32),
    )


def _text_encoder(octo: Octo) -> tuple[dict[str, Any] | None, list]:
    """(spec of the T5 in the checkpoint or None, its parameters as (path, array))."""
    tree = {
        path.removeprefix(TEXT_ENCODER): leaf
        for path, leaf in octo.parameters.items()
        if path.startswith(TEXT_ENCODER)
    }
    if not tree:
        return None, []
    weights = t5.from_flax(trees.unflatten(tree), where=f"{octo.folder}: {TEXT_ENCODER}")
    return dict(type="t5", **weights.arguments), list(trees.items(weights.params))


def _facts(octo: Octo, encoder: dict[str, Any] | None) -> _octo_config.Facts:
    def shapes(entries: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {name: np.shape(v) for name, v in entries.items() if isinstance(v, np.ndarray)}

    task = octo.example["task"]
    found = shapes(task)
    language = task.get("language_instruction")
    if isinstance(language, Mapping):
        found["language"] = np.shape(language["input_ids"])
    return _octo_config.Facts(
        observation=shapes(octo.example["observation"]), task=found, encoder=encoder
    )


def _tree(octo: Octo, made, heads: dict, objectives: dict) -> dict[str, Any]:
    """The native config as a table; there are no data in it, a fine-tuning names its own."""
    seen = octo.example["observation"]
    sizes = {n.removeprefix("image_"): seen[n].shape[2:4] for n in seen if n.startswith("image_")}
    used = {view for spec in made.tokenizers.values() for view in spec.get("views", ())}
    return dict(
        steps=max(1, octo.step),
        model=dict(
            trunk=made.trunk(),
            tokenizers=made.tokenizers,
            readouts=made.readouts,
            heads=heads,
            rules=made.rules(),
            max_window=int(octo.config["model"]["max_horizon"]),
            legacy=made.legacy(),
        ),
        streams={
            _octo_config.STREAM: dict(
                batch_size=1,
                groups=(*made.tasks, *made.seen),
                window=made.window,
                action_horizon=max(head["action_horizon"] for head in heads.values()),
                readouts=tuple(made.readouts),
                heads=tuple(heads),
                objectives=objectives,
                resize="tensorflow",
                max_tokens=max([spec.get("max_tokens", 1) for spec in made.tokenizers.values()]),
                image_sizes={view: tuple(sizes[view]) for view in sizes if view in used},
            )
        },
        freeze=tuple(
            row for name, spec in made.tokenizers.items() for row in specs.frozen(name, spec)
        ),
    )


def statistics(octo: Octo, mode: str | None = None) -> normalizer_lib.Normalizer:
    """The Normalizer of Octo's statistics; `mode` None takes the one that the config says."""
    where, size = f"{octo.folder}/dataset_statistics.json", octo.example["action"].shape[-1]
    return _octo_statistics.normalizer(where, octo.statistics, octo.config, size, mode)


def _modes(normalizer: normalizer_lib.Normalizer) -> dict[str, Any]:
    """The config's section by which a fine-tuning computes statistics like the checkpoint's."""
    entry = next(iter(normalizer.entries.values()))["action"]
    return dict(modes=(("*", entry.mode),), clip=entry.clip)


def _space(octo: Octo) -> types.ActionSpace:
    """The action vector; 7 numbers are taken for Open X-Embodiment's end-effector deltas."""
    size = octo.example["action"].shape[-1]
    (oxe,) = widowx.EMBODIMENT.action_spaces
    groups = oxe.groups
    if size != oxe.size:
        unknown = dict(quantity="position", representation="absolute", unit="1")
        groups = (types.ActionGroup(name="action", size=size, **unknown),)
    return types.ActionSpace(name=_octo_heads.SPACE, groups=groups, control_hz=oxe.control_hz)


def _fit(
    shapes: Any,
    parameters: Mapping[str, np.ndarray],
    unused: tuple[str, ...],
    partial: bool,
    origins: Mapping[str, list[str]],
) -> tuple[dict[str, Any], pretrained.Report]:
    """({path: array} that the network has, report); UserError for whatever does not fit."""
    wanted = {path: tuple(leaf.shape) for path, leaf in trees.items(shapes)}
    missing = tuple(path for path in wanted if path not in parameters)
    surplus = tuple(path for path in parameters if path not in wanted)
    mapped = {path: parameters[path] for path in wanted if path in parameters}

    def named(path: str) -> str:
        theirs = origins.get(path) or [_octo_params.theirs(path)]
        more = f" and {len(theirs) - 1} more layers" if len(theirs) > 1 else ""
        return f"{theirs[0]}{more} (here {path})"

    wrong = [
        f"  shape      {named(path)}: is {leaf.shape}, expected {wanted[path]}"
        for path, leaf in mapped.items()
        if leaf.shape != wanted[path]
    ]
    hint = ""
    if not partial and (missing or surplus or unused):
        wrong += [f"  missing    {named(path)}: expected {wanted[path]}" for path in missing]
        over = [*unused, *(theirs for path in surplus for theirs in origins.get(path, (path,)))]
        wrong += [f"  left over  {path}" for path in over]
        hint = " (--partial: begin missing ones fresh, drop those left over)"
    if wrong:
        wrong = wrong[:SHOWN] + [f"  … and {len(wrong) - SHOWN} more"] * (len(wrong) > SHOWN)
        raise plugin.UserError(
            f"octo checkpoint: its parameters and its config.json do not fit together{hint}:\n"
            + "\n".join(wrong)
        )
    return mapped, pretrained.Report(
        mapped=tuple(mapped), missing=missing, unused=(*unused, *surplus)
    )
