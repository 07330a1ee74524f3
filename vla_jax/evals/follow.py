"""Scores each new checkpoint of a run as it appears, reading only: from another machine, too.

    RUN/checkpoints/STEP ──copy──▶ a temporary folder ──score──▶ OUT/STEP, a line of scores.jsonl

Retention may delete a checkpoint at any time; it is copied first (without the optimizer), and one
that goes meanwhile is listed as missed. What has a line is not scored again.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from vla_jax import plugin, storage
from vla_jax.train import meta as metas

SCORES, SETTINGS = "scores.jsonl", "follow.json"
LEFT_OUT = "optimizer/"  # an item that no score needs
POLL = 30.0  # seconds

# (folder of a checkpoint, folder for what else is written) -> {name: value}
Score = Callable[[pathlib.Path, str], Mapping[str, Any]]


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

    The last is that of `config.steps`, or before it the first from `until` on. `settings` say what
    is scored; `say` takes each new line. UserError for no folder `run`, an `out` with scores by
    other settings, or within the run's folder; and what `score` raises.
    """
    source = metas.place(run)
    if not storage.is_dir(source):
        raise plugin.UserError(
            plugin.unknown(f"{run}: no such run", source.name, storage.names(source.parent))
        )
    _check_place(source, out)
    lines = _begin(out, settings)
    waits = False
    while not _over(lines, until):
        found = [step for step in metas.steps(source / metas.RESUME) if step not in lines]
        for step in found:
            lines[step] = {"step": step, **_scored(source, step, out, score)}
            text = "".join(json.dumps(line) + "\n" for line in lines.values())
            storage.write(storage.join(out, SCORES), text)
            say(json.dumps(lines[step]))
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


def _check_place(source: pathlib.PurePath, out: str) -> None:
    place = storage.absolute(out)
    if f"{place}/".startswith(f"{storage.absolute(source)}/"):
        raise plugin.UserError(
            f"--out: got {out}, which lies in the run's folder {source}; a follower only reads "
            "there, expected a folder elsewhere"
        )


def _begin(out: str, settings: Mapping[str, Any]) -> dict[int, dict]:
    """{train_step: line} of earlier times; what is scored stands in the folder after this."""
    settings = json.loads(json.dumps(settings))  # tuples are lists, as in the file
    about, file = storage.join(out, SETTINGS), storage.join(out, SCORES)
    if storage.is_file(about):
        before = json.loads(storage.read(about))
        if before != settings:
            names = {*before, *settings}
            differ = sorted(n for n in names if before.get(n) != settings.get(n))
            raise plugin.UserError(
                f"--out: the scores in {out} were made with other settings of "
                f"{', '.join(differ)}; give the same, or another folder"
            )
    elif not storage.writable(out):
        raise plugin.UserError(f"--out: {out} cannot be written; choose another folder")
    else:
        storage.write(about, json.dumps(settings, indent=1) + "\n")
    if not storage.is_file(file):
        return {}
    found = [json.loads(line) for line in storage.read(file).splitlines()]
    return {line["step"]: line for line in found}


def _over(lines: Mapping[int, Mapping], until: int | None) -> bool:
    if not lines:
        return False
    last = max(lines)
    steps = [line["of"] for line in lines.values() if "of" in line]
    return bool(steps) and last >= max(steps) or until is not None and last >= until


def _scored(source: pathlib.PurePath, step: int, out: str, score: Score) -> dict[str, Any]:
    """The line of one train_step, without its number."""
    folder = source / metas.RESUME / str(step)
    about: dict[str, Any] = {"checkpoint": str(folder)}
    with tempfile.TemporaryDirectory(prefix="vla-follow-") as place:
        copy = pathlib.Path(place) / str(step)
        try:
            whole = _listed(folder)
            for name in whole:
                storage.write(copy / name, storage.read(folder / name))
            if _listed(folder) != whole:
                raise FileNotFoundError(str(folder))
            about["of"] = metas.read_json(copy)["config"]["steps"]
        except (OSError, plugin.UserError) as error:
            if metas.is_complete(folder):
                raise
            print(f"vla eval: {folder} was deleted while it was read", file=sys.stderr, flush=True)
            return {**about, "missed": f"deleted while it was read: {error}"[:300]}
        # Of the copy: what goes wrong now has nothing to do with retention.
        begin = time.monotonic()
        found = dict(score(copy, storage.join(out, str(step))))
        return {**about, **found, "seconds": round(time.monotonic() - begin, 1)}


def _listed(folder: pathlib.PurePath) -> dict[str, int]:
    """{path from there: bytes} of the files of a checkpoint that a score needs."""
    found = storage.sizes(folder)
    return {name: size for name, size in found.items() if not name.startswith(LEFT_OUT)}
