"""Expressions of a standardizer row: a column of the data set, and what is done to it.

    "action[:6]"                                          dims 0 to 5 of a column
    "action/gripper_closedness_action | clip01 | invert"  one operation after the other
    "action[3:7] | rotation(quat_xyzw, euler_xyz)"        with arguments
    "zeros(3)", "ones(1)"                                 constants

Columns are named as in features.json, without `steps/`. Every column is float; one of shape [T] is
[T, 1]; a vector is a tuple of expressions, concatenated.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.codecs import rotations

CONSTANT = re.compile(r"(zeros|ones)\((\d+)\)")
COLUMN = re.compile(r"([^\[\]()|]+?)(?:\[(-?\d+)?(?:(:)(-?\d+)?)?\])?")
CALL = re.compile(r"(\w+)(?:\((.*)\))?")


def clip01(values: np.ndarray) -> np.ndarray:
    """Values held to 0 … 1."""
    return np.clip(values, 0.0, 1.0)


def invert(values: np.ndarray) -> np.ndarray:
    """1 - x: a gripper that is 1 when closed is 1 when open."""
    return 1.0 - values


def scale(values: np.ndarray, factor: float) -> np.ndarray:
    """Values times a factor."""
    return values * factor


def add(values: np.ndarray, summand: float) -> np.ndarray:
    """Values plus a summand."""
    return values + summand


def rotation(values: np.ndarray, source: str, target: str) -> np.ndarray:
    """Rotation values [T, n] of one kind as another [T, n'], see codecs/rotations.py."""
    return rotations.from_matrix(rotations.to_matrix(values, source), target)


def binarize(values: np.ndarray) -> np.ndarray:
    """0 or 1 of a gripper opening: above 0.95 is 1, below 0.05 is 0, between what comes next.

    A column that ends between keeps its last value there, as Octo's does
    (octo/data/utils/data_utils.py: binarize_gripper_actions).
    """
    made = np.where(values > 0.95, 1.0, np.where(values < 0.05, 0.0, np.nan))
    following = np.broadcast_to(values[-1], values.shape[1:])
    for step in reversed(range(len(made))):
        following = made[step] = np.where(np.isnan(made[step]), following, made[step])
    return made


def rel2abs(values: np.ndarray) -> np.ndarray:
    """1 (open) or 0 of gripper commands: above 0.1 closes, below -0.1 opens, else as before.

    Before the first command the gripper is in the other state; without one it is open. (Octo:
    data_utils.py, rel2abs_gripper_actions. Its unused rel_open_or_closed maps opening and closing
    both to -1 and so cannot tell the state before the first command.)
    """
    command = np.where(values < -0.1, 1.0, np.where(values > 0.1, 0.0, np.nan))
    made = np.empty_like(values)
    for dim in range(values.shape[1]):
        told = command[~np.isnan(command[:, dim]), dim]
        now = 1.0 - told[0] if len(told) else 1.0
        for step, wish in enumerate(command[:, dim]):
            now = made[step, dim] = now if np.isnan(wish) else wish
    return made


def to_next(values: np.ndarray) -> np.ndarray:
    """x[t + 1] - x[t]: what was reached. The last step has none; the row drops it (drop_last)."""
    return np.diff(values, axis=0, append=values[-1:])


def to_next_angle(values: np.ndarray) -> np.ndarray:
    """`to_next` of angles in rad, in [-pi, pi): no jump where an angle wraps round."""
    return (to_next(values) + np.pi) % (2 * np.pi) - np.pi


def _kind(text: str) -> str:
    if text not in rotations.SIZES:
        raise plugin.UserError(plugin.unknown("rotation", text, rotations.SIZES))
    return text


# name -> (function of [T, n] and its arguments, what reads each argument)
OPERATIONS: dict[str, tuple[Callable, tuple[Callable, ...]]] = {
    "clip01": (clip01, ()),
    "invert": (invert, ()),
    "scale": (scale, (float,)),
    "add": (add, (float,)),
    "rotation": (rotation, (_kind, _kind)),
    "binarize": (binarize, ()),
    "rel2abs": (rel2abs, ()),
    "to_next": (to_next, ()),
    "to_next_angle": (to_next_angle, ()),
}
AHEAD = ("to_next", "to_next_angle")  # read the next step: undefined at the last


@dataclasses.dataclass(frozen=True)
class Expression:
    """A parsed expression; `column` is None for a constant."""

    text: str
    column: str | None
    dims: slice | int
    constant: np.ndarray | None
    operations: tuple[tuple[str, tuple], ...]

    @property
    def ahead(self) -> bool:
        """Whether the value at the last step is undefined."""
        return any(name in AHEAD for name, _ in self.operations)

    def __call__(self, columns: Mapping[str, np.ndarray], length: int, where: str) -> np.ndarray:
        """float64 [T, n] from columns without their prefix; UserError where they do not fit."""
        if self.column is None:
            values = np.broadcast_to(self.constant, (length, len(self.constant)))
        else:
            values = self._dims(columns[self.column], length, where)
        for name, arguments in self.operations:
            try:
                values = OPERATIONS[name][0](values, *arguments)
            except plugin.UserError as error:
                raise plugin.UserError(f"{where}: {self.text!r}: {error}") from error
        return values

    def _dims(self, column: np.ndarray, length: int, where: str) -> np.ndarray:
        try:
            values = np.asarray(column, np.float64).reshape(length, -1)
        except (TypeError, ValueError) as error:
            raise plugin.UserError(
                f"{where}: {self.text!r}: column {self.column!r} is no array of numbers with "
                f"{length} steps ({error})"
            ) from error
        size, dims = values.shape[1], self.dims
        ends = (dims,) if isinstance(dims, int) else (dims.start, dims.stop)
        for end in ends:
            last = size - 1 if isinstance(dims, int) else size
            if end is not None and not -size <= end <= last:
                raise plugin.UserError(
                    f"{where}: {self.text!r}: column {self.column!r} has {size} numbers per step"
                )
        return values[:, dims : dims + 1 or None] if isinstance(dims, int) else values[:, dims]


def parse(where: str, text: str) -> Expression:
    """The expression; UserError where it is none, naming the nearest operation."""
    if not isinstance(text, str):
        raise plugin.UserError(
            f"{where}: got {text!r}, expected an expression such as 'action[:6]'"
        )
    head, *calls = (part.strip() for part in text.split("|"))
    operations = tuple(_operation(f"{where}: {text!r}", call) for call in calls)
    constant, column = CONSTANT.fullmatch(head), COLUMN.fullmatch(head)
    if constant:
        filled = np.full(int(constant[2]), float(constant[1] == "ones"))
        return Expression(text, None, slice(None), filled, operations)
    if not column:
        raise plugin.UserError(
            f"{where}: got {text!r}, expected 'column', 'column[start:stop]', 'zeros(n)' or "
            "'ones(n)', and operations after a |"
        )
    name, start, colon, stop = column.groups()
    if start and not colon:
        return Expression(text, name, int(start), None, operations)
    if head.endswith("[]"):
        raise plugin.UserError(f"{where}: {text!r}: expected dims as in 'column[:6]'")
    dims = slice(int(start) if start else None, int(stop) if stop else None)
    return Expression(text, name, dims, None, operations)


def vector(where: str, spec: str | Sequence[str]) -> tuple[Expression, ...]:
    """The expressions of a vector: one, or several to concatenate; UserError for none."""
    parts = (spec,) if isinstance(spec, str) else tuple(spec)
    if not parts:
        raise plugin.UserError(f"{where}: empty, expected at least one expression")
    return tuple(parse(where, part) for part in parts)


def _operation(where: str, call: str) -> tuple[str, tuple]:
    match = CALL.fullmatch(call)
    name = match[1] if match else call
    if name not in OPERATIONS:
        raise plugin.UserError(plugin.unknown(f"{where}: operation", name, OPERATIONS))
    readers = OPERATIONS[name][1]
    given = [part.strip() for part in match[2].split(",")] if match[2] else []
    if len(given) != len(readers):
        raise plugin.UserError(
            f"{where}: {name} has {len(given)} arguments, expected {len(readers)}"
        )
    try:
        return name, tuple(reader(part) for reader, part in zip(readers, given))
    except plugin.UserError as error:
        raise plugin.UserError(f"{where}: {name}: {error}") from error
    except ValueError as error:
        raise plugin.UserError(f"{where}: {name}: {error}, expected a number") from error
