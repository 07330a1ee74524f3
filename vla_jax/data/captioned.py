"""Pictures with words, for `vla data inspect`: tar shards (WebDataset) and LLaVA-style JSON."""

from __future__ import annotations

import collections
import json
import os

import numpy as np

from vla_jax import plugin, types
from vla_jax.data import recordings
from vla_jax.data.sources import _files, _picture_row, _tar, image_text, llava

LOOKED_AT = 200  # samples whose words are read, evenly spaced
SAMPLES, SIZES = 5, 12


def kind_at(path: str | os.PathLike) -> str | None:
    """ "tar" or "llava", what lies at `path`; None for neither. Looks at names only."""
    name = _files.name(os.fspath(path)).lower()
    if name.endswith((".json", ".jsonl")):
        return "llava" if _files.is_file(path) else None
    if name.endswith(".tar"):
        return "tar"
    return (
        "tar"
        if _files.is_dir(path) and any(n.endswith(".tar") for n in _files.names(path))
        else None
    )


def summarize(path: str | os.PathLike) -> dict:
    """The data set at `path` as JSON: kind, samples, what they consist of, some words and sizes.

    Raises UserError where nothing of either kind lies there, and for a broken file.
    """
    path = os.fspath(path)
    return _llava(path) if kind_at(path) == "llava" else _shards(path)


def text(found: dict) -> str:
    """What `summarize` found, as text."""
    counts = {k: v for k, v in found.items() if isinstance(v, int)}
    told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    lines = [f"{found['path']}: {found['kind']}, {told}"]
    for name, count in found.get("endings", {}).items():
        lines.append(f"  .{name}: {count} samples")
    if found.get("sizes"):
        lines.append(f"  pictures of {', '.join(f'{h} x {w}' for h, w in found['sizes'])}")
    for name, share in found.get("fields", {}).items():
        lines.append(f"  JSON field {name}: in {share:.0%} of those looked at")
    lines += [f"  says: {said!r}" for said in found["language_samples"]]
    return "\n".join(lines)


def pictures(path: str | os.PathLike, count: int) -> list[tuple[str, np.ndarray]]:
    """(caption, uint8 [height, width, 3]) of evenly spaced samples of tar shards, for a sheet."""
    path = os.fspath(path)
    if kind_at(path) != "tar":
        raise plugin.UserError(
            f"{path}: its pictures lie elsewhere; contact sheets are of tar shards and of episodes"
        )
    shards = _tar.Shards(_tar.find(path, path))
    return [
        ("; ".join(_words(shards, i)[0][:1]), _picture(shards, i))
        for i in recordings.evenly(len(shards), count)
    ]


def _shards(path: str) -> dict:
    shards = _tar.Shards(_tar.find(path, path))
    fields, said, without = collections.Counter(), [], 0
    chosen = recordings.evenly(len(shards), LOOKED_AT)
    for i in chosen:
        words, names = _words(shards, i)
        fields.update(names)
        said += words[:1]
        without += not words
    sizes = {
        _picture(shards, i).shape[:2]
        for i in recordings.evenly(len(shards), SIZES)
        if set(shards.members(i)) & set(image_text.PICTURES)
    }
    pictured, worded = shards.have(image_text.PICTURES), shards.have(image_text.CAPTIONS)
    return {
        "path": path,
        "kind": "tar shards of pictures with captions",
        "shards": len(shards.paths),
        "samples": len(shards),
        "without_a_picture": int((~pictured).sum()),
        "without_a_caption_file": int((~worded).sum()),
        "looked_at": len(chosen),
        "without_a_caption_among_them": without,
        "endings": {e: int((shards.size[:, j] >= 0).sum()) for j, e in enumerate(shards.endings)},
        "fields": {name: n / len(chosen) for name, n in sorted(fields.items())},
        "sizes": [list(size) for size in sorted(sizes)],
        "language_samples": list(dict.fromkeys(said))[:SAMPLES],
    }


def _words(shards: _tar.Shards, i: int) -> tuple[list[str], list[str]]:
    """(the captions of a sample as `image_text` finds them by itself, the names of JSON fields)."""
    found, names = [], []
    for ending in image_text.CAPTIONS:
        if ending not in shards.members(i):
            continue
        try:
            said = shards.read(i, ending).decode()
            record = json.loads(said) if ending == "json" else {"caption": said}
        except ValueError as error:
            if isinstance(error, plugin.UserError):
                raise
            where = f"{shards.where(i)}.{ending}"
            raise plugin.UserError(f"{where}: no UTF-8 text, or no JSON ({error})") from error
        if ending == "json" and isinstance(record, dict):
            names = list(record)
        for name in ("caption", "text"):
            value = record.get(name) if isinstance(record, dict) else None
            values = value if isinstance(value, list) else [value]
            found += [" ".join(v.split()) for v in values if isinstance(v, str) and v.strip()]
    return found, names


def _picture(shards: _tar.Shards, i: int) -> np.ndarray:
    ending = next((e for e in image_text.PICTURES if e in shards.members(i)), None)
    if ending is None:
        raise plugin.UserError(f"{shards.where(i)}: no picture, it has {list(shards.members(i))}")
    return _picture_row.decoded(shards.read(i, ending), f"{shards.where(i)}.{ending}")


def _llava(path: str) -> dict:
    context = types.SourceContext(name=path, stream="", image_sizes={"primary": (1, 1)})
    folder = _files.parent(path)
    source = llava.make(context, path=path, images=folder, holdout=0.0, text_only="leave_out")
    chosen = recordings.evenly(len(source), LOOKED_AT)
    turns = [source.turn(i) for i in chosen]
    pictured = {str(record.get("image")) for _, _, record, _ in turns}
    fields = collections.Counter(name for _, _, record, _ in turns for name in record)
    return {
        "path": path,
        "kind": "LLaVA-style JSON of questions about pictures",
        "questions": len(source),
        "records_without_a_picture": source.summary().get("left_out", 0),
        "looked_at": len(chosen),
        "pictures_among_them": len(pictured),
        "fields": {name: n / len(chosen) for name, n in sorted(fields.items())},
        "language_samples": [f"{asked} → {answer}" for asked, answer, _, _ in turns[:SAMPLES]],
    }
