"""What conversions share: the job, the source as a worker opens it, its pictures one by one."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping

import numpy as np

from vla_jax import plugin, storage
from vla_jax.data import images, passing, recordings, standardized

HELD = 2**28  # bytes of decoded pictures in memory at a time, about
STEPS = "steps/"
EPISODE_ID = recordings.ID


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What is converted, and to what; see convert.convert."""

    path: str
    to: str
    name: str
    standardizer: str | None = None
    without: tuple[str, ...] = ()
    resize: tuple[int, int] | None = None
    method: str = "area"
    pictures: str | None = None
    task: str | None = None
    control_hz: float | None = None
    bad_episodes: str = "error"


@dataclasses.dataclass(frozen=True)
class Part:
    """The episodes [first, last) of a split: what one worker writes at a time."""

    number: int
    split: str
    first: int
    last: int


@functools.lru_cache(maxsize=8)
def source(job: Job, split: str | None) -> recordings.Raw:
    """The episodes of a split as recorded, or as the job's standardizer has them.

    UserError where a fault that may pass has left some out: what is written would lack them.
    """
    found = standardized.opened(job.path, split, job.standardizer, job.bad_episodes)
    for text in getattr(found, "skipped", ()):
        if isinstance(text, passing.Passing):
            raise plugin.UserError(f"{text}; this may pass: give the same command again")
    return found


def is_left_out(job: Job, error: plugin.UserError) -> bool:
    """Whether an episode that could not be read is skipped; one whose fault may pass never is."""
    return job.bad_episodes != "error" and not passing.passes(error)


def chosen(job: Job, raw: recordings.Raw) -> dict[str, Mapping]:
    """The fields that are written; UserError for a `without` that the source does not have."""
    for name in job.without:
        if name not in raw.fields:
            raise plugin.UserError(plugin.unknown(f"{job.path}: --without", name, raw.fields))
    return {name: field for name, field in raw.fields.items() if name not in job.without}


def pictured(field: Mapping) -> bool:
    """Whether a field holds pictures."""
    return field["kind"] in ("image", "video")


def of_steps(raw: recordings.Raw, name: str) -> bool:
    """Whether a field has a value at each step."""
    return name in recordings.step_fields(raw)


def first(job: Job, raw: recordings.Raw, names: list[str]) -> tuple[int, dict]:
    """(number, columns `names`) of the first episode that can be read; UserError without one."""
    for index in range(len(raw)):
        try:
            found = raw.episode(index, names, [0])
            for name in names:
                held(f"{job.path}: episode {raw.ids()[index]}", found, name)
            return index, found
        except plugin.UserError as error:
            if not is_left_out(job, error):
                raise
    raise plugin.UserError(f"{job.path}: {len(raw)} episodes, none that can be read")


def held(where: str, found: Mapping, name: str):
    """A field's value in what was read of an episode; UserError where it has none."""
    if name not in found:
        raise plugin.UserError(
            f"{where}: lacks {name}; leave it out by --without {name}, or this episode "
            "(--bad-episodes skip)"
        )
    return found[name]


def refuse(job: Job, name: str, what: str) -> plugin.UserError:
    """A field that the format has no place for."""
    return plugin.UserError(f"{job.path}: {name}: {what}; leave it out by --without {name}")


def films(job: Job, raw: recordings.Raw, index: int, name: str, length: int) -> Iterator:
    """The `length` pictures of an episode, decoded and resized; few are in memory at a time."""
    shape = raw.fields[name]["shape"]
    sides = [side for side in shape if side > 0]
    size = int(np.prod(sides)) if len(sides) == 3 else 3 * 2**20
    at_once = max(1, HELD // size)
    where = f"{job.path}: episode {raw.ids()[index]}"
    for begin in range(0, length, at_once):
        steps = range(begin, min(begin + at_once, length))
        for image in held(where, raw.episode(index, [name], steps), name):
            yield image if job.resize is None else images.resize(image, job.resize, job.method)


def link(made: pathlib.Path, target: pathlib.Path) -> None:
    """The file under another name; what was made stays, so that a rerun finds it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(made, target)
    except OSError:  # a file system without hard links
        shutil.copy2(made, target)


def settle(temporary: pathlib.Path, target: pathlib.Path) -> None:
    """Gives a written file its name once its bytes are on the disk."""
    storage.flush(temporary)
    temporary.rename(target)
