"""What standardizer rows say, for people and for JSON: cameras, readings, instructions, actions and
what each number of them means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vla_jax import plugin
from vla_jax.data.standardizers import _table
from vla_jax.types import ActionGroup, Embodiment


def known(file: str | None = None) -> dict[str, _table.Row]:
    """The rows of standardizers/oxe.py, or of a file of one's own; UserError for an unsound one."""
    if file is None:
        return dict(plugin.module("data.standardizers", "oxe").ROWS)
    rows = plugin.load_attribute(file, "ROWS")
    return {name: _table.row(f"{file}: row {name!r}", row) for name, row in rows.items()}


def body(name: str, file: str | None = None) -> Embodiment | None:
    """The embodiment of that name: the file's own, or one of embodiments/; None = neither's."""
    if file is not None:
        try:
            own = plugin.load_attribute(file, "EMBODIMENT")
        except plugin.UserError:
            own = None  # a file of rows need not hold a robot
        if own is not None and own.name == name:
            return own
    if name not in plugin.names("embodiments"):
        return None
    return plugin.module("embodiments", name).EMBODIMENT


def described(name: str, row: _table.Row, robot: Embodiment | None) -> dict:
    """One row as plain data; `robot`, where it is known, says what the numbers mean.

    Raises UserError where the row is not sound, or names what the robot does not have.
    """
    _table.TableStandardizer(name, row)  # checks it
    fields = {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
    fields["derived"] = {column: list(reads) for column, (_, reads) in row.derived.items()}
    found = {"row": name, **_plain(fields)}
    if robot is None:
        return found
    where = f"row {name!r}: {robot.name}"
    spaces = {space.name: space for space in robot.action_spaces}
    groups = {group.name: group for group in robot.proprio}
    for what, names, of in (
        ("action space", [row.action_space], spaces),
        ("proprio group", row.proprio, groups),
        ("view", row.views, robot.views),
    ):
        for one in names:
            if one not in of:
                raise plugin.UserError(plugin.unknown(f"{where}: {what}", one, of))
    space = spaces[row.action_space]
    found["control_hz"] = space.control_hz
    found["action_groups"] = {group.name: meaning(group) for group in space.groups}
    found["proprio_groups"] = {name: groups[name].meaning for name in row.proprio}
    return found


def meaning(group: ActionGroup) -> str:
    """A group of action numbers in words."""
    said = [f"{group.size} x {group.representation} {group.quantity}"]
    if group.representation == "delta":
        said.append(f"from {group.reference}")
    if group.quantity == "rotation":
        side = f", composed {group.composition}" if group.composition else ""
        said.append(f"as {group.rotation}{side}")
    if group.quantity == "gripper":
        said.append(str(group.gripper))
    else:
        said.append(f"in {group.unit}" if group.scale == 1 else f"times {group.scale:.4g} in SI")
        said.append(f"frame {group.frame}")
    return ", ".join([*said, group.label])


def line(name: str, row: _table.Row) -> str:
    """One row in a line of text."""
    said = "no instructions" if not row.language else "instructions"
    return (
        f"{name:<67} {row.embodiment:<14} {row.action_space:<21} {'+'.join(row.views):<25} "
        f"{'+'.join(row.proprio) or '-':<16} {said}"
    )


def _plain(value):
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
