"""What lies in a folder, for `vla data inspect`."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vla_jax import plugin
from vla_jax.data import captioned, recordings, standardized

SAMPLES = 5
SPEAKS = ("language", "instruction", "task")  # text fields that hold what was asked
TILE, GAP, LINE = 128, 4, 18  # pixels of a contact sheet: a picture's longer side, gaps, text
PAPER, INK, MUTED = (250, 249, 246), (34, 37, 43), (106, 111, 121)


def summarize(
    path: str | os.PathLike, limit: int | None = None, standardizer: str | None = None
) -> dict:
    """The data set at `path` as JSON: kind, splits, cameras, fields, ranges, instructions.

    Reads the numbers of every episode, of the first `limit` of each split where it is given, and
    one picture of each camera; with a `standardizer` ("oxe:bridge") as that has them. A corrupt
    record raises UserError. Of pictures with words see captioned.py.
    """
    if _with_words(path, standardizer):
        return captioned.summarize(path)
    first = standardized.opened(path, None, standardizer)
    return {
        "path": str(path),
        "kind": first.kind,
        "name": first.name,
        **{k: getattr(first, k) for k in ("version", "file_format") if hasattr(first, k)},
        "splits": {
            split: of_split(standardized.opened(path, split, standardizer), limit)
            if count
            else _empty()
            for split, count in first.splits.items()
        },
        "fields": {
            name: {"kind": f["kind"], "shape": list(f["shape"]), "dtype": str(f["dtype"])}
            for name, f in sorted(first.fields.items())
        },
    }


def describe(path: str | os.PathLike) -> str:
    """What lies at `path`, as text."""
    return text(summarize(path))


def text(found: dict) -> str:
    """What `summarize` found, as text."""
    if "splits" not in found:
        return captioned.text(found)
    version = f" {found['version']}" if "version" in found else ""
    lines = [f"{found['path']}: {found['kind']} episodes of {found['name']}{version}"]
    for name, split in found["splits"].items():
        low, high = split["shortest"], split["longest"]
        read = "" if split["read"] == split["episodes"] else f" (of the first {split['read']})"
        lines.append(
            f"split {name}: {split['episodes']} episodes, {split['steps']} steps ({low} to {high} "
            f"each){read}, {split['instructions']} instructions"
        )
        for camera, entry in split["cameras"].items():
            black = " (black)" if entry["black"] else ""
            lines.append(f"  camera {camera}: {entry['format']} {entry['shape']}{black}")
        for instruction in split["language_samples"]:
            lines.append(f"  says: {instruction!r}")
        for column, entry in split["ranges"].items():
            spread = ", ".join(
                f"{_short(a)}..{_short(b)}" for a, b in zip(entry["min"], entry["max"])
            )
            bad = f" ({entry['not_finite']} not finite)" if entry["not_finite"] else ""
            lines.append(f"  {column} [{len(entry['min'])}]: {spread}{bad}")
    lines.append("fields:")
    for name, entry in found["fields"].items():
        lines.append(f"  {name}: {entry['kind']} {entry['dtype']} {entry['shape']}")
    return "\n".join(lines)


def sheet(
    path: str | os.PathLike,
    split: str | None = None,
    episodes: int = 6,
    times: int = 8,
    standardizer: str | None = None,
) -> Image.Image:
    """A contact sheet: below each camera's name a row per episode, a column per time.

    Episodes and times are evenly spaced, the first and the last among them. Raises UserError for
    data without pictures or episodes. Of pictures with words: rows of so many, evenly spaced.
    """
    if _with_words(path, standardizer):
        return _captioned_sheet(path, episodes, times, split)
    source = standardized.opened(path, split, standardizer)
    cameras = recordings.pictures(source)
    chosen = recordings.evenly(len(source), episodes)
    if not cameras or not chosen:
        raise plugin.UserError(
            f"{path}: {len(source)} episodes, cameras {cameras}; a contact sheet needs both"
        )
    spoken = spoken_fields(source)
    rows = {camera: [] for camera in cameras}
    for number in chosen:
        words = source.episode(number, spoken, [0]) if spoken else {}
        length, there = recordings.length(source, number), recordings.pictured(source, number)
        said = next((str(words[n][0]) for n in spoken if str(words[n][0]).strip()), "")
        steps = [int(there[i]) for i in recordings.evenly(len(there), times)]
        title = f"{recordings.title(source, number)} · {length} steps" + (
            f" · “{said.strip()}”" if said else ""
        )
        shown = source.episode(number, cameras, steps)
        for camera in cameras:
            rows[camera].append((title, steps, [_tile(frame) for frame in shown[camera]]))
    return _paint(f"{source.name} · {source.kind}", rows)


def _with_words(path, standardizer: str | None) -> bool:
    """Whether there are pictures with words and no episodes at `path`."""
    found = captioned.kind_at(path)
    if found and standardizer is not None:
        raise plugin.UserError(
            f"{path}: pictures with words ({found}), which no standardizer reads; leave "
            "--standardizer out"
        )
    return found is not None


def _captioned_sheet(path, rows: int, columns: int, split: str | None) -> Image.Image:
    found = captioned.pictures(path, rows * columns, split)
    lines = [found[i : i + columns] for i in range(0, len(found), columns)]
    return _paint(
        str(path),
        {
            "pictures": [
                (
                    " · ".join(said for said, _ in line),
                    [""] * len(line),
                    [_tile(p) for _, p in line],
                )
                for line in lines
            ]
        },
    )


def of_split(source: recordings.Raw, limit: int | None = None) -> dict:
    """Counts, cameras, instructions and ranges of the (first `limit`) episodes of a split."""
    wanted, spoken = recordings.numbers(source), spoken_fields(source)
    cameras = recordings.pictures(source)
    count = len(source) if limit is None else min(limit, len(source))
    lengths, said, ranges = [], {}, {}
    for number in range(count):
        found = source.episode(number, [*wanted, *spoken], [0]) if wanted or spoken else {}
        some = next(iter(found.values()), None)
        lengths.append(recordings.length(source, number) if some is None else len(some))
        for name in spoken:
            said.update(dict.fromkeys(str(value) for value in np.unique(found[name])))
        for name in wanted:
            _widen(ranges, name, found[name])
    shown = source.episode(0, cameras, [0]) if count and cameras else {}
    return {
        "episodes": len(source),
        "read": count,
        "steps": sum(lengths),
        "shortest": min(lengths, default=0),
        "longest": max(lengths, default=0),
        "cameras": {
            name: {
                "format": source.fields[name]["kind"],
                "shape": list(frames.shape[1:]),
                "black": bool(frames.max() < 10),
            }
            for name, frames in sorted(shown.items())
        },
        "instructions": len(said),
        "language_samples": list(said)[:SAMPLES],
        "ranges": {
            name: {"min": low.tolist(), "max": high.tolist(), "not_finite": int(bad)}
            for name, (low, high, bad) in sorted(ranges.items())
        },
    }


def spoken_fields(source: recordings.Raw) -> list[str]:
    """The text fields that hold what was asked."""
    return [n for n in recordings.texts(source) if any(word in n for word in SPEAKS)]


def _empty() -> dict:
    counts = dict.fromkeys(("episodes", "read", "steps", "shortest", "longest", "instructions"), 0)
    return {**counts, "cameras": {}, "language_samples": [], "ranges": {}}


def _widen(ranges: dict, name: str, values: np.ndarray) -> None:
    """Takes the values [T, …] of one episode into (min [D], max [D], how many are not finite)."""
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    finite = np.isfinite(values)
    low = np.where(finite, values, np.inf).min(axis=0)
    high = np.where(finite, values, -np.inf).max(axis=0)
    if name in ranges:
        low, high = np.minimum(ranges[name][0], low), np.maximum(ranges[name][1], high)
    ranges[name] = (low, high, ranges.get(name, (0, 0, 0))[2] + (~finite).sum())


def _short(value: float) -> str:
    return f"{value:.3g}"


def _tile(frame: np.ndarray) -> Image.Image:
    picture = Image.fromarray(frame if frame.shape[-1] == 3 else frame[..., 0])
    scale = TILE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _paint(title: str, rows: dict[str, list[tuple]]) -> Image.Image:
    """The sheet of {camera: [(title, steps, tiles)]}."""
    columns = max(len(tiles) for lines in rows.values() for _, _, tiles in lines)
    heights = {
        c: max(t.height for _, _, tiles in lines for t in tiles) for c, lines in rows.items()
    }
    width = columns * (TILE + GAP) + GAP
    height = LINE + GAP
    for camera, lines in rows.items():
        height += LINE + 2 * GAP + len(lines) * (LINE + heights[camera] + GAP)
    paper = Image.new("RGB", (max(width, 420), height), PAPER)
    draw = ImageDraw.Draw(paper)
    small, bold = ImageFont.load_default(size=11), ImageFont.load_default(size=14)
    draw.text((GAP, GAP), title, INK, font=bold)
    y = LINE + GAP
    for camera, lines in rows.items():
        draw.text((GAP, y + GAP), camera, INK, font=bold)
        y += LINE + 2 * GAP
        for told, steps, tiles in lines:
            draw.text((GAP, y), told[: width // 6], MUTED, font=small)
            y += LINE
            for column, (step, tile) in enumerate(zip(steps, tiles)):
                x = GAP + column * (TILE + GAP)
                paper.paste(tile, (x, y))
                draw.text(
                    (x + 3, y + 2),
                    str(step),
                    "white",
                    font=small,
                    stroke_width=1,
                    stroke_fill="black",
                )
            y += heights[camera] + GAP
    return paper
