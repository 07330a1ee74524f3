"""Configs: a ConfigDict at the door, frozen dataclasses inside.

A config file is plain Python whose ``get_config(arg)`` fills ``config.new()``. `load` runs it,
lays ``--config.a.b=c`` over it and parses the result into `TrainConfig`: an unknown key names the
nearest known one, a wrong type says what was expected. Defaults live in the schema (schema.py) or
in a plug-in's signature, once. Sequences become tuples, so that JSON round trips are exact.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import re
import types as python_types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Union

import ml_collections

from vla_jax import plugin
from vla_jax.schema import (
    CheckpointConfig,
    CompilerConfig,
    InitFromConfig,
    LegacyConfig,
    MeshConfig,
    ModelConfig,
    NormalizerConfig,
    OptimizerConfig,
    PerLayer,
    Row,
    Schedule,
    ShardingConfig,
    Spec,
    StreamConfig,
    TrainConfig,
    ValidationConfig,
)

__all__ = [  # the schema's names, for those who hold a config
    "CheckpointConfig",
    "CompilerConfig",
    "InitFromConfig",
    "LegacyConfig",
    "MeshConfig",
    "ModelConfig",
    "NormalizerConfig",
    "OptimizerConfig",
    "PerLayer",
    "Row",
    "Schedule",
    "ShardingConfig",
    "Spec",
    "StreamConfig",
    "TrainConfig",
    "ValidationConfig",
]

PLACEHOLDER = re.compile(r"\w+://<[^<>]+>|<[^<>]+>/")  # begins a path: "<image>" is none


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


def check_filled(where: str, tree: Any) -> None:
    """UserError for paths that begin with a placeholder, like "gs://<bucket>/oxe", naming each.

    A published config says by one what only its user knows; `tree` is a config or a part of it.
    """
    tree = dataclasses.asdict(tree) if dataclasses.is_dataclass(tree) else tree
    found = list(_placeholders(where, tree))
    if found:
        raise plugin.UserError(
            "\n".join(
                [
                    "the config leaves open what only you know; give it as an argument of the "
                    "config (CONFIG.py:NAME=VALUE, its first lines name them), or as "
                    "--config.SECTION.KEY=VALUE:",
                    *(f"  {at}: got the placeholder {text!r}" for at, text in found),
                ]
            )
        )


def _placeholders(where: str, tree: Any) -> Iterator[tuple[str, str]]:
    if isinstance(tree, str) and PLACEHOLDER.match(tree):
        yield where, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _placeholders(f"{where}.{key}", value)
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from _placeholders(f"{where}[{i}]", value)


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
            advice = f" {cls.advice}" if hasattr(cls, "advice") else ""
            raise plugin.UserError(plugin.unknown(where, f"{where}.{key}", known) + advice)
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
