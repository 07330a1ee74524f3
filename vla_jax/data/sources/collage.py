"""Collages of emoji composed on the fly, the image-text web in miniature: where is the {name}?

    background ── flat, gradient, or noise of some scale         a small grid of colours, enlarged
      cards    ── 60%: a pale square under the picture, 4/64 wider on each side, as on the table
      pictures ── 2-5 of the names A and B, each by a random artist, 14-34 px of 96, turned ±30°
      light    ── one tint; with `lighting`, brighter and darker corners

A picture is a pure function of (index, rng): nothing is stored but the drawings. Names of one
collage differ, so that the one asked for stands there once. With `context.train` False the same
recipe draws from another domain of random keys: Philox keys are (64 bits of the row's rng, domain),
domain 0 in training and 1 held out, so no held-out collage can come up in training, whatever seeds.

Recipe and numbers: facts of the card scene, docs/LOG.md; region labels are the centres of pictures.
"""

from __future__ import annotations

import hashlib
import math
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_jax import plugin, storage
from vla_jax.data.sources import _collage_paint, _emoji, _picture_row
from vla_jax.data.sources._collage_paint import Placed, Sprite

DEBUG = {"epoch": 64}

ASSETS = pathlib.Path(__file__).resolve().parents[2] / "assets" / "emoji"
REFERENCE = 96  # the side in pixels that `size` is given for
SPACING = 1.1  # least distance of two centres, in mean sides
TRIES = 24  # places tried for a picture before it is left out
RECIPE = "collage-1"  # part of the fingerprint: raise it when the same rng gives another picture


@dataclass(frozen=True)
class Style:
    """What varies from collage to collage; the fields are the arguments of `make`."""

    count: tuple[int, int]  # fewest and most pictures; the most is K
    size: tuple[float, float]  # smallest and largest side of a picture, in pixels of 96
    angle: float  # largest turn, degrees
    card: float  # share of the pictures that lie on a pale card
    tint: float  # largest relative change of a colour channel
    squash: float  # largest relative loss of the collage's height: a camera that looks askew
    lighting: float  # largest relative change of brightness towards a corner
    extra: float  # share of the pictures after the first that are clutter, without a label

    def check(self, where: str, names: int) -> None:
        """Raises UserError for a number out of its range; `names` can be drawn."""
        low, high = self.count
        if not 1 <= low <= high <= names:
            raise plugin.UserError(
                f"{where}: count={self.count}, expected 1 <= fewest <= most <= {names} (the names)"
            )
        if not 0 < self.size[0] <= self.size[1] <= 0.5 * REFERENCE:
            raise plugin.UserError(
                f"{where}: size={self.size}, expected 0 < smallest <= largest <= {REFERENCE // 2} "
                f"(pixels of {REFERENCE})"
            )
        for name in ("card", "tint", "squash", "lighting", "extra"):
            if not 0 <= getattr(self, name) <= 1:
                raise plugin.UserError(
                    f"{where}: {name}={getattr(self, name)}, expected a number in [0, 1]"
                )


class Collage:
    """An IndexedSource of collages; `make` says what it is made of."""

    def __init__(self, context, *, sprites, clutter, instructions, style, targets, view, epoch):
        self.context, self.style, self.view = context, style, view
        self.names = tuple(sprites)  # the names drawn
        table = context.names or self.names
        for name in self.names:
            if name not in table:
                raise plugin.UserError(
                    plugin.unknown(f"{context.name}: table of names", name, table)
                )
        self._rows = {name: table.index(name) for name in self.names}
        self._sprites, self._clutter = sprites, clutter
        self._instructions, self._targets = instructions, targets
        self._size = _picture_row.image_size(context, view)
        _picture_row.blank_targets(context, targets, style.count[1])  # unknown names raise here
        self._epoch = epoch
        self.fingerprint = _fingerprint(self)

    def __len__(self) -> int:
        return self._epoch

    def sample(self, index: int, rng: np.random.Generator) -> dict:
        """One row of the vl stream: a picture, the instruction, and `targets` (K = most pictures).

        Raises UserError when the context has no text tokenizer.
        """
        if not self._instructions:
            raise plugin.UserError(
                f"{self.context.name}: collages need a text tokenizer and the config names none; "
                "make one with `vla data text-tokenizer` and set text_tokenizer"
            )
        rng = self._domain(index, rng)
        placed = self._plan(rng)
        ways = self._instructions[placed[0].name]
        language = ways[int(rng.integers(len(ways)))]
        image = _collage_paint.paint(
            placed, self._size, rng, tint=self.style.tint, lighting=self.style.lighting
        )
        return self._row(image, placed, language)

    def describe(self, index: int, rng: np.random.Generator) -> tuple[Placed, ...]:
        """What `sample` draws for the same arguments; the first is the one asked for."""
        return self._plan(self._domain(index, rng))

    def _domain(self, index: int, rng: np.random.Generator) -> np.random.Generator:
        draw = rng.integers(2**64, dtype=np.uint64)
        key = np.array([draw, 0 if self.context.train else 1], np.uint64)
        counter = np.array([0, 0, index, 0], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def _plan(self, rng: np.random.Generator) -> tuple[Placed, ...]:
        """What stands where; the first picture is the one asked for, its name stands there once."""
        style, (height, width) = self.style, self._size
        scale = min(height, width) / REFERENCE
        count = int(rng.integers(style.count[0], style.count[1] + 1))
        order = rng.permutation(len(self.names))
        draws = rng.random((count, 5 + 2 * TRIES))  # side, angle, card, extra, artist; places
        squash = 1.0 - style.squash * rng.random()
        placed: list[Placed] = []
        for k, (u, places) in enumerate(zip(draws[:, :5].tolist(), draws[:, 5:])):
            side = scale * (style.size[0] + (style.size[1] - style.size[0]) * u[0])
            place = _place(places.reshape(TRIES, 2), side, placed, height, width)
            if place is None:
                continue
            if k and self._clutter and u[3] < style.extra:
                name, row, artists = None, -1, self._clutter
            else:
                name = self.names[order[k]]
                row, artists = self._rows[name], self._sprites[name]
            angle = math.radians(style.angle) * (2 * u[1] - 1)
            sprite = artists[int(u[4] * len(artists))]
            card = u[2] < style.card
            placed.append(Placed(name, row, sprite, *place, side, angle, squash, card))
        return tuple(placed)

    def _row(self, image: np.ndarray, placed: Sequence[Placed], language) -> dict:
        height, width = self._size
        targets, masks = _picture_row.blank_targets(
            self.context, self._targets, self.style.count[1]
        )
        labelled = [picture for picture in placed if picture.name is not None]
        n = len(labelled)
        centres = np.array([(p.x / width, p.y / height) for p in labelled], np.float32)
        if "point" in targets:
            targets["point"][-1], masks["point"][-1] = centres[0], True
        if "region_point" in targets:
            targets["region_point"][-1, :n], masks["region_point"][-1, :n] = centres, True
        if "region_name" in targets:
            targets["region_name"][-1, :n] = [p.row for p in labelled]
            masks["region_name"][-1, :n] = True
        return _picture_row.row(self.context, self.view, image, language, targets, masks)


def make(
    context,
    *,
    archives: Sequence[str] = ("twemoji", "fluent_flat", "fluent_3d"),
    root: str | None = None,
    split: int = 0,
    names: str = "ab",
    hide: Sequence[str] = (),
    template: str | Sequence[str] = "point to the {name}",
    view: str = "primary",
    targets: Sequence[str] = ("point", "region_point", "region_name"),
    epoch: int = 50_000,
    count: tuple[int, int] = (2, 5),
    size: tuple[float, float] = (14.0, 34.0),
    angle: float = 30.0,
    card: float = 0.6,
    tint: float = 0.15,
    squash: float = 0.0,
    lighting: float = 0.0,
    extra: float = 0.0,
) -> Collage:
    """A source of collages for the vl stream.

    Args:
      context: SourceContext; `names` is the table that region_name indexes (default: the drawn).
      archives: the artists, files `<artist>.tar` in `root`; ("google",): the cards' own drawings.
      root: the emoji folder; None: vla_jax/assets/emoji.
      split: deals the card names into A, B and C.
      names: which of them are drawn: "ab", or "a" for the web without B; C is never drawn.
      hide: names that are not drawn either, whichever part they are in.
      template: the instruction, or several to choose from.
      view: the view that the picture stands for.
      targets: those of the stream; a target that collages lack (text) comes masked out.
      epoch: nominal number of collages, for tables and progress bars.
      count, size, angle, card, tint, squash, lighting, extra: see Style.

    Raises:
      UserError: unknown archive, name, target, or letter in `names`; too few names for `count`;
        an instruction longer than the stream's max_tokens; no image size for `view`.
    """
    where = context.name
    root = storage.local("root", root) if root else ASSETS
    table = _emoji.card_table(root)
    drawn, hidden = _choose(where, table, split, names, hide)
    style = Style(tuple(count), tuple(size), angle, card, tint, squash, lighting, extra)
    style.check(where, len(drawn))
    sprites, clutter = _sprites(root, archives, table, drawn, hidden, clutter=extra > 0)
    templates = (template,) if isinstance(template, str) else tuple(template)
    return Collage(
        context,
        sprites=sprites,
        clutter=clutter,
        instructions=_instructions(context, drawn, templates),
        style=style,
        targets=tuple(targets),
        view=view,
        epoch=epoch,
    )


def _sprites(root, archives, table, drawn, hidden, clutter: bool) -> tuple[dict, list]:
    """({name: its sprites, one per archive that has it}, unlabelled other pictures if asked)."""
    named: dict[str, list[Sprite]] = {name: [] for name in drawn}
    others: list[Sprite] = []
    for archive in archives:
        pictures = _emoji.load_pictures(root / f"{archive}.tar")
        shown = _emoji.drawable(pictures, hidden, table)
        for name, picture in _emoji.by_name(shown, drawn, table).items():
            named[name].append(Sprite(picture, archive))
        if clutter:
            unlabelled = _emoji.drawable(shown, tuple(table), table)
            others += [Sprite(picture, archive) for picture in unlabelled]
    return named, others


def texts(
    *,
    archives: Sequence[str] = ("twemoji", "fluent_flat", "fluent_3d"),
    root: str | None = None,
    split: int = 0,
    names: str = "ab",
    hide: Sequence[str] = (),
    templates: Sequence[str] = ("touch the {name}", "point to the {name}"),
) -> list[str]:
    """The corpus of the text tokenizer: what is said about the pictures that may be drawn.

    Each drawable picture's texts once, then each drawn name in each template. No C or hidden name
    is among them. Arguments as in `make`.
    """
    root = storage.local("root", root) if root else ASSETS
    table = _emoji.card_table(root)
    drawn, hidden = _choose("texts", table, split, names, hide)
    said: dict[str, None] = {}  # an ordered set: artists share their texts
    for archive in archives:
        for picture in _emoji.drawable(
            _emoji.load_pictures(root / f"{archive}.tar"), hidden, table
        ):
            for text in (picture.name, picture.text, *picture.aliases):
                said[text.replace("_", " ")] = None
    return [*said, *(template.format(name=name) for name in drawn for template in templates)]


def _choose(where: str, table, split: int, letters: str, hide) -> tuple[tuple, tuple]:
    """(names drawn, names hidden) of a split; everything not drawn is hidden."""
    parts = _emoji.split_names(tuple(table), split)
    if not letters or not set(letters) <= set("ab"):
        raise plugin.UserError(
            f"{where}: names={letters!r}, expected 'a', 'b' or 'ab' (C names are never drawn)"
        )
    for name in hide:
        if name not in table:
            raise plugin.UserError(plugin.unknown(f"{where}: hide", name, table))
    dealt = (*(parts.a if "a" in letters else ()), *(parts.b if "b" in letters else ()))
    drawn = tuple(name for name in dealt if name not in hide)
    return drawn, tuple(name for name in table if name not in drawn)


def _instructions(context, names, templates) -> dict[str, list]:
    """By name, [(ids [T], mask [T]) per template]; empty without a text tokenizer."""
    for template in templates:
        if "{name}" not in template:
            raise plugin.UserError(f"{context.name}: template {template!r} has no {{name}} in it")
    tokenizer = context.text_tokenizer
    if tokenizer is None:
        return {}
    return {
        name: [tokenizer.encode_padded(t.format(name=name), context.max_tokens) for t in templates]
        for name in names
    }


def _fingerprint(collage: Collage) -> str:
    digest = hashlib.sha256(RECIPE.encode())
    for name, sprites in (*collage._sprites.items(), ("", collage._clutter)):
        for sprite in sprites:
            digest.update(f"{name} {sprite.archive} {sprite.codepoint}".encode())
            digest.update(sprite.png)
    said = [
        (name, [ids.tolist() for ids, _ in ways]) for name, ways in collage._instructions.items()
    ]
    parts = (collage.style, collage._size, collage._rows, collage._targets, collage.view, said)
    digest.update(repr((*parts, collage.context.train, collage.context.window)).encode())
    return digest.hexdigest()[:16]


def _place(places: np.ndarray, side: float, placed: list[Placed], height: int, width: int):
    """The first (x, y) of `places` [n, 2] in [0, 1] that is clear of the placed, or None."""
    margin = 0.55 * side
    span = (width - 2 * margin, height - 2 * margin)
    for u, v in places.tolist():
        x, y = margin + u * span[0], margin + v * span[1]
        for other in placed:
            clear = 0.5 * SPACING * (side + other.side)
            if (x - other.x) ** 2 + (y - other.y) ** 2 < clear * clear:
                break
        else:
            return x, y
    return None
