"""Configs: a ConfigDict at the door, frozen dataclasses inside.

A config file is plain Python whose ``get_config(arg)`` fills ``config.new()``. `load` runs it,
lays ``--config.a.b=c`` over it and parses the result into `TrainConfig`: an unknown key names the
nearest known one, a wrong type says what was expected. Plug-in specs (``dict(type="flow", …)``)
stay plain dicts; `plugin.build` checks them against the plug-in's own signature. Defaults live here
or in a plug-in's signature, once. Sequences become tuples, so that JSON round trips are exact.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import types as python_types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union

import ml_collections

from vla_jax import plugin

Spec = dict[str, Any]  # a plug-in: its `type` and arguments
Row = tuple[str, Any]  # (regex over parameter paths, value): the first row that matches decides
PerLayer = float | tuple[float, ...]  # one value, or one per layer of a stacked parameter
Schedule = float | tuple[tuple[float, float], ...]  # a value, or (n, value) points joined by lines


def _section():
    return dataclasses.dataclass(frozen=True, kw_only=True)


def _empty():
    return dataclasses.field(default_factory=dict)


@_section()
class LegacyConfig:
    """What imported Octo checkpoints need for their numbers; new networks leave it alone.

    shifted:   rules take a group's first token for one of the group before it (Octo 1.0)
    unseeing:  what a query that may see nothing gets, "zeros" or the "mean" of all values (flax)
    readouts:  True: readouts of steps before the episode's beginning count as real
    oldest:    True: a window shorter than the position tables takes their first rows, not the last
    """

    shifted: bool = False
    unseeing: Literal["zeros", "mean"] = "zeros"
    readouts: bool = False
    oldest: bool = False


@_section()
class ModelConfig:
    """The network: one trunk, and tables of named organs from which each stream picks."""

    trunk: Spec
    shared: dict[str, Spec] = _empty()  # modules that several organs use: text_embedding, grounding
    tokenizers: dict[str, Spec] = _empty()
    readouts: dict[str, int] = _empty()  # name -> tokens
    heads: dict[str, Spec] = _empty()
    rules: tuple[tuple[str, str, str], ...] = ()  # (query groups, key groups, rule)
    dtype: str = "float32"  # of computation; parameters, softmax and losses stay float32
    max_window: int = 0  # steps of the position tables; 0: the longest window of a stream
    legacy: LegacyConfig = dataclasses.field(default_factory=LegacyConfig)


@_section()
class StreamConfig:
    """One kind of batch in a step: its size, token layout, heads, objectives and mixture."""

    batch_size: int
    groups: tuple[str, ...]  # tokenizers in token order
    window: int = 1
    action_horizon: int = 1
    conditioning: dict[str, tuple[str, ...]] = _empty()  # group -> groups that it reads
    readouts: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    objectives: dict[str, Spec] = _empty()  # each with an optional weight
    mixture: dict[str, Spec] = _empty()  # member -> dict(source=spec, weight=…)
    validation: dict[str, Spec] = _empty()  # the held-out members; empty = not validated
    max_tokens: int = 16
    image_sizes: dict[str, tuple[int, int]] = _empty()  # view -> (height, width)
    resize: Literal["area", "tensorflow"] = "area"  # how pictures come to these sizes (images.py)


@_section()
class OptimizerConfig:
    """AdamW with a schedule; rows of `groups` multiply `lr` and `weight_decay` per parameter."""

    lr: float = 3e-4
    schedule: Literal["cosine", "rsqrt", "constant"] = "cosine"
    warmup: int = 0  # train_steps of linear warm-up
    final: float = 0.0  # cosine: fraction of lr at the last train_step
    timescale: int = 10_000  # rsqrt: lr * sqrt(timescale / (train_step - warmup + timescale))
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip: float | None = 1.0  # global norm of the gradient
    groups: tuple[Row, ...] = (
        (r".*/(bias|scale)", {"weight_decay": 0.0}),
        (r".*", {}),
    )  # (regex, {"lr": PerLayer, "weight_decay": PerLayer}): factors, default 1
    ema: float | None = None  # decay of the moving average of the trained parameters
    accumulation: int = 1  # microbatches of one train_step


@_section()
class MeshConfig:
    """Sizes of the mesh axes; -1 (one axis) is what the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1


@_section()
class ShardingConfig:
    """First-match table from parameter paths to axes, see parallel/sharding.py."""

    rules: tuple[Row, ...] = (
        # The trunk's widths over tensor: heads and the MLP's hidden units; stacked [layer, …].
        (
            r"params/trunk/.*/(query|key|value|hidden_0)/kernel",
            {"axes": (None, "fsdp", "tensor"), "or_replicate": True},
        ),
        (
            r"params/trunk/.*/mlp/out/kernel",
            {"axes": (None, "tensor", "fsdp"), "or_replicate": True},
        ),
        (
            r"params/trunk/.*/out/kernel",
            {"axes": (None, "tensor", None, "fsdp"), "or_replicate": True},
        ),
        (r".*", "fsdp"),
    )
    small: int = 2**16  # parameters of fewer numbers are replicated


@_section()
class CheckpointConfig:
    """When to save: resume points, and apart from them the best by a metric."""

    every: int = 1000  # train_steps; the last one is always saved
    keep: int = 2
    best_metric: str | None = None  # e.g. "validation/robot/action"
    best_mode: Literal["min", "max"] = "min"
    best_keep: int = 1


@_section()
class ValidationConfig:
    """Held-out batches per stream, the same ones each time."""

    every: int | None = None  # train_steps; None = never
    batches: int = 8


@_section()
class NormalizerConfig:
    """How numbers are scaled: field patterns ("action", "proprio/*") -> mode, first match wins."""

    stats: str | tuple[str, ...] = "recompute"  # "checkpoint", or files of `vla data stats`
    modes: tuple[tuple[str, str], ...] = (("action", "q01_q99"), ("*", "zscore"))
    clip: float | None = None


@_section()
class InitFromConfig:
    """Others' parameters to begin with: a run's (models/pretrained.py), pretrained encoders'."""

    checkpoint: str | None = None
    fresh: tuple[str, ...] = ()  # regexes of paths that start anew
    rename: tuple[tuple[str, str], ...] = ()  # (regex, replacement): new path -> checkpoint's path
    encoders: dict[str, str] = dataclasses.field(default_factory=dict)  # tokenizer -> HF's folder

    def __post_init__(self):
        if not self.checkpoint and (self.fresh or self.rename or not self.encoders):
            raise plugin.UserError("config.init_from.checkpoint is missing: name a run's folder")


@_section()
class TrainConfig:
    """Everything a run is, in the order in which a reader asks."""

    steps: int
    model: ModelConfig
    streams: dict[str, StreamConfig]
    seed: int = 0
    embodiments: tuple[str, ...] = ()
    text_tokenizer: str | None = None  # path of a SentencePiece model or a T5's tokenizer.json
    normalizer: NormalizerConfig = dataclasses.field(default_factory=NormalizerConfig)
    init_from: InitFromConfig | None = None
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    freeze: tuple[tuple[str, bool], ...] = ()  # (regex, frozen?) over parameter paths
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    sharding: ShardingConfig = dataclasses.field(default_factory=ShardingConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig)
    compiler: dict[str, bool | int | str] = dataclasses.field(default_factory=dict)  # XLA's options
    workers: int = 0  # data processes per stream; 0 = in this one
    writers: tuple[str, ...] = ("jsonl", "tensorboard")
    log_every: int = 50


def new() -> ml_collections.ConfigDict:
    """A ConfigDict with the sections of TrainConfig as empty tables, ready to be filled.

    Parsing keeps the keys in the order in which they were written.
    """
    return _config_dict(_skeleton(TrainConfig))


def _config_dict(tree: Mapping) -> ml_collections.ConfigDict:
    # type_safe=False: the schema checks types, and says better what it expected.
    return ml_collections.ConfigDict(dict(tree), type_safe=False)


def _skeleton(cls: type) -> dict:
    hints, tree = _hints(cls), {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            tree[field.name] = _skeleton(hint)
        elif typing.get_origin(hint) is dict:
            tree[field.name] = {}
    return tree


def parse_args(arg: str | None, **defaults: Any) -> python_types.SimpleNamespace:
    """The arguments of ``configs/X.py:k=v,k2=v2`` over typed defaults; UserError if unknown."""
    values = dict(defaults)
    for part in filter(None, (arg or "").split(",")):
        key, equals, text = part.partition("=")
        if key not in defaults:
            raise plugin.UserError(plugin.unknown("config argument", key, defaults))
        if not equals:
            raise plugin.UserError(f"config argument {part!r}: expected {key}=VALUE")
        value, default = _literal(text), defaults[key]
        if isinstance(default, str):
            value = text
        elif isinstance(default, float) and type(value) is int:
            value = float(value)
        if default is not None and type(value) is not type(default):
            kind = type(default).__name__
            raise plugin.UserError(f"config argument {key}: got {text!r}, expected {kind}")
        values[key] = value
    return python_types.SimpleNamespace(**values)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def override(config: Mapping, flags: Sequence[str]) -> ml_collections.ConfigDict:
    """`config` with ``--config.a.b=c`` flags laid over it; values are Python literals or text.

    Raises UserError for a malformed flag and for a path through something that is no table. Whether
    the key exists is checked by `parse`, or by the plug-in whose argument it is.
    """
    tree = _plain("config", config)
    for flag in flags:
        name, equals, text = flag.removeprefix("--").partition("=")
        section, *keys = name.split(".")
        if section != "config" or not keys or not equals:
            raise plugin.UserError(f"{flag!r}: expected --config.SECTION.KEY=VALUE")
        node = tree
        for depth, key in enumerate(keys[:-1]):
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                where = ".".join((section, *keys[: depth + 1]))
                raise plugin.UserError(f"{flag!r}: {where} is {node!r}, not a table of settings")
        node[keys[-1]] = _literal(text)
    return _config_dict(tree)


def load(path_and_args: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """The parsed config of ``configs/X.py[:k=v,…]`` with ``--config.a.b=c`` laid over it."""
    path, _, arg = path_and_args.partition(":")
    get_config = plugin.load_attribute(path, "get_config")
    return parse(TrainConfig, override(get_config(arg), overrides))


def parse(schema: type, tree: Mapping, where: str = "config") -> Any:
    """The frozen dataclass `schema` of nested tables; UserError: where, got, expected, nearest."""
    return _value(where, schema, _plain(where, tree))


def to_json(config: Any) -> str:
    """A parsed config as JSON text; `from_json` returns an equal config."""
    return json.dumps(dataclasses.asdict(config), indent=1)


def from_json(text: str) -> TrainConfig:
    """The config that `to_json` wrote."""
    return parse(TrainConfig, json.loads(text))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _plain(where: str, value: Any) -> Any:
    """Tables to dicts, sequences to tuples; only what JSON can say may stand in a config."""
    if isinstance(value, ml_collections.ConfigDict):
        # Not `for key in value`: tables inside a ConfigDict iterate alphabetically.
        value = {key: value[key] for key in value._fields}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise plugin.UserError(f"{where}: key {key!r} is no text")
        return {key: _plain(f"{where}.{key}", entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(f"{where}[{i}]", entry) for i, entry in enumerate(value))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise plugin.UserError(
        f"{where}: got {type(value).__name__} {value!r}; configs hold numbers, text, None, "
        "sequences and tables, never functions or arrays"
    )


def _value(where: str, hint: Any, value: Any) -> Any:
    """`value` as the type `hint` asks, or UserError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _dataclass(where, hint, value)
    if origin in (Union, python_types.UnionType):
        return _union(where, hint, arguments, value)
    if origin is Literal:
        if value not in arguments:
            raise plugin.UserError(plugin.unknown(where, value, arguments))
        return value
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, value, "a table")
        return {key: _value(f"{where}.{key}", arguments[1], entry) for key, entry in value.items()}
    if origin is tuple:
        return _tuple(where, hint, arguments, value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise _wrong(where, value, getattr(hint, "__name__", str(hint)))
    return value


def _dataclass(where: str, cls: type, value: Any) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, value, f"a table ({cls.__name__})")
    hints, fields = _hints(cls), dataclasses.fields(cls)
    for key in value:
        if key not in hints:
            known = [f"{where}.{field.name}" for field in fields]
            raise plugin.UserError(plugin.unknown(where, f"{where}.{key}", known))
    for field in fields:
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and field.name not in value:
            raise plugin.UserError(f"{where}.{field.name} is missing; it has no default")
    return cls(**{key: _value(f"{where}.{key}", hints[key], v) for key, v in value.items()})


def _union(where: str, hint: Any, arguments: tuple, value: Any) -> Any:
    if value is None and type(None) in arguments:
        return None
    choices = [choice for choice in arguments if choice is not type(None)]
    if len(choices) == 1:
        return _value(where, choices[0], value)
    for choice in choices:
        try:
            return _value(where, choice, value)
        except plugin.UserError:
            continue
    raise _wrong(where, value, str(hint))


def _tuple(where: str, hint: Any, arguments: tuple, value: Any) -> tuple:
    if not isinstance(value, tuple):
        raise _wrong(where, value, "a sequence")
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise _wrong(where, value, f"{len(arguments)} entries: {hint}")
    return tuple(
        _value(f"{where}[{i}]", kind, entry)
        for i, (kind, entry) in enumerate(zip(arguments, value, strict=True))
    )


def _wrong(where: str, value: Any, expected: str) -> plugin.UserError:
    return plugin.UserError(f"{where}: got {type(value).__name__} {value!r}, expected {expected}")
