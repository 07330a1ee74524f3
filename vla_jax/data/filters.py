"""Which episodes are taken: expressions over what is known of an episode, or the user's function.

    filter="success and length >= 10"
    filter=("labelled", "max_action < 5", dict(function="my_lab.filters.kept", at_least=3))

Known of every episode: `id`, `length` (steps), `labelled` (every step has an instruction),
`instruction` (its first one), `max_action` and `max_proprio` (largest magnitude, raw units; Octo
filters by these), and the data set's own metadata by name, `/` and `.` written `_`: numbers and
texts of RLDS's `episode_metadata`, columns of LeRobot's list of episodes and `task`. Expressions
hold comparisons, `in`, `and`, `or`, `not`, arithmetic, numbers, strings and lists; no calls.
"""

from __future__ import annotations

import ast
import importlib
import operator
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.data.episodes import Episodes

COMPARE = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
BUILT_IN = ("id", "length", "labelled", "instruction", "max_action", "max_proprio")


class Facts(Mapping):
    """What is known of one episode, by name; see the module."""

    def __init__(self, episodes: Episodes, episode: int, columns: Mapping[str, Sequence]):
        self.episodes, self.episode, self.columns = episodes, episode, columns
        self.rows = slice(*(int(i) for i in episodes.start[episode : episode + 2]))

    def __getitem__(self, name: str):
        table, rows = self.episodes, self.rows
        if name == "id":
            return table.ids[self.episode]
        if name == "length":
            return rows.stop - rows.start
        if name == "labelled":
            return bool(np.all(table.language_index[rows] >= 0))
        if name == "instruction":
            found = table.language_index[rows]
            return table.language[found[0]] if len(found) and found[0] >= 0 else ""
        if name == "max_action":
            return float(np.max(np.abs(table.action[rows]), initial=0.0))
        if name == "max_proprio":
            groups = table.proprio.values()
            return max((float(np.max(np.abs(g[rows]), initial=0.0)) for g in groups), default=0.0)
        return self.columns[name][self.episode]

    def __iter__(self) -> Iterator[str]:
        return iter((*BUILT_IN, *self.columns))

    def __len__(self) -> int:
        return len(BUILT_IN) + len(self.columns)


def keep(where: str, episodes: Episodes, selected: np.ndarray, given) -> np.ndarray:
    """Those of the `selected` episodes that every filter takes, in order.

    Raises UserError for an expression that cannot be read, an unknown name, values that cannot be
    compared, a function that does not exist or answers no bool, and where no episode is left.
    """
    tests = [_test(where, one) for one in _several(given)]
    if not tests:
        return selected
    columns = {re.sub(r"\W", "_", name): values for name, values in episodes.metadata.items()}
    kept = []
    for episode in selected.tolist():
        facts = Facts(episodes, episode, columns)
        if all(test(facts) for test in tests):
            kept.append(episode)
    if not kept and len(selected):
        raise plugin.UserError(
            f"{where}: filter={given!r} leaves none of {len(selected)} episodes; loosen it"
        )
    return np.asarray(kept, selected.dtype)


def _several(given) -> Sequence:
    return [given] if isinstance(given, str | Mapping) else list(given or ())


def _test(where: str, given):
    if isinstance(given, Mapping):
        return _function(where, dict(given))
    try:
        tree = ast.parse(given.strip(), mode="eval").body
    except SyntaxError as error:
        raise plugin.UserError(
            f"{where}: filter={given!r} is no expression ({error.msg}); expected such as "
            "'length >= 10 and success'"
        ) from error

    def test(facts: Facts) -> bool:
        try:
            return bool(_value(f"{where}: filter={given!r}", tree, facts))
        except TypeError as error:
            raise plugin.UserError(
                f"{where}: filter={given!r}: episode {facts['id']}: {error}; compare like with like"
            ) from error

    return test


def _function(where: str, spec: dict):
    path = spec.pop("function", None)
    if not isinstance(path, str) or "." not in path:
        raise plugin.UserError(
            f"{where}: filter function={path!r}, expected a dotted name: 'my_lab.filters.kept'"
        )
    module, _, name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise plugin.UserError(
            f"{where}: filter function {path!r}: {error}; put its folder on PYTHONPATH"
        ) from error

    def test(facts: Facts) -> bool:
        answer = function(facts, **spec)
        if not isinstance(answer, bool | np.bool_):
            raise plugin.UserError(
                f"{where}: filter function {path!r} answered {answer!r} for episode {facts['id']}, "
                "expected True (keep) or False"
            )
        return bool(answer)

    return test


def _value(where: str, node: ast.AST, facts: Facts):
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            if name not in facts:
                raise plugin.UserError(plugin.unknown(where, name, facts))
            return facts[name]
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_value(where, part, facts) for part in parts]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(where, operand, facts)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(where, operand, facts)
        case ast.BoolOp(op=op, values=parts):
            combine = all if isinstance(op, ast.And) else any
            return combine(_value(where, part, facts) for part in parts)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            return ARITHMETIC[type(op)](_value(where, left, facts), _value(where, right, facts))
        case ast.Compare(left=left, ops=ops, comparators=rest) if all(
            type(op) in COMPARE for op in ops
        ):
            values = [_value(where, part, facts) for part in (left, *rest)]
            pairs = zip(values, values[1:])
            return all(COMPARE[type(op)](a, b) for op, (a, b) in zip(ops, pairs))
    raise plugin.UserError(
        f"{where}: {ast.unparse(node)!r} may not stand in a filter; expected comparisons, and, or, "
        "not, numbers and strings, or dict(function=…)"
    )
