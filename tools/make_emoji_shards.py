#!/usr/bin/env python3
"""Make the emoji archives of vla_jax/assets/emoji/, one tar per artist, from pinned npm packages.

    python tools/make_emoji_shards.py --cache /tmp/emoji        # npm pack (cached), then write

Needs npm, and beside the project's own dependencies two packages that only this tool uses:
    pip install resvg-py==0.5.0 imagequant==1.1.5

Each archive is a WebDataset-style tar of `<codepoint>.json` and `<codepoint>.png` (64 x 64, palette
with alpha). The bytes depend on the pinned packages only: members sorted, no times, no owners.
The last line on stdout is one JSON object: {archive: {"pictures": n, "bytes": m}}.
"""

import argparse
import hashlib
import importlib
import io
import json
import pathlib
import re
import struct
import subprocess
import sys
import tarfile
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
SIZE = 64  # pixels
LIMIT = 12_000_000  # bytes, all archives together
TOOL_PACKAGES = {"resvg_py": "resvg-py==0.5.0", "imagequant": "imagequant==1.1.5"}


@dataclass(frozen=True)
class Artist:
    """One set of drawings: its pinned npm package and how much of it the archive keeps."""

    package: str
    sha256: str
    folder: str
    colors: int
    keep: str  # "all", or "things" (see THINGS)


ARTISTS = {
    "google": Artist(
        "emoji-datasource-google@16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "package/img/google/64",
        64,
        "all",
    ),
    "twemoji": Artist(
        "emoji-datasource-twitter@16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "package/img/twitter/64",
        64,
        "things",
    ),
    "fluent_flat": Artist(
        "@lobehub/fluent-emoji-flat@1.1.0",
        "8f9113c027c7c20eced0070354715a4093a459b8bef6332b91d45f38c9bdb147",
        "package/assets",
        64,
        "things",
    ),
    "fluent_3d": Artist(
        "@lobehub/fluent-emoji-3d@1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "package/assets",
        96,  # soft shading everywhere: 64 colours would show bands
        "things",
    ),
    "openmoji": Artist(
        "openmoji@17.0.0",
        "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
        "package/color/svg",
        64,
        "cards",
    ),
}
# What is kept of the web artists beside the cards: concrete things a caption can be about.
# (A tar member costs 1 kB before its first byte; whole sets of five artists would be 25 MB.)
THINGS = re.compile(
    r"animal-|plant-|food-|drink|dishware|transport-|sport|award-medal|arts & crafts"
    r"|clothing|musical-instrument|tool|household|science|medical|event|game"
)
METADATA = ("google", "package/emoji.json")  # names, aliases and categories of every artist


def tool_package(name: str):
    """The imported tool-only package; exits with what to type when it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        sys.exit(f"make_emoji_shards: no module {name!r}; pip install {TOOL_PACKAGES[name]}")


def fetch(artist: Artist, cache: pathlib.Path) -> tarfile.TarFile:
    """The artist's npm package as an open tar, packed by npm once and checked by its sha256."""
    name, version = artist.package.rsplit("@", 1)
    path = cache / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        subprocess.run(["npm", "pack", artist.package], cwd=cache, check=True, stdout=sys.stderr)
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    if got != artist.sha256:
        sys.exit(
            f"make_emoji_shards: {path} has sha256 {got}, expected {artist.sha256} "
            f"({artist.package}); delete it and run again"
        )
    return tarfile.open(path)


def codepoint_of(text: str) -> str:
    """A codepoint sequence in our spelling: lower case, without the variation selector fe0f."""
    return "-".join(part for part in text.lower().split("-") if part != "fe0f")


def short_name(entry: dict, card: str | None) -> str:
    """The canonical name of a picture: the card's word, or the first short name in words."""
    name = card or entry["short_names"][0]
    # emoji-datasource tells `dog2` (whole animal) from `dog` (face); the digit is no word.
    return re.sub(r"(?<=[a-z])2$", "", name).replace("_", " ").strip()


def catalogue(emoji: list[dict], cards: dict[str, str]) -> dict[str, dict]:
    """`{codepoint: {"name", "text", "aliases", "category", "subcategory"}}`, base emoji only."""
    rows = {}
    for entry in emoji:
        codepoint = codepoint_of(entry["unified"])
        rows[codepoint] = {
            "name": short_name(entry, cards.get(codepoint)),
            "text": entry["name"].lower(),
            "aliases": entry["short_names"],
            "category": entry["category"],
            "subcategory": entry["subcategory"],
        }
    return rows


def kept(rows: dict[str, dict], cards: dict[str, str], keep: str) -> set[str]:
    """The codepoints an archive holds: every one, the things (cards among them), or the cards."""
    if keep == "all":
        return set(rows)
    if keep == "cards":
        return set(cards)
    return set(cards) | {c for c, row in rows.items() if THINGS.match(row["subcategory"])}


def rasterise(data: bytes, suffix: str) -> Image.Image:
    """A picture's file as a 64 x 64 RGBA image; larger ones are shrunk on premultiplied colour."""
    if suffix == ".svg":
        text = data.decode("utf-8")
        data = bytes(
            tool_package("resvg_py").svg_to_bytes(svg_string=text, width=SIZE, height=SIZE)
        )
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    if image.size != (SIZE, SIZE):
        # Premultiplied ("RGBa"): the colour of transparent pixels must not bleed into the edge.
        shrunk = image.convert("RGBa").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        image = shrunk.convert("RGBA")
    return image


def palette_png(image: Image.Image, colors: int) -> bytes:
    """The image as an 8-bit palette PNG with alpha; at most `colors` entries, no metadata."""
    quantised = tool_package("imagequant").quantize_pil_image(
        image, dithering_level=0.0, max_colors=colors
    )
    pixels = np.asarray(quantised.convert("RGBA")).reshape(-1, 4)  # [64 * 64, 4]
    palette, index = np.unique(pixels, axis=0, return_inverse=True)
    order = np.argsort(palette[:, 3], kind="stable")  # opaque entries last need no alpha byte
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    palette, index = palette[order], rank[index.reshape(-1)].astype(np.uint8)
    rows = np.zeros((SIZE, 1 + SIZE), np.uint8)  # a filter byte (0: none) leads each row
    rows[:, 1:] = index.reshape(SIZE, SIZE)
    alpha = palette[palette[:, 3] < 255, 3]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, 8, 3, 0, 0, 0)),
        (b"PLTE", palette[:, :3].tobytes()),
        *([(b"tRNS", alpha.tobytes())] if len(alpha) else []),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
        for tag, body in chunks
    )


def write_tar(path: pathlib.Path, members: dict[str, bytes]) -> None:
    """Writes the members in sorted order with no times or owners: the same bytes every time."""
    partial = path.with_suffix(".partial")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(members):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(members[name]), 0, 0o644
            archive.addfile(info, io.BytesIO(members[name]))
    partial.replace(path)


def make_archive(
    artist: Artist, package: tarfile.TarFile, rows: dict[str, dict], cards: dict[str, str]
) -> dict[str, bytes]:
    """The members of one artist's archive; exits when the package lacks a card's picture."""
    wanted = kept(rows, cards, artist.keep)
    members: dict[str, bytes] = {}
    for info in package:
        path = pathlib.PurePosixPath(info.name)
        codepoint = codepoint_of(path.stem)
        if str(path.parent) != artist.folder or codepoint not in wanted:
            continue
        image = rasterise(package.extractfile(info).read(), path.suffix)
        row = {key: value for key, value in rows[codepoint].items() if key != "subcategory"}
        members[f"{codepoint}.png"] = palette_png(image, artist.colors)
        members[f"{codepoint}.json"] = json.dumps(row, ensure_ascii=False).encode()
    lacking = [name for code, name in cards.items() if f"{code}.png" not in members]
    if lacking:
        sys.exit(
            f"make_emoji_shards: {artist.package} has no picture for {lacking}; take those names "
            "out of card_names.txt"
        )
    return members


def read_cards(path: pathlib.Path) -> dict[str, str]:
    """`{codepoint: name}` of card_names.txt."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return {codepoint: name for name, codepoint in rows}


def main() -> None:
    """Writes every archive, prints the sizes, fails when together they are over the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="folder for npm packages")
    parser.add_argument("--out", type=pathlib.Path, default=REPOSITORY / "vla_jax/assets/emoji")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    for name in TOOL_PACKAGES:
        tool_package(name)
    cards = read_cards(arguments.out / "card_names.txt")
    with fetch(ARTISTS[METADATA[0]], arguments.cache) as package:
        rows = catalogue(json.load(package.extractfile(METADATA[1])), cards)
    report = {}
    for name, artist in ARTISTS.items():
        with fetch(artist, arguments.cache) as package:
            members = make_archive(artist, package, rows, cards)
        path = arguments.out / f"{name}.tar"
        write_tar(path, members)
        report[name] = {"pictures": len(members) // 2, "bytes": path.stat().st_size}
        print(f"{path}: {report[name]}", file=sys.stderr)
    total = sum(entry["bytes"] for entry in report.values())
    print(json.dumps({**report, "total_bytes": total}))
    if total > LIMIT:
        sys.exit(f"make_emoji_shards: {total} bytes together, expected at most {LIMIT}")


if __name__ == "__main__":
    main()
