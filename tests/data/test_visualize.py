"""The page of `vla data visualize`: whole, self-contained, and showing what was recorded."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import episode, write_folder
from vla_jax import plugin
from vla_jax.cli import main as cli
from vla_jax.data import visualize

FILM = re.compile(
    r'data-columns="(\d+)" data-rows="(\d+)".*?url\(data:image/webp;base64,([^)]*)\)', re.S
)


@pytest.fixture
def folder(tmp_path):
    """Three episodes of 7, 9 and 11 steps; an instruction with signs that HTML must escape."""
    episodes = [episode(i, length=7 + 2 * i) for i in range(3)]
    episodes[2]["steps/language_instruction"] = ["put <b>it</b> & über “there”".encode()] * 11
    return write_folder(tmp_path / "arm_data", episodes, shards=1)


def test_the_page_shows_what_was_recorded(folder, tmp_path, capsys):
    out = tmp_path / "page.html"
    words = [str(folder), "--out", str(out), "--episodes", "2", "--frames", "5"]
    assert cli.main(["data", "visualize", *words]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"out": str(out), "episodes": ["e0", "e2"], "bytes": out.stat().st_size}
    html = out.read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!#|data:)|url\((?!data:|#)', html), "self-contained"
    assert "<b>it</b>" not in html and "put &lt;b&gt;it&lt;/b&gt; &amp; über “there”" in html
    assert re.findall(r'data-steps="([\d ]+)" data-length="(\d+)"', html) == [
        ("0 2 3 4 6", "7"),
        ("0 2 5 8 10", "11"),
    ]
    films = FILM.findall(html)
    assert len(films) == 2
    for number, (columns, rows, data), steps in zip(
        (0, 2), films, ([0, 2, 3, 4, 6], [0, 2, 5, 8, 10])
    ):
        sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
        assert (int(columns), int(rows)) == (5, 1) and sheet.shape == (16, 80, 3)
        seen = [int(sheet[10, 16 * i + 8, 0]) for i in range(5)]
        assert np.abs(np.subtract(seen, [10 * t + number for t in steps])).max() <= 4
    # Dim 0 of the action is constant within an episode, not among them; hand.0 is 0 throughout.
    assert html.count('class="plot"') == 2 * (4 + 2)
    assert "steps/observation/proprio/hand[0] = 0" in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)) and set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["arm_data", "page.html"]


def test_a_line_ends_where_the_cursor_does():
    svg = visualize.plot(np.array([0.0, 1.0, 3.0]), 0.0, 3.0, "salt", "#123456")
    width = float(re.search(r'viewBox="0 0 ([\d.]+) ', svg)[1])
    path = re.search(r'd="(M [^"]*)"[^>]*stroke: #123456', svg)[1]
    places = [float(pair[0]) for pair in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path)]
    assert places == pytest.approx([0, width / 2, width], abs=0.01)


def test_rows_of_a_film():
    pictures = np.arange(19, dtype=np.uint8)[:, None, None, None] * np.full(
        (1, 30, 60, 3), 10, np.uint8
    )
    film = visualize.film(pictures, 20)
    assert (film["columns"], film["rows"], film["width"], film["height"]) == (8, 3, 20, 10)
    data = base64.b64decode(film["data"].partition(",")[2])
    sheet = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    for i in (0, 7, 8, 18):
        assert abs(sheet[i // 8 * 10 + 5, i % 8 * 20 + 10, 0] - 10 * i) <= 5


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(episodes=0), "episodes: got 0, expected at least 1"),
        (dict(split="vall"), "unknown 'vall'"),
        (dict(out="no/such/page.html"), "no folder"),
    ],
)
def test_a_mistake_writes_nothing(folder, tmp_path, changes, message):
    out = tmp_path / changes.pop("out", "page.html")
    with pytest.raises(plugin.UserError, match=message):
        visualize.build(folder, out, **changes)
    assert [p.name for p in tmp_path.iterdir()] == ["arm_data"]
