"""Names, splits, archives, and the rule that no C name is ever drawn or said."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.data.sources import _emoji

ROOT = pathlib.Path(_emoji.__file__).parents[2] / "assets" / "emoji"


@pytest.fixture(scope="module")
def table():
    return _emoji.card_table(ROOT)


@pytest.fixture(scope="module")
def google():
    return _emoji.load_pictures(ROOT / "google.tar")


def picture(text, codepoint="1f4a9", aliases=()):
    return _emoji.Picture(codepoint, text, text, tuple(aliases), "Objects", b"")


@pytest.mark.parametrize("split", range(5))
def test_a_split_deals_every_name_once(split):
    names = _emoji.card_names(ROOT)
    parts = _emoji.split_names(names, split)
    assert (len(parts.b), len(parts.c)) == (30, 30)
    assert sorted(parts.a + parts.b + parts.c) == sorted(names)
    assert parts == _emoji.split_names(names, split)


def test_splits_differ_and_stay_what_they_were():
    names = tuple(f"n{i}" for i in range(100))
    assert _emoji.split_names(names, 0).c != _emoji.split_names(names, 1).c
    # numpy does not promise its streams across versions; a change would move every reported number.
    assert _emoji.split_names(names, 0).b[:4] == ("n82", "n36", "n20", "n5")


@pytest.mark.parametrize("split", range(5))
def test_no_drawable_picture_says_or_shows_a_c_name(split, google, table):
    names = _emoji.split_names(tuple(table), split)
    drawn = _emoji.drawable(google, names.c, table)
    shown = {codepoint for name in names.c for codepoint in table[name]}
    # Written apart from the code under test: substrings where the name is long enough to be one.
    for each in drawn:
        said = " ".join((each.name, each.text, *each.aliases)).lower()
        words = set(said.replace("_", " ").replace("-", " ").split())
        assert each.codepoint not in shown
        for name in names.c:
            assert name not in words and name + "s" not in words, (name, said)
            assert len(name) < 4 or name not in said, (name, said)
    # Nothing that A and B need is lost.
    assert {table[name][0] for name in names.a + names.b} <= {each.codepoint for each in drawn}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pig", "pig nose"),
        ("spider", "spider web"),
        ("bus", "bus stop"),
        ("bus", "busstop"),
        ("bus", "minibus"),
        ("key", "musical keyboard"),
        ("dog", "hotdog"),
        ("tooth", "toothbrush"),
        ("mouse", "three blind mice"),
        ("tooth", "Teeth"),
        ("cherries", "cherry blossom"),
        ("gloves", "boxing glove"),
        ("book", "books"),
        ("fox", "foxes"),
        ("balloon", "speech balloon"),
    ],
)
def test_a_text_that_contains_a_name_leaks(name, text, table):
    assert _emoji.leaks(picture(text), [name], table)
    assert _emoji.leaks(picture("thing", aliases=[text.replace(" ", "_")]), [name], table)


@pytest.mark.parametrize(
    ("name", "text"),
    [("key", "monkey"), ("key", "turkey"), ("bat", "battery"), ("owl", "bowl"), ("car", "carrot")],
)
def test_letters_inside_another_word_do_not_leak(name, text, table):
    assert not _emoji.leaks(picture(text), [name], table)


def test_pictures_leak_what_they_show(google, table):
    found = {each.codepoint: each for each in google}
    assert _emoji.leaks(found["1f429"], ["dog"], table)  # a poodle
    assert _emoji.leaks(found["1f9d1-200d-1f680"], ["rocket"], table)  # astronaut: person + rocket
    assert _emoji.leaks(found["1f436"], ["dog"], table)
    assert not _emoji.leaks(found["1f436"], ["lion"], table)


def test_pictures_decode_to_rgba(google):
    assert len(google) == 1911 and google == sorted(google, key=lambda each: each.codepoint)
    dog = next(each for each in google if each.codepoint == "1f436")
    assert (dog.name, dog.text, dog.category) == ("dog", "dog face", "Animals & Nature")
    assert dog.rgba.shape == (64, 64, 4) and dog.rgba.dtype == np.uint8
    assert dog.rgba[0, 0, 3] == 0 and dog.rgba[32, 32, 3] == 255
    red = next(each for each in google if each.codepoint == "1f534").rgba[32, 32]
    assert red[0] > 200 > 100 > red[2]  # the channels are red first


def test_reading_needs_no_jax_and_listing_no_cv2():
    code = (
        "import sys; from vla_jax.data.sources import _emoji as e\n"
        f"e.card_names({str(ROOT)!r}); e.load_pictures({str(ROOT / 'openmoji.tar')!r})\n"
        "assert not {'jax', 'tensorflow', 'cv2', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_errors_say_what_to_do(tmp_path, table):
    with pytest.raises(plugin.UserError, match="did you mean 'twemoji.tar'"):
        _emoji.load_pictures(ROOT / "twemojis.tar")
    (tmp_path / "broken.tar").write_bytes(b"no tar")
    with pytest.raises(plugin.UserError, match="make_emoji_shards"):
        _emoji.load_pictures(tmp_path / "broken.tar")
    with pytest.raises(plugin.UserError, match="card_names.txt: no such file"):
        _emoji.card_names(tmp_path)
    with pytest.raises(plugin.UserError, match="did you mean 'rocket'"):
        _emoji.leaks(picture("x"), ["rockt"], table)
    with pytest.raises(plugin.UserError, match="no picture .* of 'dog'"):
        _emoji.by_name([], ["dog"], table)
    with pytest.raises(plugin.UserError, match="expected more than 60"):
        _emoji.split_names(("dog", "cat"), 0)
    (tmp_path / "card_names.txt").write_text("Dog\t1f436\n")
    with pytest.raises(plugin.UserError, match="card_names.txt:1: got 'Dog'"):
        _emoji.card_names(tmp_path)
