"""What is wrong with robot data before they are trained on, each with its numbers and a remedy.

`ls data/checks` is the list of what is looked at: each file has `check(case)`, which gives findings
and the raw numbers that they were judged by. Nothing is repaired and nothing is skipped silently:
what could not be judged stands among the numbers with its reason.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_jax import plugin
from vla_jax.codecs import normalizer as normalizer_lib
from vla_jax.data import episodes as episodes_lib
from vla_jax.data import filters, images, recordings, robot, selection

FOLDER = "data.checks"
SEVERITIES = ("error", "warning", "note")
STILL = 1e-3  # an action below this share of its dim's usual size is zero


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
      severity: "error" (training on these data cannot work as it is), "warning" (look at it), or
        "note" (good to know).
      message: what was seen where, with its numbers.
      remedy: what to do, in one sentence.
      check: the file of data/checks/; `examine` fills it in.
    """

    severity: str
    message: str
    remedy: str
    check: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One data set as a run would read it.

    Attributes:
      raw: as it was recorded.
      source: its samples; `context` knows window, chunk and image sizes, `episodes` are the table.
      normalizer: has the source's dataset key.
      own: statistics of these data themselves, in the modes of `normalizer`.
      given: whether `normalizer` is from elsewhere (a checkpoint), not from these data.
      cameras: view -> the raw field that it shows.
      language: "required" or "optional", as the run asks for it.
      others: split -> (table, reader) of the data set's other splits.
    """

    raw: recordings.Raw
    source: robot.RobotRows
    normalizer: normalizer_lib.Normalizer
    own: normalizer_lib.Normalizer
    given: bool = False
    cameras: Mapping[str, str] = dataclasses.field(default_factory=dict)
    language: str = "required"
    others: Mapping[str, tuple] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def chosen(self) -> np.ndarray:
        """The episodes of the split that the run's filters leave, and that have steps: int64."""
        source = self.source
        some = np.flatnonzero(source.episodes.lengths > 0)
        return filters.keep(source.where, source.episodes, some, source.reading.filter)

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """The rows of the source's table that `table` consists of: int64."""
        return selection.rows(self.source.episodes, self.chosen)

    @functools.cached_property
    def table(self) -> episodes_lib.Episodes:
        """The `chosen` episodes of the split, training and held-out."""
        whole, chosen, rows = self.source.episodes, self.chosen, self.rows
        if len(chosen) == len(whole):
            return whole
        return dataclasses.replace(
            whole,
            ids=tuple(whole.ids[e] for e in chosen.tolist()),
            start=np.concatenate([[0], np.cumsum(whole.lengths[chosen])]),
            step=whole.step[rows],
            action=whole.action[rows],
            proprio={name: values[rows] for name, values in whole.proprio.items()},
            language_index=whole.language_index[rows],
            frames={
                view: episodes_lib.Frames(offset=f.offset[rows], length=f.length[rows])
                for view, f in whole.frames.items()
            },
        )

    @property
    def key(self) -> str:
        """The dataset key."""
        return self.source.dataset_key

    @property
    def groups(self) -> list[tuple[Any, slice]]:
        """(group, its slice of the action vector)."""
        space = self.source.action_space
        return list(zip(space.groups, space.slices().values()))

    @property
    def dims(self) -> list[str]:
        """A name for each number of the action vector: xyz.0, xyz.1, …"""
        return [
            group.name if group.size == 1 else f"{group.name}.{i}"
            for group, _ in self.groups
            for i in range(group.size)
        ]

    @functools.cached_property
    def moving(self) -> np.ndarray:
        """Dims of deltas and velocities, whose zero means to stay: bool [A]."""
        kinds = ("gripper", "terminate")
        return np.concatenate(
            [
                np.full(g.size, g.representation != "absolute" and g.quantity not in kinds)
                for g, _ in self.groups
            ]
        )

    @functools.cached_property
    def still(self) -> np.ndarray:
        """Steps at which every moving dim is zero: bool [N], all False without such dims."""
        action = np.abs(self.table.action[:, self.moving])
        usual = np.quantile(action, 0.99, axis=0) if action.size else np.zeros(0)
        if not np.any(usual > 0):
            return np.zeros(len(self.table.action), bool)
        return np.all(action <= STILL * usual[None], axis=1)

    @property
    def readings(self) -> list:
        """The body's proprio groups that these data have."""
        return [g for g in self.source.embodiment.proprio if g.name in self.table.proprio]

    @functools.cached_property
    def inner(self) -> np.ndarray:
        """The rows that are not the last of their episode: int64."""
        inner = np.ones(len(self.table.step), bool)
        inner[self.table.start[1:] - 1] = False
        return np.flatnonzero(inner)

    @functools.cached_property
    def stride(self) -> int:
        """How many recorded steps lie between two that are kept, mostly."""
        steps = np.diff(self.table.step)[self.inner]
        return int(np.median(steps)) if len(steps) else 1

    @functools.cached_property
    def follows(self) -> np.ndarray:
        """The rows whose next row is one stride on in the same episode: int64."""
        return self.inner[np.diff(self.table.step)[self.inner] == self.stride]

    def read(self, view: str, episode: int, rows) -> list[bytes | np.ndarray]:
        """Pictures at rows of `table`: a FrameReader."""
        return self.source.read(
            view, int(self.chosen[episode]), self.rows[np.asarray(rows)].tolist()
        )

    def picture(self, view: str, episode: int, row: int) -> np.ndarray | None:
        """uint8 [height, width, 3] unresized, None where there is none; UserError if broken."""
        (data,) = self.read(view, episode, [row])
        if not len(data):
            return None
        return images.decode(data) if isinstance(data, bytes) else data

    @property
    def skips(self) -> bool:
        """Whether the run leaves out what is broken: then it is left out, and counted, here."""
        return self.source.reading.bad_samples == "skip"

    def recorded(
        self, count: int, fields: Sequence[str], steps: Sequence[int] | None = None
    ) -> tuple[list[dict], list[str]]:
        """(`fields` of evenly spaced episodes of `raw`, what is wrong with those left out).

        Raises UserError for a broken one, unless the run `skips` them.
        """
        found, broken = [], []
        for episode in recordings.evenly(len(self.raw), count):
            try:
                found.append(self.raw.episode(episode, list(fields), steps))
            except plugin.UserError as error:
                if not self.skips:
                    raise
                broken.append(str(error))
        return found, broken


def examine(case: Case) -> dict:
    """{"findings": [{check, severity, message, remedy}], "numbers": {check: …}}, worst first.

    Raises UserError for data that cannot be read at all.
    """
    findings, numbers = [], {}
    for name in plugin.names(FOLDER):
        found, numbers[name] = plugin.module(FOLDER, name).check(case)
        findings += [dataclasses.replace(finding, check=name) for finding in found]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return {
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "numbers": plain(numbers),
    }


def left_out(broken: Sequence[str], count: int, what: str = "") -> list[Finding]:
    """A finding that so many of `count` episodes are broken; none if none is."""
    if not broken:
        return []
    return [
        Finding(
            severity="error" if len(broken) == count else "warning",
            message=f"{what}{len(broken)} of {count} episodes looked at cannot be read and are "
            f"left out here as in the run, the first: {broken[0]}",
            remedy="Copy these files again, or repair or remove these episodes.",
        )
    ]


def counts(findings: list[Mapping]) -> dict[str, int]:
    """{"errors", "warnings", "notes"} of what `examine` found."""
    return {f"{s}s": sum(f["severity"] == s for f in findings) for s in SEVERITIES}


def text(found: Mapping) -> str:
    """What `examine` found, a paragraph each."""
    parts = []
    for finding in found["findings"]:
        parts.append(f"{finding['severity']} · {finding['check']}: {finding['message']}")
        parts.append(f"    {finding['remedy']}")
    total = ", ".join(f"{n} {kind}" for kind, n in counts(found["findings"]).items())
    return "\n".join([*parts, total])


def percent(share: float) -> str:
    """A share as people read it: 0.034 is "3.4%"."""
    return f"{100 * share:.3g}%"


def plain(value: Any) -> Any:
    """`value` as JSON can say it: arrays as lists, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
