"""Self-contained HTML pages in the style of the house: one file, no external resources.

A template begins its style with `{{ css | safe }}` (pages.css); figures are inline SVG whose ink
follows the page's colours, light or dark.
"""

from __future__ import annotations

import base64
import io
import pathlib
import re

import jinja2
import matplotlib

from vla_jax import plugin, storage

CSS = pathlib.Path(__file__).with_suffix(".css")
# Stand-ins that no other element has; the page's CSS variables take their place.
INK, MUTED, FAINT, ACCENT = "#010203", "#040506", "#070809", "#0a0b0c"
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    FAINT: "var(--line)",
    ACCENT: "var(--accent)",
}
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": FAINT,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def render(template: pathlib.Path, **values) -> str:
    """The page of a jinja template; `values` are escaped, and all that it names must be given."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made = environment.from_string(template.read_text(encoding="utf-8"))
    return made.render(css=CSS.read_text(encoding="utf-8"), **values)


def svg(figure, salt: str) -> str:
    """A matplotlib figure as an SVG element; `salt` keeps its ids apart from other figures'."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    for stand_in, variable in VARIABLES.items():
        drawn = drawn.replace(stand_in, variable)
    # The page scales it; ids are prefixed, since all figures stand in one document.
    drawn = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", drawn, count=1)
    drawn = re.sub(r'id="(?=[a-zA-Z])', f'id="{salt}-', drawn)
    return re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{salt}-", drawn)


def data_url(kind: str, content: bytes) -> str:
    """The bytes as a URL, `kind` for instance image/webp."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def write(out: storage.Path, html: str) -> None:
    """Writes the page whole or not at all; UserError where that cannot be."""
    try:
        storage.write(out, html)
    except OSError as error:
        raise plugin.UserError(
            f"{out}: {error.strerror}; name a file that can be written"
        ) from error
