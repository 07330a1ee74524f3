"""The archives as they are shipped: complete, small, in the form their tool writes."""

import pathlib
import tarfile

import pytest

from vla_jax.data.sources import _emoji

ROOT = pathlib.Path(_emoji.__file__).parents[2] / "assets" / "emoji"
ARTISTS = ("google", "twemoji", "fluent_flat", "fluent_3d", "openmoji")


def test_card_names_are_enough_and_none_says_another():
    table = _emoji.card_table(ROOT)
    assert 127 <= len(table) <= 160
    own = [codepoints[0] for codepoints in table.values()]
    assert len(set(own)) == len(own)
    cards = _emoji.by_name(_emoji.load_pictures(ROOT / "google.tar"), table, table)
    for name, picture in cards.items():
        assert picture.name == name
        leaked = [other for other in table if _emoji.leaks(picture, [other], table)]
        assert leaked == [name]


@pytest.mark.parametrize("artist", ARTISTS)
def test_every_artist_drew_every_card(artist):
    table = _emoji.card_table(ROOT)
    for picture in _emoji.by_name(
        _emoji.load_pictures(ROOT / f"{artist}.tar"), table, table
    ).values():
        drawn = (picture.rgba[..., 3] > 127).mean()
        assert 0.04 < drawn < 0.98, picture.name


@pytest.mark.parametrize("artist", ARTISTS)
def test_members_are_sorted_pairs_without_times_or_owners(artist):
    with tarfile.open(ROOT / f"{artist}.tar", "r:") as tar:
        members = tar.getmembers()
    names = [member.name for member in members]
    assert names == sorted(names)
    assert {n[:-4] for n in names if n.endswith(".png")} == {
        n[:-5] for n in names if n.endswith(".json")
    }
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


def test_archives_are_small_licensed_and_attributed():
    archives = sorted(ROOT.glob("*.tar"))
    assert [path.stem for path in archives] == sorted(ARTISTS)
    assert sum(path.stat().st_size for path in archives) <= 12_000_000
    for text in ("LICENSE.md", "NOTICE"):
        assert all(f"{artist}.tar" in (ROOT / text).read_text() for artist in ARTISTS)
