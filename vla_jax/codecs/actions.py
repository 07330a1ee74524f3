"""Action conversions: any action space → absolute SI values → any action space.

    actions [C, A] ──absolute──▶ {group: [C, n] in SI, rotations [C, 3, 3]} ──relative──▶ actions
    [C, A']

Chunks are blended, ensembled and padded in the middle form. What a delta is added to:

    previous_command   the command before it; the first one of a chunk: Reference.command
    measured_now       the reading at its own step: row t of Reference.measured [C, n]
    chunk_start        the reading at the chunk's first step: row 0 of Reference.measured

Readings and commands are in SI; those of a rotation in the group's own `rotation`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from vla_jax.codecs import rotations
from vla_jax.plugin import UserError, unknown
from vla_jax.types import ActionGroup, ActionSpace, Embodiment

REFERENCES = ("previous_command", "measured_now", "chunk_start")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """What the deltas of one group are measured from; give what the group's `reference` needs."""

    command: np.ndarray | None = None  # [n], the last command before the chunk
    measured: np.ndarray | None = None  # [C, n] (or [1, n] for chunk_start), readings in SI
    orientation: np.ndarray | None = None  # [C or 1, 3, 3], of the tool, for frame="tool"


def absolute(
    actions: np.ndarray, space: ActionSpace, references: Mapping[str, Reference]
) -> dict[str, np.ndarray]:
    """Absolute SI values of a chunk [C, A] by group: float64 [C, n], rotations as [C, 3, 3].

    Velocities and grippers come back as they are, times `scale`. Raises UserError on another A and
    where a reference that a delta needs is missing.
    """
    actions = np.asarray(actions, np.float64)
    if actions.ndim != 2 or actions.shape[1] != space.size:
        raise UserError(f"{space.name}: got actions {actions.shape}, expected [C, {space.size}]")
    return {
        group.name: _absolute(actions[:, part] * group.scale, group, _reference(references, group))
        for group, part in zip(space.groups, space.slices().values())
    }


def relative(
    values: Mapping[str, np.ndarray], space: ActionSpace, references: Mapping[str, Reference]
) -> np.ndarray:
    """The chunk [C, A] of `space` whose absolute SI values are `values`: the inverse of `absolute`.

    Raises UserError where a group has no values and where a reference that a delta needs is
    missing.
    """
    parts = []
    for group in space.groups:
        if group.name not in values:
            raise UserError(unknown(f"{space.name}: action group", group.name, values))
        reference = _reference(references, group)
        parts.append(_relative(np.asarray(values[group.name]), group, reference) / group.scale)
    return np.concatenate(parts, 1)


def convert(
    actions: np.ndarray,
    source: ActionSpace,
    target: ActionSpace,
    source_references: Mapping[str, Reference],
    target_references: Mapping[str, Reference],
) -> np.ndarray:
    """A chunk [C, A] of `source` as a chunk [C, A'] of `target`; groups are matched by name.

    Raises UserError where quantity, or the frame of an absolute or a velocity, differs, or a group
    is missing in `source`.
    """
    values = absolute(actions, source, source_references)
    known = {group.name: group for group in source.groups}
    for group in target.groups:
        if group.name not in known:
            raise UserError(unknown(f"{source.name}: action group", group.name, known))
        given = known[group.name]
        if given.quantity != group.quantity:
            raise UserError(
                f"action group {group.name}: {given.quantity} is not {group.quantity}; "
                f"{source.name} → {target.name} cannot be converted"
            )
        if _kind(given) != _kind(group):
            raise UserError(
                f"action group {group.name}: got {_kind(given)}, expected {_kind(group)}: "
                "only deltas and absolute values of one frame convert into each other"
            )
        if group.quantity == "gripper":
            values[group.name] = gripper(values[group.name], given.gripper, group.gripper)
    return relative(values, target, target_references)


def references(
    space: ActionSpace, body: Embodiment, proprio: Mapping[str, np.ndarray]
) -> dict[str, Reference]:
    """What the deltas of a recorded action space are measured from: by group, of T raw readings.

    An action group of a proprio group's name takes that one (joints), others the first pose that
    was recorded. What was commanded before a recording began is not known: its first reading
    stands for it. A group without a reading has an empty Reference.

    Args:
      space: of the actions.
      body: its proprio groups say which numbers are a pose.
      proprio: group -> [T, P] in the body's units.
    """
    recorded = {g.name: g for g in body.proprio if g.name in proprio}
    scaled = {n: np.asarray(proprio[n], np.float64) * g.scale for n, g in recorded.items()}
    pose = next((g for g in recorded.values() if g.pose), None)
    position = turns = None
    if pose is not None:
        position = scaled[pose.name][:, :3]
        if pose.pose in rotations.SIZES:
            end = 3 + rotations.SIZES[pose.pose]
            turns = rotations.to_matrix(scaled[pose.name][:, 3:end], pose.pose)
    found = {}
    for group in space.groups:
        measured = position if group.quantity == "position" and group.size == 3 else None
        if group.quantity == "rotation" and turns is not None:
            measured = rotations.from_matrix(turns, group.rotation)
        if group.name in recorded and recorded[group.name].size == group.size:
            measured = scaled[group.name]
        command = None if measured is None else measured[0]
        found[group.name] = Reference(command=command, measured=measured, orientation=turns)
    return found


def convert_recorded(
    actions: np.ndarray,
    proprio: Mapping[str, np.ndarray],
    body: Embodiment,
    source: ActionSpace,
    target: ActionSpace,
) -> np.ndarray:
    """The actions of an episode [T, A] in another action space of its body: float32 [T, A'].

    Args:
      actions, source: raw, and how they are meant.
      proprio: the episode's raw readings, group -> [T, P]; a delta needs the pose it starts from.
      body: see `references`.
      target: what they are to become.

    Raises UserError as `convert` does, for a delta from the start of a chunk (an episode has none)
    and where commanded actions would have to become reached ones.
    """
    if source == target:
        return np.asarray(actions, np.float32)
    where = f"{source.name} → {target.name}"
    for space in (source, target):
        for group in space.groups:
            if group.representation == "delta" and group.reference == "chunk_start":
                raise UserError(
                    f"{where}: {space.name} counts {group.name} from a chunk's start; an episode "
                    "has none: convert chunks, with actions.convert"
                )
    labels = {group.name: group.label for group in source.groups}
    for group in target.groups:
        if labels.get(group.name, group.label) != group.label:
            raise UserError(
                f"{where}: {group.name} was {labels[group.name]}, expected {group.label}; what was "
                "reached is a standardizer row's business ('… | to_next')"
            )
    found = [references(space, body, proprio) for space in (source, target)]
    try:
        return convert(actions, source, target, *found).astype(np.float32)
    except UserError as error:
        poses = [group.name for group in body.proprio if group.pose]
        raise UserError(
            f"{where}: {error} (recorded proprio: {sorted(proprio)}; poses of {body.name}: {poses})"
        ) from error


def gripper(values: np.ndarray, source: str, target: str) -> np.ndarray:
    """Gripper values from one convention to another, e.g. "1=open,0=closed" → "1=closed,-1=open".

    Linear between the two named points. Raises UserError on a convention that does not name both.
    """
    from_open, from_closed = _convention(source)
    to_open, to_closed = _convention(target)
    share = (np.asarray(values, np.float64) - from_closed) / (from_open - from_closed)
    return to_closed + share * (to_open - to_closed)


def _kind(group: ActionGroup) -> tuple[bool, str]:
    """(velocity?, frame of the absolute values): what `convert` cannot change."""
    in_tool = group.representation == "delta" and group.frame == "tool"
    return group.representation == "velocity", "base" if in_tool else group.frame


def _convention(text: str | None) -> tuple[float, float]:
    points = {word: float(number) for number, word in re.findall(r"(-?[\d.]+)=(\w+)", text or "")}
    if set(points) != {"open", "closed"} or points["open"] == points["closed"]:
        raise UserError(f"gripper convention {text!r}, expected two points as in '1=open,0=closed'")
    return points["open"], points["closed"]


def _reference(references: Mapping[str, Reference], group: ActionGroup) -> Reference:
    return references.get(group.name, Reference())


def _absolute(values: np.ndarray, group: ActionGroup, reference: Reference) -> np.ndarray:
    if group.quantity != "rotation":
        if group.representation != "delta":
            return values
        return _sum(_to_base(values, group, reference), group, reference)
    if _adds(group):
        return rotations.to_matrix(_sum(values, group, reference), group.rotation)
    turns = rotations.to_matrix(values, group.rotation)  # [C, 3, 3]
    if group.representation != "delta":
        return turns
    if group.reference == "previous_command":
        now = rotations.to_matrix(_given(reference.command, "command", group), group.rotation)
        commands = []
        for turn in turns:
            now = _compose(turn, now, group)
            commands.append(now)
        return np.stack(commands)
    base = rotations.to_matrix(_base(group, reference, len(values)), group.rotation)
    return _compose(turns, base, group)


def _relative(values: np.ndarray, group: ActionGroup, reference: Reference) -> np.ndarray:
    if group.quantity != "rotation":
        if group.representation != "delta":
            return values
        return _from_base(_differences(values, group, reference), group, reference)
    if group.representation != "delta":
        return rotations.from_matrix(values, group.rotation)
    if _adds(group):
        return _differences(rotations.from_matrix(values, group.rotation), group, reference)
    if group.reference == "previous_command":
        start = rotations.to_matrix(_given(reference.command, "command", group), group.rotation)
        base = np.concatenate([start[None], values[:-1]])
    else:
        base = rotations.to_matrix(_base(group, reference, len(values)), group.rotation)
    back = np.swapaxes(base, -1, -2)
    turns = values @ back if group.composition == "left" else back @ values
    return rotations.from_matrix(turns, group.rotation)


def _sum(steps: np.ndarray, group: ActionGroup, reference: Reference) -> np.ndarray:
    """[C, n]: steps added to what they are measured from, number by number."""
    if group.reference == "previous_command":
        return _given(reference.command, "command", group) + np.cumsum(steps, 0)
    return _base(group, reference, len(steps)) + steps


def _differences(values: np.ndarray, group: ActionGroup, reference: Reference) -> np.ndarray:
    """[C, n]: the steps whose `_sum` is `values`; Euler angles the short way round."""
    if group.reference == "previous_command":
        start = _given(reference.command, "command", group)
        steps = np.diff(values, axis=0, prepend=start[None])
    else:
        steps = values - _base(group, reference, len(values))
    if group.rotation in rotations.EULER:
        steps = (steps + np.pi) % (2 * np.pi) - np.pi
    return steps


def _adds(group: ActionGroup) -> bool:
    """Whether a rotation delta is added to the numbers of the rotation it starts from."""
    if group.composition != "add" or group.representation != "delta":
        return False
    if rotations.SIZES[group.rotation] != 3:
        raise UserError(
            f"action group {group.name}: composition='add' of {group.rotation}; only Euler angles "
            "and rotation vectors add"
        )
    return True


def _compose(turn: np.ndarray, base: np.ndarray, group: ActionGroup) -> np.ndarray:
    if group.composition not in ("left", "right"):
        raise UserError(
            f"action group {group.name}: composition={group.composition!r}, expected left, right "
            "or add"
        )
    return turn @ base if group.composition == "left" else base @ turn


def _base(group: ActionGroup, reference: Reference, length: int) -> np.ndarray:
    """[C, n] or [1, n]: the readings that measured deltas are added to."""
    if group.reference not in REFERENCES:
        raise UserError(
            unknown(f"action group {group.name}: reference", str(group.reference), REFERENCES)
        )
    measured = np.atleast_2d(_given(reference.measured, "measured", group))
    if group.reference == "chunk_start":
        return measured[:1]
    if len(measured) != length:
        raise UserError(
            f"action group {group.name}: {len(measured)} readings for {length} actions; a delta "
            "from measured_now needs the reading at each step"
        )
    return measured


def _given(value: np.ndarray | None, what: str, group: ActionGroup) -> np.ndarray:
    if value is None:
        raise UserError(
            f"action group {group.name}: a delta from {group.reference} needs Reference({what}=…)"
        )
    return np.asarray(value, np.float64)


def _to_base(steps: np.ndarray, group: ActionGroup, reference: Reference) -> np.ndarray:
    if not _in_tool(group):
        return steps
    return np.einsum("cij,cj->ci", _orientation(group, reference, len(steps)), steps)


def _from_base(steps: np.ndarray, group: ActionGroup, reference: Reference) -> np.ndarray:
    if not _in_tool(group):
        return steps
    return np.einsum("cji,cj->ci", _orientation(group, reference, len(steps)), steps)


def _in_tool(group: ActionGroup) -> bool:
    if group.frame not in ("base", "tool"):
        raise UserError(
            f"action group {group.name}: a delta in the frame {group.frame!r}; only those in base "
            "and tool can be converted"
        )
    return group.frame == "tool"


def _orientation(group: ActionGroup, reference: Reference, length: int) -> np.ndarray:
    matrix = _given(reference.orientation, "orientation", group).reshape(-1, 3, 3)
    return np.broadcast_to(matrix, (length, 3, 3))
