"""A checkpoint of Octo or CrossFormer in this project's words (octo_model.py; _project.py).

    FOLDER/config.json              ModuleSpecs               → config (`_config.py`, `_heads.py`)
    FOLDER/example_batch.msgpack    cameras, sizes, lengths   → config
    FOLDER/dataset_statistics.json  per dataset, or flat      → Normalizer (`_statistics.py`)
    FOLDER/STEP/default/checkpoint  parameters                → parameters (`_params.py`)

`read` opens the folder (`_folder.py`), `translate` makes the native parts; nothing is written.
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
from vla_jax.models.importers import _config, _heads, _params, _project, _statistics
from vla_jax.models.importers._folder import Foreign

SHOWN = 12  # parameters that an error names
TEXT_ENCODER = "octo_transformer/task_tokenizers_language/hf_model/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Native:
    """A checkpoint in this project's words: what a checkpoint of ours holds."""

    config: config_lib.TrainConfig
    network: build.Network
    variables: dict[str, Any]
    spaces: tuple[types.ActionSpace, ...]
    normalizer: normalizer_lib.Normalizer
    text_tokenizer: text_tokenizer_lib.TextTokenizer | None
    report: pretrained.Report
    left_out: tuple[str, ...]  # settings of theirs that have no counterpart here

    @property
    def contract(self) -> dict[str, Any]:
        """What a policy of it expects and answers, for people and for JSON."""
        return contract.of(
            self.config,
            _config.STREAM,
            normalizer=self.normalizer,
            spaces=self.spaces,
            text_tokenizer=self.text_tokenizer,
        )


def translate(
    foreign: Foreign,
    *,
    text_tokenizer: text_tokenizer_lib.TextTokenizer | None = None,
    partial: bool = False,
    window: int | None = None,
    **changes: Any,
) -> Native:
    """The native form of a checkpoint; `changes` are laid over its config["model"].

    `window` is another than it was trained with, at most its position tables' length.

    UserError naming every parameter that is missing, left over or of another shape; with `partial`
    missing ones begin fresh and those left over are dropped, both named in the report.
    """
    config = {**foreign.config, "model": {**foreign.config["model"], **changes}}
    if window is not None:
        config["window_size"] = window
    encoder, text = _text_encoder(foreign)
    try:
        made = _config.Translation(foreign.project, config, _facts(foreign, encoder))
        heads, objectives = _acting(foreign.project, config["model"]["heads"], made.seen)
        spaces = _spaces(foreign, config["model"]["heads"])
    except (AttributeError, KeyError, TypeError) as error:
        raise plugin.UserError(
            f"{foreign.project.name} checkpoint: {foreign.folder}/config.json is not as "
            f"{foreign.project.title} writes it: {type(error).__name__} {error}"
        ) from error
    normalizer = statistics(foreign)
    tree = _tree(foreign, made, heads, objectives) | dict(normalizer=_modes(normalizer))
    native = config_lib.parse(config_lib.TrainConfig, tree)
    parameters, unused = _params.place(foreign.parameters, foreign.project)
    parameters |= {f"params/tokenizers_language/encoder/{path}": leaf for path, leaf in text}
    unused = tuple(path for path in unused if not path.startswith(TEXT_ENCODER))
    network = build.network(
        native,
        spaces=spaces,
        text_tokenizer=text_tokenizer,
        proprio_constants=build.constants(normalizer),
    )
    example = {_config.STREAM: batch(_roomy(foreign.example, native, spaces))}
    init = functools.partial(network.init, jax.random.key(0), example)
    variables, report = _fit(foreign, jax.eval_shape(init), parameters, unused, partial)
    if report.missing:

        def missing():  # the rest is never computed
            return {path: leaf for path, leaf in trees.items(init()) if path in report.missing}

        variables |= jax.device_get(jax.jit(missing)())
    return Native(
        config=native,
        network=network,
        variables=trees.unflatten(variables),
        spaces=spaces,
        normalizer=normalizer,
        text_tokenizer=text_tokenizer,
        report=report,
        left_out=made.left_out(config["model"]["heads"]),
    )


def _acting(
    project: _project.Project, table: Mapping[str, Mapping], seen: Sequence[str]
) -> tuple[dict, dict]:
    """(specs of the heads, of their objectives)."""
    heads, objectives = {}, {}
    for name, spec in table.items():
        spec = {**spec, "kwargs": _config.arguments(spec)}
        heads[name], objectives[name] = _heads.translate(project, name, spec, seen)
    return heads, objectives


def check_words(foreign: Foreign, words: text_tokenizer_lib.TextTokenizer | None) -> None:
    """UserError unless there is a T5's text tokenizer where the checkpoint has a T5, else none."""
    encoder, _ = _text_encoder(foreign)
    if encoder is None:
        if words is not None and foreign.project.embedded_by:
            raise plugin.UserError(
                f"{foreign.where}: it reads sentences as embeddings by "
                f"{foreign.project.embedded_by}, no pieces of words; leave --text-tokenizer out"
            )
        return
    table = foreign.config["model"].get("task_tokenizers") or {}
    named = [str(_config.arguments(spec).get("encoder")) for spec in table.values()]
    said = f"it reads sentences by a text encoder ({', '.join(named)})"
    whose = f"{foreign.where}: {said}"
    if words is None:
        raise plugin.UserError(
            f"{whose}; give --text-tokenizer the spiece.model or tokenizer.json of this encoder"
        )
    if not words.ends_texts:
        raise plugin.UserError(
            f"{whose}, and the text tokenizer given is none of T5's; give the spiece.model or "
            "tokenizer.json of this encoder"
        )


def _roomy(
    example: Mapping[str, Any], native: config_lib.TrainConfig, spaces: Sequence[types.ActionSpace]
) -> dict[str, Any]:
    """The example batch with the newest steps of its window, and room for every head's actions."""
    stream = native.streams[_config.STREAM]
    lead = np.shape(example["action"])[0], stream.window
    shape = (*lead, stream.action_horizon, build.action_size(spaces))
    seen = jax.tree.map(lambda leaf: leaf[:, -stream.window :], example["observation"])
    action = dict(action=np.zeros(shape, np.float32), action_pad_mask=np.ones(shape, bool))
    return dict(observation=seen, task=example["task"], **action)


def batch(nested: Mapping[str, Any], heads: Sequence[str] = ()) -> types.Batch:
    """A Batch of their nested arrays (the example batch, a training batch).

    `heads` in the config's order say what CrossFormer's `action_head_masks` mean; a row that is
    none's has no action space.
    """
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
            proprio={
                group: np.asarray(seen[name], np.float32)
                for group, name in _statistics.readings(seen).items()
            },
            timestep_mask=real,
        ),
        task=dict(values=values, masks=masks),
        targets=targets,
        target_masks=target_masks,
        row_id=np.arange(rows, dtype=np.uint32),
        action_space=_answering(nested.get("action_head_masks", {}), heads, rows),
        dataset_key=np.zeros(rows, np.int32),
    )


def _answering(masks: Mapping[str, Any], heads: Sequence[str], rows: int) -> np.ndarray:
    """int32 [B]: the number of the head that each row is for, -1 where it is none's."""
    found = np.full(rows, -1 if heads else 0, np.int32)
    for i, name in enumerate(heads):
        found[np.asarray(masks[name], bool)] = i
    return found


def _text_encoder(foreign: Foreign) -> tuple[dict[str, Any] | None, list]:
    """(spec of the T5 in the checkpoint or None, its parameters as (path, array))."""
    tree = {
        path.removeprefix(TEXT_ENCODER): leaf
        for path, leaf in foreign.parameters.items()
        if path.startswith(TEXT_ENCODER)
    }
    if not tree:
        return None, []
    where = f"{foreign.folder}: {foreign.project.theirs(TEXT_ENCODER)}"
    weights = t5.from_flax(trees.unflatten(tree), where=where)
    return dict(type="t5", **weights.arguments), list(trees.items(weights.params))


def _facts(foreign: Foreign, encoder: dict[str, Any] | None) -> _config.Facts:
    def shapes(entries: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {name: np.shape(v) for name, v in entries.items() if isinstance(v, np.ndarray)}

    task = foreign.example["task"]
    found = shapes(task)
    language = task.get("language_instruction")
    if isinstance(language, Mapping):
        found["language"] = np.shape(language["input_ids"])
    return _config.Facts(
        observation=shapes(foreign.example["observation"]), task=found, encoder=encoder
    )


def _tree(foreign: Foreign, made, heads: dict, objectives: dict) -> dict[str, Any]:
    """The native config as a table; there are no data in it, a fine-tuning names its own."""
    seen = foreign.example["observation"]
    sizes = {n.removeprefix("image_"): seen[n].shape[2:4] for n in seen if n.startswith("image_")}
    used = {view for spec in made.tokenizers.values() for view in spec.get("views", ())}
    return dict(
        steps=max(1, foreign.step),
        model=dict(
            trunk=made.trunk(),
            tokenizers=made.tokenizers,
            readouts=made.readouts,
            heads=heads,
            rules=made.rules(),
            max_window=int(foreign.config["model"]["max_horizon"]),
            legacy=made.legacy(),
        ),
        streams={
            _config.STREAM: dict(
                batch_size=1,
                groups=(*made.told, *made.tasks, *made.seen),
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


def statistics(foreign: Foreign, mode: str | None = None) -> normalizer_lib.Normalizer:
    """The Normalizer of their statistics; `mode` None takes the one that the config says."""
    where, size = f"{foreign.folder}/dataset_statistics.json", foreign.example["action"].shape[-1]
    return _statistics.normalizer(
        where, foreign.project, foreign.statistics, foreign.config, size, mode
    )


def _modes(normalizer: normalizer_lib.Normalizer) -> dict[str, Any]:
    """The config's section by which a fine-tuning computes statistics like the checkpoint's."""
    entry = next(iter(normalizer.entries.values()))["action"]
    return dict(modes=(("*", entry.mode),), clip=entry.clip)


def _spaces(foreign: Foreign, heads: Mapping[str, Mapping]) -> tuple[types.ActionSpace, ...]:
    """The table of action vectors: one for all heads, or each head's own, in their order."""
    project = foreign.project
    if not project.space_per_head:
        return (_space(project.name, foreign.example["action"].shape[-1]),)
    return tuple(_space(project.space(name), _heads.size(spec)) for name, spec in heads.items())


def _space(name: str, size: int) -> types.ActionSpace:
    """An action vector; 7 numbers are taken for Open X-Embodiment's end-effector deltas."""
    (oxe,) = widowx.EMBODIMENT.action_spaces
    if size == oxe.size:
        return dataclasses.replace(oxe, name=name)
    unknown = dict(quantity="position", representation="absolute", unit="1")
    groups = (types.ActionGroup(name="action", size=size, **unknown),)
    return types.ActionSpace(name=name, groups=groups, control_hz=0.0)


def _fit(
    foreign: Foreign,
    shapes: Any,
    parameters: Mapping[str, np.ndarray],
    unused: tuple[str, ...],
    partial: bool,
) -> tuple[dict[str, Any], pretrained.Report]:
    """({path: array} that the network has, report); UserError for whatever does not fit."""
    project, origins = foreign.project, _params.origins(foreign.parameters)
    unused = tuple(map(project.theirs, unused))
    wanted = {path: tuple(leaf.shape) for path, leaf in trees.items(shapes)}
    missing = tuple(path for path in wanted if path not in parameters)
    surplus = tuple(path for path in parameters if path not in wanted)
    mapped = {path: parameters[path] for path in wanted if path in parameters}

    def named(path: str) -> str:
        theirs = origins.get(path) or [_params.theirs(path)]
        more = f" and {len(theirs) - 1} more layers" if len(theirs) > 1 else ""
        return f"{project.theirs(theirs[0])}{more} (here {path})"

    wrong = [
        f"  shape      {named(path)}: is {leaf.shape}, expected {wanted[path]}"
        for path, leaf in mapped.items()
        if leaf.shape != wanted[path]
    ]
    hint = ""
    if not partial and (missing or surplus or unused):
        wrong += [f"  missing    {named(path)}: expected {wanted[path]}" for path in missing]
        over = [project.theirs(n) for path in surplus for n in origins.get(path, (path,))]
        wrong += [f"  left over  {path}" for path in (*unused, *over)]
        hint = " (--partial: begin missing ones fresh, drop those left over)"
    if wrong:
        wrong = wrong[:SHOWN] + [f"  … and {len(wrong) - SHOWN} more"] * (len(wrong) > SHOWN)
        raise plugin.UserError(
            f"{project.name} checkpoint: its parameters and its config.json do not fit together"
            + "\n".join([f"{hint}:", *wrong])
        )
    return mapped, pretrained.Report(
        mapped=tuple(mapped), missing=missing, unused=(*unused, *surplus)
    )
