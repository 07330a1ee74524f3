"""An Octo checkpoint's folder in this project's words (Octo, Ghosh et al. 2024; octo_model.py).

    FOLDER/config.json              ModuleSpecs               → config (`_octo_config.py`)
    FOLDER/example_batch.msgpack    cameras, sizes, lengths   → config
    FOLDER/dataset_statistics.json  per dataset, or flat      → Normalizer
    FOLDER/STEP/default/checkpoint  parameters, one msgpack   → parameters (`_octo_params.py`)
           or the names of arrays in tensorstore folders (saved from several devices)

`read` opens the folder, `translate` makes the native parts; nothing is written here.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.serialization
import jax
import numpy as np

from vla_jax import config as config_lib
from vla_jax import plugin, trees, types
from vla_jax.backbones import t5
from vla_jax.codecs import normalizer as normalizer_lib
from vla_jax.codecs import text_tokenizer as text_tokenizer_lib
from vla_jax.embodiments import widowx
from vla_jax.models import build, pretrained
from vla_jax.models.importers import (
    _octo_config,
    _octo_heads,
    _octo_params,
    _octo_statistics,
)

FILES = ("config.json", "example_batch.msgpack", "dataset_statistics.json")
PLACEHOLDER = "PLACEHOLDER://"  # of Orbax, before the name of an array that stands elsewhere
TEXT_ENCODER = "octo_transformer/task_tokenizers_language/hf_model/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Octo:
    """What lies in an Octo checkpoint's folder, parsed and not yet understood."""

    folder: pathlib.Path
    step: int
    config: Mapping[str, Any]
    example: Mapping[str, Any]  # nested numpy, batch of 1
    statistics: Mapping[str, Any]
    parameters: Mapping[str, np.ndarray]  # by path, joined by /


def read(folder: str, step: int | None = None) -> Octo:
    """The folder's contents at `step`, by default the newest.

    UserError for a folder that is no Octo checkpoint, a missing step, and truncated files.
    """
    root = pathlib.Path(folder)
    for name in FILES:
        if not (root / name).is_file():
            there = sorted(path.name for path in root.glob("*")) if root.is_dir() else "no folder"
            raise plugin.UserError(
                f"octo checkpoint {folder}: {name} is missing (there: {there}); expected the "
                f"folder that Octo's save_pretrained writes: {', '.join(FILES)}, a folder per step"
            )
    steps = sorted(int(path.name) for path in root.iterdir() if path.name.isdigit())
    if not steps or step not in (None, *steps):
        raise plugin.UserError(
            f"octo checkpoint {folder}: no step {'at all' if step is None else step}; "
            f"there are {steps}"
        )
    step = steps[-1] if step is None else step
    return Octo(
        folder=root,
        step=step,
        config=_json(root / "config.json"),
        example=_msgpack(root / "example_batch.msgpack"),
        statistics=_json(root / "dataset_statistics.json"),
        parameters=_parameters(root / str(step) / "default"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Native:
    """An Octo checkpoint in this project's words: what a checkpoint of ours holds."""

    config: config_lib.TrainConfig
    network: build.Network
    variables: dict[str, Any]
    spaces: tuple[types.ActionSpace, ...]
    normalizer: normalizer_lib.Normalizer
    report: pretrained.Report

    @property
    def contract(self) -> dict[str, Any]:
        """What a policy of it expects and answers, for people and for JSON."""
        stream = self.config.streams[_octo_config.STREAM]
        modes = {key: fields["action"].mode for key, fields in self.normalizer.entries.items()}
        return dict(
            images={view: list(size) for view, size in stream.image_sizes.items()},
            image_values="uint8 0..255, red green blue",
            resize=stream.resize,
            window=stream.window,
            history="the first observation again before the episode's beginning, masked",
            language_tokens=stream.max_tokens,
            statistics=modes,
            chunk=stream.action_horizon,
            chunk_begins="at the newest observation",
            actions={space.name: [group.name for group in space.groups] for space in self.spaces},
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
    made = _octo_config.Translation(config, _facts(octo, encoder))
    heads, objectives = {}, {}
    for name, spec in config["model"]["heads"].items():
        kwargs = _octo_config.arguments(spec)
        heads[name], objectives[name] = _octo_heads.translate(name, spec["name"], kwargs, made.seen)
    native = config_lib.parse(config_lib.TrainConfig, _tree(octo, made, heads, objectives))
    space, normalizer = _space(octo), statistics(octo)
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
    variables, report = _fit(jax.eval_shape(init), parameters, unused, partial)
    if report.missing:
        fresh = trees.flatten(jax.device_get(jax.jit(init)()))
        variables = {path: variables.get(path, leaf) for path, leaf in fresh.items()}
    return Native(
        config=native,
        network=network,
        variables=trees.unflatten(variables),
        spaces=(space,),
        normalizer=normalizer,
        report=report,
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
        freeze=made.freeze(),
    )


def statistics(octo: Octo, mode: str | None = None) -> normalizer_lib.Normalizer:
    """The Normalizer of Octo's statistics; `mode` None takes the one that the config says."""
    where = f"{octo.folder}: dataset_statistics.json"
    return _octo_statistics.normalizer(where, octo.statistics, octo.config, mode)


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
    shapes: Any, parameters: Mapping[str, np.ndarray], unused: tuple[str, ...], partial: bool
) -> tuple[dict[str, Any], pretrained.Report]:
    """({path: array} that the network has, report); UserError for whatever does not fit."""
    wanted = {path: tuple(leaf.shape) for path, leaf in trees.items(shapes)}
    missing = tuple(path for path in wanted if path not in parameters)
    unused += tuple(path for path in parameters if path not in wanted)
    mapped = {path: parameters[path] for path in wanted if path in parameters}
    wrong = [
        f"  shape       {path} is {leaf.shape}, expected {wanted[path]}"
        for path, leaf in mapped.items()
        if leaf.shape != wanted[path]
    ]
    if not partial:
        wrong += [f"  missing     {path} {wanted[path]}" for path in missing]
        wrong += [f"  left over   {path}" for path in unused]
    if wrong:
        raise plugin.UserError(
            "octo checkpoint: its parameters and its config.json do not fit together:\n"
            + "\n".join(wrong)
        )
    return mapped, pretrained.Report(mapped=tuple(mapped), missing=missing, unused=unused)


def _parameters(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """{path: array} of the msgpack file, which holds the arrays or names those beside it."""
    if not (folder / "checkpoint").is_file():
        raise plugin.UserError(f"octo checkpoint: {folder / 'checkpoint'} is missing")
    found = {}
    for path, value in trees.items(_msgpack(folder / "checkpoint")):
        if isinstance(value, str) and value.startswith(PLACEHOLDER):
            value = _tensorstore(folder, value.removeprefix(PLACEHOLDER))
        if isinstance(value, np.ndarray):
            found[path] = value
    if not any(path.startswith("octo_transformer/") for path in found):
        raise plugin.UserError(
            f"octo checkpoint {folder}: holds {sorted(found)[:3] or 'no arrays'}, expected Octo's "
            "parameters (octo_transformer/…, heads_…); this is another kind of checkpoint"
        )
    return found


def _tensorstore(folder: pathlib.Path, name: str) -> np.ndarray:
    """An array that stands beside the msgpack file, in a zarr folder or in an OCDBT database."""
    import tensorstore  # only for checkpoints that were saved from several devices

    store: dict[str, Any] = {"driver": "file", "path": str((folder / name).absolute())}
    if not (folder / name).is_dir():
        bases = sorted(path.parent for path in folder.rglob("manifest.ocdbt"))
        if not bases:
            raise plugin.UserError(f"octo checkpoint {folder}: array {name} is missing")
        store = {"driver": "ocdbt", "base": f"file://{bases[0].absolute()}/", "path": name}
    try:
        array = tensorstore.open({"driver": "zarr", "kvstore": store}).result()
        return np.asarray(array.read().result())
    except ValueError as error:
        raise plugin.UserError(f"octo checkpoint {folder}: array {name}: {error}") from error


def _json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise plugin.UserError(f"octo checkpoint: {path} is no JSON ({error})") from error


def _msgpack(path: pathlib.Path) -> Any:
    try:
        return flax.serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack raises several, for foreign and for truncated files
        raise plugin.UserError(
            f"octo checkpoint: {path} ({path.stat().st_size} bytes) is no msgpack file of flax, or "
            f"is cut off: {type(error).__name__}: {error}"
        ) from error
