"""Emoji pictures and the words for them: card names, their split into A, B, C, what may be drawn.

    vla_jax/assets/emoji/card_names.txt    name<TAB>codepoint, in an order that the splits rest on
                         lookalikes.txt    name<TAB>codepoints that show it without saying so
                         <artist>.tar      <codepoint>.png + <codepoint>.json, one artist each

Names A are in robot demonstrations and in web data, B in web data only, C in neither. So that no C
name is met, a picture that shows one, or whose texts contain one, is never drawn (`leaks`).
No plug-in (leading underscore); no jax, no TensorFlow; cv2 is imported when a picture is decoded.
"""

from __future__ import annotations

import functools
import json
import pathlib
import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from vla_jax import plugin

SIZE = 64  # pixels, height and width of every picture
NAMES_PER_SPLIT = 30  # how many names B has, and how many C has

Table = Mapping[str, tuple[str, ...]]  # name -> codepoints that show it, the card's own first

# Plurals that no rule makes; the rest are made by `_forms`.
_IRREGULAR = {"mouse": "mice", "tooth": "teeth", "goose": "geese", "foot": "feet", "leaf": "leaves"}
# First and last parts of compounds with a short name in them ("hotdog", "keyboard", "minibus").
_PARTS = frozenset(
    "able back berry bird board boat book bow boy bread burger cake cap card case chain coin fish "
    "flower foot fruit girl gold guide hand head hole honey horse hot house jelly kite lady light "
    "man mini motor omni paper path pin pine plant pot rain ring road robe rooster room school sea "
    "ship side snow star stop storm straw string sun tail tea top town trolley walk watch water "
    "way web wild wing wolf woman wood work yard".split()
)


@dataclass(frozen=True)
class Names:
    """The card names of a split: `a` demonstrated and on the web, `b` web only, `c` in neither."""

    a: tuple[str, ...]
    b: tuple[str, ...]
    c: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """One artist's drawing of one emoji, and everything that is said about it."""

    codepoint: str  # "1f9d1-200d-1f680": lower case, without the variation selector fe0f
    name: str  # short canonical name: the card's word where it is a card
    text: str  # full name ("dog face")
    aliases: tuple[str, ...]  # short names ("guide_dog")
    category: str  # "Animals & Nature"
    png: bytes  # the file as stored

    @functools.cached_property
    def rgba(self) -> np.ndarray:
        """uint8 [64, 64, 4], colour not premultiplied; decoded at the first use and read-only."""
        import cv2  # late: listing names must not cost its import

        image = cv2.imdecode(np.frombuffer(self.png, np.uint8), cv2.IMREAD_UNCHANGED)
        if image is None or image.ndim != 3:
            raise plugin.UserError(f"emoji picture {self.codepoint}: its PNG does not decode")
        alpha = cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGBA
        image = cv2.cvtColor(image, alpha)
        if image.shape != (SIZE, SIZE, 4):
            raise plugin.UserError(
                f"emoji picture {self.codepoint}: got shape {image.shape}, "
                f"expected {(SIZE, SIZE, 4)}"
            )
        image.flags.writeable = False
        return image


def card_table(root: str | pathlib.Path) -> dict[str, tuple[str, ...]]:
    """`{name: codepoints that show it}` in the file's order; the first codepoint is the card's.

    Raises UserError when a file is missing, or a row is malformed or names a card twice.
    """
    root = pathlib.Path(root)
    table: dict[str, tuple[str, ...]] = {}
    for where, name, codepoints in _rows(root / "card_names.txt"):
        if name in table or len(codepoints) != 1 or not re.fullmatch("[a-z]+", name):
            raise plugin.UserError(
                f"{where}: got {name!r} {codepoints}, expected a new lowercase word, a tab, "
                "one codepoint"
            )
        table[name] = codepoints
    for where, name, codepoints in _rows(root / "lookalikes.txt"):
        _known(where, [name], table)
        table[name] += codepoints
    return table


def card_names(root: str | pathlib.Path) -> tuple[str, ...]:
    """The usable card names in the file's order; `root` is the folder vla_jax/assets/emoji."""
    return tuple(card_table(root))


def split_names(names: tuple[str, ...], split: int) -> Names:
    """The names dealt into A, B (30) and C (30) by a permutation that `split` seeds.

    Raises UserError when there are too few names for three non-empty parts.
    """
    held_out = 2 * NAMES_PER_SPLIT
    if len(set(names)) != len(names) or len(names) <= held_out:
        raise plugin.UserError(
            f"split_names: got {len(names)} names, {len(set(names))} different; expected more than "
            f"{held_out}, each once"
        )
    order = np.random.default_rng(split).permutation(len(names))
    dealt = [names[i] for i in order]
    return Names(
        a=tuple(dealt[held_out:]),
        b=tuple(dealt[:NAMES_PER_SPLIT]),
        c=tuple(dealt[NAMES_PER_SPLIT:held_out]),
    )


def load_pictures(archive: str | pathlib.Path) -> list[Picture]:
    """Every picture of an artist's archive, sorted by codepoint; pixels are decoded when asked for.

    Raises UserError when the archive is missing, is no tar, or a picture has no description.
    """
    archive = pathlib.Path(archive)
    if not archive.is_file():
        found = sorted(path.name for path in archive.parent.glob("*.tar"))
        raise plugin.UserError(
            plugin.unknown(f"emoji archive {archive}", archive.name, found)
            + " Point the config at one of these, or make them with tools/make_emoji_shards.py."
        )
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:") as tar:
            for info in tar:
                members[info.name] = tar.extractfile(info).read()
        stems = sorted(name[:-4] for name in members if name.endswith(".png"))
        return [_picture(s, members[f"{s}.png"], members[f"{s}.json"]) for s in stems]
    except (tarfile.TarError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise plugin.UserError(
            f"emoji archive {archive}: {type(error).__name__} {error}; expected a tar of "
            "<codepoint>.png with <codepoint>.json; make it with tools/make_emoji_shards.py"
        ) from error


def by_name(pictures: Iterable[Picture], names: Iterable[str], table: Table) -> dict[str, Picture]:
    """`{name: its card's picture by this artist}`; UserError when a name or picture is missing."""
    names = list(names)
    _known("by_name", names, table)
    found = {picture.codepoint: picture for picture in pictures}
    for name in names:
        if table[name][0] not in found:
            raise plugin.UserError(
                f"by_name: no picture {table[name][0]} of {name!r} among {len(found)} pictures; "
                "take the name out of card_names.txt or make the archive again"
            )
    return {name: found[table[name][0]] for name in names}


def leaks(picture: Picture, names_c: Iterable[str], table: Table) -> bool:
    """True when the picture shows a C name, or when its name, text or an alias contains one.

    It shows one when its codepoint, or a part of its joined sequence, is the card's or that of a
    lookalike. A text contains one as a word ("pig nose"), in any number ("cherry blossom" for
    cherries), or inside a compound ("busstop", "toothbrush"; a three-letter name counts only beside
    another known word: "keyboard" is a key, "monkey" is not).
    """
    names_c = tuple(names_c)
    _known("leaks", names_c, table)
    said = _words(picture)
    shown = {picture.codepoint, *picture.codepoint.split("-")}
    return any(not shown.isdisjoint(table[name]) or _says(said, name) for name in names_c)


def drawable(pictures: Iterable[Picture], names_c: Iterable[str], table: Table) -> list[Picture]:
    """The pictures that leak no C name, in the order given."""
    names_c = tuple(names_c)
    return [picture for picture in pictures if not leaks(picture, names_c, table)]


def _says(words: frozenset[str], name: str) -> bool:
    return any(_contains(word, form) for word in words for form in _forms(name))


def _contains(word: str, form: str) -> bool:
    """Whether a word is the form or a compound with it; too strict is the safe side."""
    if form not in word:
        return False
    if word == form or len(form) >= 4:
        return True
    rest = [word.removeprefix(form), word.removesuffix(form)]
    return any(part in _PARTS for part in rest if part != word)


@functools.cache
def _forms(name: str) -> frozenset[str]:
    """The name in singular and plural, as far as spelling tells; three letters or more."""
    forms = {name, name + "s"}
    for one, many in _IRREGULAR.items():
        if name in (one, many):
            forms |= {one, many}
    if name.endswith("ies"):
        forms.add(name[:-3] + "y")
    elif name.endswith("s") and not name.endswith("ss"):
        forms.add(name[:-1])
    elif name.endswith("y"):
        forms.add(name[:-1] + "ies")
    elif name.endswith(("s", "x", "ch", "sh", "o")):
        forms.add(name + "es")
    return frozenset(form for form in forms if len(form) >= 3)


def _words(picture: Picture) -> frozenset[str]:
    said = " ".join((picture.name, picture.text, *picture.aliases)).lower()
    return frozenset(re.findall(r"[^\W\d_]+", said))


def _picture(codepoint: str, png: bytes, description: bytes) -> Picture:
    row = json.loads(description)
    return Picture(
        codepoint=codepoint,
        name=row["name"],
        text=row["text"],
        aliases=tuple(row["aliases"]),
        category=row["category"],
        png=png,
    )


def _rows(path: pathlib.Path) -> list[tuple[str, str, tuple[str, ...]]]:
    """`(where, name, codepoints)` of each row of a table file."""
    if not path.is_file():
        raise plugin.UserError(
            f"{path}: no such file; expected it in the emoji folder, e.g. vla_jax/assets/emoji"
        )
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line and not line.startswith("#"):
            name, _, codepoints = line.partition("\t")
            rows.append((f"{path}:{number}", name, tuple(codepoints.split())))
    return rows


def _known(where: str, names: Iterable[str], table: Table) -> None:
    for name in names:
        if name not in table:
            raise plugin.UserError(plugin.unknown(f"{where}: card name", name, table))
