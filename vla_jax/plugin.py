"""Plug-ins by file name: ``dict(type="flow", …)`` calls `make` of ``vla_jax/heads/flow.py``.

``ls heads/`` is the registry. A dotted type (``my_lab.heads.mamba``) is imported from outside the
repository. The signature of ``make`` is the schema of the config; unknown names are refused with
the nearest known one. Files in a plug-in folder that start with ``_`` are no plug-ins.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import pathlib
import sys
import typing
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

outside: set[str] = set()  # files of the user's that have been loaded: plug-ins, rows, configs


class UserError(ValueError):
    """A mistake in what the user gave: printed without a traceback, exit code 2."""


def unknown(where: str, got: str, known: Iterable[str]) -> str:
    """The message for an unknown name: where, got, the nearest known one, and all known ones."""
    known = [str(name) for name in known]
    near = difflib.get_close_matches(str(got), known, n=1, cutoff=0.5)
    hint = f", did you mean {near[0]!r}?" if near else "."
    return f"{where}: unknown {got!r}{hint} Known: {', '.join(sorted(known)) or '(none)'}."


def names(folder: str) -> tuple[str, ...]:
    """The plug-ins of a folder (``"heads"``), sorted: its files that do not start with ``_``."""
    root = pathlib.Path(__file__).parent.joinpath(*folder.split("."))
    return tuple(sorted(path.stem for path in root.glob("*.py") if not path.stem.startswith("_")))


def module(folder: str, type_: str) -> ModuleType:
    """The module of a plug-in; `type_` is a file name, or a dotted path outside the repository.

    Raises UserError for an unknown type, naming the nearest file.
    """
    if "." in type_:
        try:
            found = importlib.import_module(type_)
            outside.update(filter(None, [found.__file__]))
            return found
        except ModuleNotFoundError as error:
            raise UserError(
                f"{folder}: cannot import the plug-in {type_!r}: {error}. A dotted type "
                f"is a module path; "
                f"put its folder on PYTHONPATH. Built in: {', '.join(names(folder))}."
            ) from error
    if type_ not in names(folder):
        raise UserError(unknown(folder, type_, names(folder)))
    return importlib.import_module(f"vla_jax.{folder}.{type_}")


def build(folder: str, spec: Mapping[str, Any], context: Any) -> Any:
    """What ``make(context, **arguments)`` of the plug-in that `spec` names returns.

    Raises UserError when the type or an argument is unknown, or an argument is missing.
    """
    where = f"{folder}.{getattr(context, 'name', '?')}"
    arguments = dict(spec)
    if "type" not in arguments:
        raise UserError(
            f"{where}: a plug-in needs its type, got {dict(spec)}. Known: {names(folder)}."
        )
    make = module(folder, arguments.pop("type")).make
    check_arguments(f"{where} (type {spec['type']!r})", make, arguments)
    return make(context, **arguments)


def check_arguments(where: str, make: Any, arguments: Mapping[str, Any]) -> None:
    """Raises UserError unless `arguments` fit the signature of `make` after its first parameter.

    ``**rest: SomeDataclass`` takes the dataclass's fields by name, ``**rest`` anything.
    """
    parameters = list(inspect.signature(make).parameters.values())[1:]
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    known = {p.name for p in named}
    for rest in (p for p in parameters if p.kind is p.VAR_KEYWORD):
        of = typing.get_type_hints(make).get(rest.name)
        if not dataclasses.is_dataclass(of):
            known.update(arguments)
        else:
            known.update(field.name for field in dataclasses.fields(of))
    for name in arguments:
        if name not in known:
            raise UserError(unknown(where, name, known))
    required = [p for p in named if p.default is p.empty]
    missing = [p.name for p in required if p.name not in arguments]
    if missing:
        raise UserError(f"{where}: missing {missing}; give them in the config.")


def load_attribute(path: str | pathlib.Path, name: str) -> Any:
    """Attribute `name` of a user's Python file (an embodiment, standardizer rows, a config)."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a Python file that defines {name}.")
    outside.add(str(path.resolve()))
    loaded = ModuleType(path.stem)
    loaded.__file__ = str(path)
    sys.path.insert(0, str(path.resolve().parent))  # the file may import its neighbours
    try:
        # Not by an import, which would keep bytecode beside the user's file, and take a file that
        # was changed within the second, to the same size, for the one before.
        exec(compile(path.read_bytes(), path, "exec"), vars(loaded))
    finally:
        sys.path.remove(str(path.resolve().parent))
    if not hasattr(loaded, name):
        public = [n for n in vars(loaded) if not n.startswith("_")]
        raise UserError(unknown(str(path), name, public))
    return getattr(loaded, name)


def accepted(function: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `arguments` that `function` takes by name."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in known}
