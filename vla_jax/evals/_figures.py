"""The report's figures as inline SVG whose ink follows the page's colours, light or dark.

No plug-in (leading underscore).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.figure
import numpy as np

from vla_jax.data import pages
from vla_jax.data.pages import FAINT, INK, MUTED, STYLE
from vla_jax.evals import goals as goals_lib
from vla_jax.evals import intervals

COLORS = {
    "cofinetuned": "#2a7fb8",
    "scratch": "#e08a2e",
    "blind": "#8c8f96",
    "expert": "#4b9f6b",
    "web_without_B": "#c65353",
    "pretrained_only": "#8266b8",
    "plain": "#b79a2b",
    "plain4": "#94791a",
    "same_artist": "#2f9c95",
}
OTHERS = ("#7a6a58", "#5b7f95", "#a0617e", "#6b8e4e")
CHANCE = 25.0  # percent: one card in four


def color(arm: str, arms: Sequence[str] = ()) -> str:
    """The colour of an arm (seeds of one arm share theirs)."""
    base = re.sub(r"_\d+$", "", arm.removeprefix("pretrain_"))
    if base == "pretrain":
        return COLORS["pretrained_only"]
    if base in COLORS:
        return COLORS[base]
    return OTHERS[(list(arms).index(arm) if arm in arms else 0) % len(OTHERS)]


def success(sets: Mapping[str, Mapping[str, Mapping]], verdicts: Sequence) -> str:
    """First touch (bar) and success (bar inside it) of every arm on every set, with intervals."""
    rows = [row for name in sets for row in ((name, None), *((name, arm) for arm in sets[name]))]
    arms = list(dict.fromkeys(arm for of_set in sets.values() for arm in of_set))
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(8.6, 0.34 * len(rows) + 0.7)
        _numbers(axes, 0, "first touch", "success", "n")
        for y, (name, arm) in enumerate(rows):
            if arm is None:
                axes.text(-29, y + 0.12, SET_TITLES.get(name, name), weight="bold", va="center")
                continue
            axes.text(-1.2, y, arm, ha="right", va="center", color=MUTED)
            _bars(axes, y, sets[name][arm], color(arm, arms))
            _goal_lines(axes, y, name, arm, verdicts)
        axes.axvline(CHANCE, color=MUTED, lw=0.8, ls=(0, (1, 3)), zorder=0)
        axes.text(CHANCE, len(rows) - 0.35, "chance", ha="center", va="top", color=MUTED, size=7.5)
        axes.set(xlim=(0, 100), ylim=(len(rows) - 0.4, -0.6), yticks=[])
        axes.set_xticks(range(0, 101, 20), [f"{v}%" for v in range(0, 101, 20)])
        axes.tick_params(length=0, pad=9)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.grid(axis="x", color=FAINT, lw=0.6)
        axes.set_axisbelow(True)
        figure.subplots_adjust(
            left=0.19, right=0.70, top=0.99, bottom=0.38 / figure.get_figheight()
        )
        return pages.svg(figure, "success")


def _bars(axes, y: int, counts: Mapping, tone: str) -> None:
    """First touch pale with a black interval, success solid with one of its colour; the numbers."""
    n, told = counts["episodes"], []
    for key, height in (("first_touch", 0.62), ("successes", 0.26)):
        share = 100 * counts[key] / n
        low, high = (100 * bound for bound in intervals.wilson(counts[key], n))
        told.append(f"{share:.0f}%  [{low:.0f}, {high:.0f}]")
        if key == "first_touch":
            axes.barh(y, share, height=height, color=tone, alpha=0.45, lw=0)
            axes.plot([low, high], [y, y], color=INK, lw=1.1, solid_capstyle="butt")
            axes.plot([low, low, high, high], [y] * 4, "|", color=INK, ms=6, mew=1.1)
        else:
            axes.barh(y, share, height=height, color=tone, lw=0)
            axes.plot([low, high], [y + 0.2] * 2, color=tone, lw=1.4, solid_capstyle="butt")
    _numbers(axes, y, *told, str(n))


def _numbers(axes, y: int, touch: str, reach: str, n: str) -> None:
    for x, text, side in ((103.5, touch, "left"), (129.5, reach, "left"), (157.5, n, "right")):
        axes.text(x, y, text, va="center", ha=side, color=MUTED, size=8)


SET_TITLES = {
    "A": "A · demonstrated, and on the web",
    "B": "B · met in image-text data only",
    "C": "C · met nowhere (the chance control)",
    "B_among_A": "B among three A",
}


def _goal_lines(axes, y: int, name: str, arm: str, verdicts: Sequence) -> None:
    """The goals for this bar: a red or green tick where first touch (or success) must reach."""
    for verdict in verdicts:
        goal = verdict.goal
        if (goal.arm, goal.set) != (arm, name) or goal.minus:
            continue
        tone = "#c0392b" if verdict.status == goals_lib.MISSED else "#2e8b57"
        half = 0.42 if goal.measure == "first_touch" else 0.2
        for limit in (goal.low, goal.high):
            if 0 < limit < 100:
                axes.plot([limit, limit], [y - half, y + half], color=tone, lw=1.8, zorder=5)


def curves(runs: Mapping[str, Sequence[Mapping]], columns: int = 3) -> str:
    """Learning curves: a panel per metric, a line per training; validation is dashed.

    `runs`: training → rows {"step": …, metric: number or None} of its metrics.jsonl.
    """
    panels = list(dict.fromkeys(_panel(m) for rows in runs.values() for row in rows for m in row))
    panels = [name for name in panels if name]
    if not panels:
        return ""
    lines = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(9.4, 2.25 * lines + 0.25))
        grid = figure.subplots(lines, columns, squeeze=False)
        shown = {}
        for axes, panel in zip(grid.flat, panels):
            axes.set_title(panel, size=9, loc="left")
            for run, rows in runs.items():
                for metric, dash in ((panel, "-"), (f"validation/{panel}", (0, (3, 2)))):
                    points = [(r["step"], r[metric]) for r in rows if r.get(metric) is not None]
                    if not points:
                        continue
                    style = (
                        {"marker": "o", "ms": 2.5} if metric != panel or len(points) == 1 else {}
                    )
                    (line,) = axes.plot(
                        *np.array(points).T, color=color(run, list(runs)), ls=dash, lw=1.3, **style
                    )
                    if metric == panel:
                        shown.setdefault(run, line)
            axes.set_ylim(bottom=0)
            axes.tick_params(length=2)
            axes.grid(color=FAINT, lw=0.5)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        figure.legend(
            shown.values(), shown, loc="upper left", ncols=6, frameon=False, labelcolor=INK
        )
        top = 1 - 0.42 / figure.get_figheight()
        figure.tight_layout(rect=(0, 0, 1, top), h_pad=1.2, w_pad=1.2)
        return pages.svg(figure, "curves")


NOT_LEARNING = ("gradient_norm", "seconds", "samples_per_second", "restore")


def _panel(metric: str) -> str | None:
    """The panel of a metric: the loss, the streams' objectives and their errors; else None.

    Speed and norms are for a run's writers, while it lasts.
    """
    name = metric.removeprefix("validation/")
    family, *parts = name.split("/")
    if name != "loss" and not parts or family in NOT_LEARNING:
        return None
    return name if len(parts) < 2 or name.endswith(("distance", "wrong")) else None


def _canvas(width: float, height: float):
    figure = matplotlib.figure.Figure(figsize=(width, height))
    return figure, figure.subplots()
