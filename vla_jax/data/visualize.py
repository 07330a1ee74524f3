"""A page to look at recorded episodes, for `vla data visualize`: films, plots, words, metadata.

One HTML file. The pictures of a camera lie in one WebP per episode, row by row; a slider moves all
cameras of an episode and a cursor through its plots.
"""

from __future__ import annotations

import io
import os
import pathlib

import matplotlib
import matplotlib.figure
import numpy as np
from PIL import Image

from vla_jax import plugin, storage
from vla_jax.data import inspect, pages, recordings, standardized

TEMPLATE = pathlib.Path(__file__).with_suffix(".html.jinja")
COLUMNS = 8  # pictures per row of a film's WebP
DIMS = 32  # of a field that are plotted
FIRST = ("action", "proprio", "state")  # the order of the plotted fields, by what they contain
CLOCKS = ("timestamp", "index", "discount")  # numbers that count and do not measure


def build(
    path: str | os.PathLike,
    out: str | os.PathLike,
    *,
    split: str | None = None,
    standardizer: str | None = None,
    episodes: int = 6,
    frames: int = 48,
    size: int = 240,
) -> dict:
    """Writes the page to `out`; {"out", "episodes": ids, "bytes"}.

    Args:
      path: the data set.
      out: the file, overwritten as a whole.
      split: None: `train`, or the first there is.
      standardizer: "oxe:bridge", to see the data as it has them; None: as they were recorded.
      episodes: how many are shown, evenly spaced.
      frames: at most so many pictures of an episode and camera, evenly spaced in time.
      size: the longer side of a picture, in pixels.

    Raises:
      UserError: no such data, no episodes, a number below 1, or `out` cannot be written.
    """
    for name, value in (("episodes", episodes), ("frames", frames), ("size", size)):
        if value < 1:
            raise plugin.UserError(f"{name}: got {value}, expected at least 1")
    storage.check_parent("--out", out)
    source = standardized.opened(path, split, standardizer)
    if not len(source):
        raise plugin.UserError(f"{path}: no episodes in it, nothing to show")
    about = inspect.of_split(source)
    chosen = recordings.evenly(len(source), episodes)
    plotted = plotted_dims(source, about["ranges"])
    html = pages.render(
        TEMPLATE,
        path=str(path),
        name=source.name,
        kind=source.kind,
        about=about,
        splits=dict(source.splits),
        fields=[
            dict(name=n, kind=f["kind"], dtype=str(f["dtype"]), shape=list(f["shape"]))
            for n, f in sorted(source.fields.items())
        ],
        constant=constants(source, about["ranges"]),
        episodes=[_episode(source, n, plotted, about, frames, size) for n in chosen],
    )
    pages.write(out, html)
    return {
        "out": str(out),
        "episodes": [recordings.title(source, n) for n in chosen],
        "bytes": len(html.encode()),
    }


def plotted_dims(source: recordings.Raw, ranges: dict) -> dict[str, list[int]]:
    """Field -> the dims of it that are plotted: real numbers that change, actions first."""
    found = {}
    for name in recordings.numbers(source):
        if not _measures(source, name):
            continue
        low, high = (np.asarray(ranges[name][key], np.float64) for key in ("min", "max"))
        dims = np.flatnonzero(np.isfinite(low) & (high > low))[:DIMS].tolist()
        if dims:
            found[name] = dims

    def rank(name: str) -> tuple:
        return next((i for i, word in enumerate(FIRST) if word in name), len(FIRST)), name

    return {name: found[name] for name in sorted(found, key=rank)}


def constants(source: recordings.Raw, ranges: dict) -> list[str]:
    """What never changes, as text: "reward = 0", "action[3] = 0"."""
    told = []
    for name, entry in ranges.items():
        pairs = list(zip(entry["min"], entry["max"]))
        if _measures(source, name):
            told += [
                f"{name}{f'[{i}]' if len(pairs) > 1 else ''} = {low:.4g}"
                for i, (low, high) in enumerate(pairs)
                if low == high
            ]
    return told


def film(pictures: np.ndarray, size: int) -> dict:
    """One WebP of the pictures [n, height, width, 3], row by row, and how it is cut up."""
    n, height, width = pictures.shape[:3]
    scale = min(1.0, size / max(height, width))
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    columns = min(COLUMNS, n)
    rows = -(-n // columns)
    sheet = Image.new("RGB", (columns * width, rows * height))
    for i, picture in enumerate(pictures):
        tile = Image.fromarray(picture if picture.shape[-1] == 3 else picture[..., 0])
        tile = tile.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(tile, (i % columns * width, i // columns * height))
    out = io.BytesIO()
    sheet.save(out, "WEBP", quality=74, method=2)
    data = pages.data_url("image/webp", out.getvalue())
    return {"data": data, "columns": columns, "rows": rows, "width": width, "height": height}


def plot(values: np.ndarray, low: float, high: float, salt: str, tone: str) -> str:
    """The line of one number over the steps of an episode, as SVG without margins; y low to high.

    Its left edge is the first step and its right edge the last, so that a cursor can be laid over.
    """
    values = np.asarray(values, np.float64)
    with matplotlib.rc_context(pages.STYLE):
        figure = matplotlib.figure.Figure(figsize=(2.6, 0.62))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        pad = 0.08 * (high - low) or 1.0
        axes.set(xlim=(0, max(1, len(values) - 1)), ylim=(low - pad, high + pad))
        if low < 0 < high:
            axes.axhline(0, color=pages.FAINT, lw=0.8)
        axes.plot(values, color=tone, lw=1.3, solid_joinstyle="round", clip_on=False)
        return pages.svg(figure, salt)


def _measures(source: recordings.Raw, name: str) -> bool:
    """Whether a field measures something (and does not count, flag or say what time it is)."""
    real = str(source.fields[name]["dtype"]).startswith("float")
    return real and not any(word in name for word in CLOCKS)


def _episode(source, number: int, plotted, about, frames: int, size: int) -> dict:
    cameras, spoken = recordings.pictures(source), inspect.spoken_fields(source)
    step_fields = set(recordings.step_fields(source))
    rest = [n for n in source.fields if n not in cameras]
    told = source.episode(number, rest, [0])
    length, there = recordings.length(source, number), recordings.pictured(source, number)
    steps = [int(there[i]) for i in recordings.evenly(len(there), frames)]
    films = []
    for camera in cameras if steps else ():
        # One at a time: a camera's pictures of an episode can be large.
        shown = source.episode(number, [camera], steps)[camera]
        films.append({"camera": camera, **film(shown, size)})
    said = list(dict.fromkeys(str(v).strip() for n in spoken for v in np.unique(told[n])))
    return {
        "id": recordings.title(source, number),
        "number": number,
        "length": length,
        "steps": steps or recordings.evenly(length, frames),
        "said": [text for text in said if text],
        "films": films,
        "plots": _plots(told, plotted, about["ranges"], f"e{number}"),
        "metadata": {
            n.removeprefix("episode_metadata/"): _short(told[n])
            for n in rest
            if n not in step_fields and n in told
        },
    }


def _plots(told, plotted: dict[str, list[int]], ranges: dict, salt: str) -> list[dict]:
    """Field by field, the lines of its dims; the scale is that of the whole split."""
    plots = []
    for field, dims in plotted.items():
        columns = np.asarray(told[field], np.float64).reshape(len(told[field]), -1)
        tone = pages.ACCENT if "action" in field else pages.MUTED
        lines = []
        for dim in dims:
            values, low, high = columns[:, dim], *(ranges[field][k][dim] for k in ("min", "max"))
            drawn = plot(values, low, high, f"{salt}f{len(plots)}d{dim}", tone)
            name = str(dim) if columns.shape[1] > 1 else ""
            lines.append(dict(name=name, low=np.nanmin(values), high=np.nanmax(values), svg=drawn))
        plots.append({"field": field, "lines": lines})
    return plots


def _short(value: np.ndarray) -> str:
    text = (
        str(value.item()) if value.ndim == 0 else np.array2string(value, precision=4, threshold=16)
    )
    return text if len(text) <= 200 else text[:200] + "…"
