"""Scores each new checkpoint of a run as it appears, reading only: from another machine, too.

    RUN/checkpoints/STEP ──copy──▶ OUT/.reading/STEP ──score──▶ OUT/STEP, a line of scores.jsonl

Retention may delete a checkpoint at any time; it is copied first (without the optimizer), and one
that goes meanwhile is listed as missed. What has a line is not scored again.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from vla_jax import plugin
from vla_jax.train import meta as metas

SCORES, SETTINGS, READING = "scores.jsonl", "follow.json", ".reading"
LEFT_OUT = ("optimizer",)  # items that no score needs
POLL = 30.0  # seconds

# (folder of a checkpoint, folder for what else is written) -> {name: value}
Score = Callable[[pathlib.Path, pathlib.Path], Mapping[str, Any]]


def follow(
    run: str,
    out: str,
    score: Score,
    *,
    settings: Mapping[str, Any],
    until: int | None = None,
    poll: float = POLL,
    say: Callable[[str], None] = print,
) -> dict[str, list[int]]:
    """{"scored": train_steps, "missed": …} in `out`, when the run's last checkpoint has its line.

    The last is that of `config.steps`, or the first from `until` on. `settings` say what is scored;
    `say` takes each new line. UserError for an `out` with scores by other settings, or within the
    run's folder; and what `score` raises of a checkpoint that is still there.
    """
    source, place = epath.Path(run), pathlib.Path(out)
    _check_place(source, place)
    lines = _begin(place, settings)
    waits = False
    while True:
        found = [step for step in _steps(source) if step not in lines]
        for step in found:
            line = {"step": step, **_scored(source, step, place, score)}
            text = json.dumps(line)
            with open(place / SCORES, "a") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            say(text)
            lines[step] = line
            if _over(lines, until):
                break
        if _over(lines, until):
            break
        if not found:
            if not waits:
                print(f"vla eval: waiting for checkpoints of {run}", file=sys.stderr, flush=True)
            waits = True
            time.sleep(poll)
    return {
        "scored": sorted(step for step, line in lines.items() if "missed" not in line),
        "missed": sorted(step for step, line in lines.items() if "missed" in line),
    }


def _check_place(source: epath.Path, place: pathlib.Path) -> None:
    inside = pathlib.Path(os.path.abspath(place)).is_relative_to(os.path.abspath(source))
    if "://" not in str(source) and inside:
        raise plugin.UserError(
            f"--out: got {place}, which lies in the run's folder {source}; a follower only reads "
            "there, expected a folder elsewhere"
        )


def _begin(place: pathlib.Path, settings: Mapping[str, Any]) -> dict[int, dict]:
    """{train_step: line} of earlier times; the folder is ready to be written after this."""
    settings = json.loads(json.dumps(settings))  # tuples are lists, as in the file
    about, file = place / SETTINGS, place / SCORES
    if about.exists():
        before = json.loads(about.read_text())
        if before != settings:
            names = {*before, *settings}
            differ = sorted(n for n in names if before.get(n) != settings.get(n))
            raise plugin.UserError(
                f"--out: the scores in {place} were made with other settings of "
                f"{', '.join(differ)}; give the same, or another folder"
            )
    try:
        place.mkdir(parents=True, exist_ok=True)
        about.with_suffix(".new").write_text(json.dumps(settings, indent=1) + "\n")
        os.replace(about.with_suffix(".new"), about)
    except OSError as error:
        raise plugin.UserError(f"--out: {place} cannot be written: {error}") from error
    shutil.rmtree(place / READING, ignore_errors=True)  # of a follower that was interrupted
    if not file.exists():
        return {}
    whole, _, torn = file.read_text().rpartition("\n")
    if torn:  # it was interrupted while it wrote
        file.write_text(whole + "\n" if whole else "")
    found = [json.loads(line) for line in whole.splitlines()]
    return {line["step"]: line for line in found}


def _steps(source: epath.Path) -> list[int]:
    folder = source / metas.RESUME
    try:
        return metas.steps(folder) if folder.is_dir() else []
    except FileNotFoundError:  # one was deleted while they were listed
        return []


def _over(lines: Mapping[int, Mapping], until: int | None) -> bool:
    if not lines:
        return False
    last = max(lines)
    steps = [line["of"] for line in lines.values() if "of" in line]
    return last >= until if until is not None else bool(steps) and last >= max(steps)


def _scored(source: epath.Path, step: int, place: pathlib.Path, score: Score) -> dict[str, Any]:
    """The line of one train_step, without its number."""
    folder, copy = source / metas.RESUME / str(step), place / READING / str(step)
    about = {"checkpoint": str(folder)}
    try:
        whole = _listed(folder)
        for name in whole:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((folder / name).read_bytes())
        if _listed(folder) != whole:
            raise FileNotFoundError(str(folder))
        about["of"] = metas.read_json(copy)["config"]["steps"]
        begin = time.monotonic()
        found = dict(score(copy, place / str(step)))
        return {**about, **found, "seconds": round(time.monotonic() - begin, 1)}
    except (OSError, plugin.UserError) as error:
        if metas.is_complete(folder):
            raise
        print(f"vla eval: {folder} was deleted while it was read", file=sys.stderr, flush=True)
        return {**about, "missed": f"deleted while it was read: {error}"[:300]}
    finally:
        shutil.rmtree(place / READING, ignore_errors=True)


def _listed(folder: epath.Path, within: str = "") -> list[str]:
    """The files of a checkpoint that a score needs, relative to its folder."""
    found = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        name = f"{within}{path.name}"
        if path.is_dir():
            found += [] if name in LEFT_OUT else _listed(path, f"{name}/")
        else:
            found.append(name)
    return found
