"""Pictures: black, frozen, broken, the same in two views, of another size; flags that lie."""

from __future__ import annotations

import re

import numpy as np

from vla_jax import plugin
from vla_jax.data import doctor, recordings

EPISODES, TIMES = 12, 5  # looked at of each view, evenly spaced
BLACK = 16  # no pixel of a black picture is brighter
FROZEN = 0.6  # mean grey levels between two times, below which nothing changed
ASPECT, ENLARGED = 1.05, 1.5  # ratios of recorded and asked sizes


def check(case: doctor.Case):
    """(findings, numbers) of the views that the run reads."""
    findings, numbers = [], {}
    asked = case.source.context.image_sizes
    views = [view for view in (asked or case.table.frames) if view in case.table.frames]
    seen: dict[str, list[list[np.ndarray]]] = {}
    for view in views:
        try:
            seen[view], broken = _sampled(case, view)
        except plugin.UserError as error:
            numbers[view] = {"broken": str(error)}
            findings.append(
                doctor.Finding(
                    severity="error",
                    message=f"view {view}: {error}",
                    remedy="Copy the file again, or leave this episode out.",
                )
            )
            continue
        found, numbers[view] = _view(case, view, seen[view])
        findings += doctor.left_out(broken, len(seen[view]), f"view {view}: ") + found
    for i, first in enumerate(seen):
        for second in list(seen)[i + 1 :]:
            findings += _same(first, second, seen)
    flags, numbers["flags"] = _flags(case)
    return findings + flags, numbers


def _sampled(case: doctor.Case, view: str) -> tuple[list[list[np.ndarray]], list[str]]:
    """(pictures at some times of some episodes, what is wrong with those left empty)."""
    table, episodes, broken = case.table, [], []
    for episode in recordings.evenly(len(table), EPISODES):
        first, last = (int(i) for i in table.start[episode : episode + 2])
        rows = first + np.flatnonzero(table.frames[view].length[first:last] > 0)
        chosen = [int(rows[i]) for i in recordings.evenly(len(rows), TIMES)]
        try:
            pictures = [case.picture(view, episode, row) for row in chosen]
        except plugin.UserError as error:
            if not case.skips:
                raise
            pictures = []
            broken.append(f"episode {table.ids[episode]}: {error}")
        episodes.append([picture for picture in pictures if picture is not None])
    return episodes, broken


def _view(case: doctor.Case, view: str, episodes: list[list[np.ndarray]]):
    pictures = [picture for episode in episodes for picture in episode]
    black = float(np.mean([p.max() < BLACK for p in pictures])) if pictures else 0.0
    judged = [_still(e) for e in episodes if len(e) > 1 and any(p.max() >= BLACK for p in e)]
    frozen = float(np.mean(judged)) if judged else 0.0
    sizes = sorted({picture.shape[:2] for picture in pictures})
    field = case.cameras.get(view, view)
    numbers = {"field": field, "pictures": len(pictures), "black": black, "frozen": frozen,
               "sizes": [list(size) for size in sizes]}  # fmt: skip
    findings = []
    if black > 0:
        findings.append(
            doctor.Finding(
                severity="error" if black == 1 else "warning",
                message=f"view {view} ({field}): {doctor.percent(black)} of {len(pictures)} "
                "pictures looked at are black",
                remedy="Take another camera for this view, or filter these episodes out.",
            )
        )
    if frozen > 0:
        findings.append(
            doctor.Finding(
                severity="error" if frozen == 1 else "warning",
                message=f"view {view} ({field}): the picture never changes in "
                f"{doctor.percent(frozen)} of {len(judged)} episodes looked at",
                remedy="Filter these episodes out, or take another camera for this view.",
            )
        )
    return findings + _size(case, view, sizes), numbers


def _still(pictures: list[np.ndarray]) -> bool:
    """Whether the first picture is all there is (but for compression)."""
    first = pictures[0].astype(np.int16)
    return all(p.shape == first.shape and np.abs(p - first).mean() < FROZEN for p in pictures[1:])


def _size(case: doctor.Case, view: str, sizes: list[tuple[int, int]]):
    asked = case.source.context.image_sizes.get(view)
    findings = []
    for height, width in sizes if asked else ():
        told = (
            f"view {view}: pictures of {height} x {width}, the run asks for {asked[0]} x {asked[1]}"
        )
        stretch = (width / height) / (asked[1] / asked[0])
        if max(stretch, 1 / stretch) > ASPECT:
            findings.append(
                doctor.Finding(
                    severity="warning",
                    message=f"{told}: they are squeezed by {max(stretch, 1 / stretch):.2f}",
                    remedy="Set image_sizes to the recorded aspect ratio; serve the same way.",
                )
            )
        grow = min(asked[0] / height, asked[1] / width)
        if grow >= ENLARGED:
            findings.append(
                doctor.Finding(
                    severity="warning",
                    message=f"{told}: they are enlarged {grow:.2f} times",
                    remedy="Set image_sizes to the recorded size, or use data of more pixels.",
                )
            )
    return findings


def _same(first: str, second: str, seen) -> list[doctor.Finding]:
    pairs = [
        (a, b) for one, two in zip(seen[first], seen[second]) for a, b in zip(one, two)
        if a.shape == b.shape and max(a.max(), b.max()) >= BLACK
    ]  # fmt: skip
    if not pairs or not all(np.abs(a.astype(np.int16) - b).mean() < FROZEN for a, b in pairs):
        return []
    return [
        doctor.Finding(
            severity="warning",
            message=f"views {first} and {second} show the same picture at all {len(pairs)} times",
            remedy="Give the views different columns in the standardizer.",
        )
    ]


def _flags(case: doctor.Case):
    """Columns `has_CAMERA` that say something else than the pictures do."""
    cameras = {
        name.rpartition("/")[2].rpartition(".")[2]: name for name in recordings.pictures(case.raw)
    }
    flags = {}
    for field in case.raw.fields:
        match = re.search(r"(?:^|[/.])has_(\w+)$", field)
        if match and match[1] in cameras:
            flags[field] = cameras[match[1]]
    wrong, fields = {}, [*flags, *flags.values()]
    read, broken = case.recorded(EPISODES, fields, [0]) if flags else ([], [])
    findings = doctor.left_out(broken, len(read) + len(broken), "flags: ")
    for told in read:
        for field, camera in flags.items():
            says = bool(np.asarray(told[field]).reshape(-1)[0])
            shows = bool(told[camera][0].max() >= BLACK)
            wrong.setdefault(field, []).append((says, shows))
    lies = {f: float(np.mean([a != b for a, b in pairs])) for f, pairs in wrong.items()}
    bad = sorted(field for field, share in lies.items() if share > 0)
    if not bad:
        return findings, lies
    return [
        *findings,
        doctor.Finding(
            severity="warning",
            message=f"{', '.join(bad)}: in {doctor.percent(max(lies[f] for f in bad))} of the "
            "episodes looked at, what the flag says of its camera is not so",
            remedy="Do not read these flags; a black picture can be told from its pixels.",
        ),
    ], lies
