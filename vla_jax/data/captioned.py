"""Pictures with words, for `vla data inspect`: tars (WebDataset), TFDS folders, LLaVA's JSON."""

from __future__ import annotations

import collections
import json
import os

import numpy as np

from vla_jax import plugin, types
from vla_jax.data import recordings
from vla_jax.data.sources import (
    _files,
    _picture_row,
    _rlds_folder,
    _tar,
    image_text,
    llava,
    tfds_captions,
)

LOOKED_AT = 200  # samples whose words are read, evenly spaced
SAMPLES, SIZES = 5, 12


def kind_at(path: str | os.PathLike) -> str | None:
    """ "tar", "llava" or "tfds", what lies at `path`; None for none of them.

    Looks at names, and of a TFDS folder at its features: with steps they are episodes.
    """
    name = _files.name(os.fspath(path)).lower()
    if name.endswith((".json", ".jsonl")):
        return "llava" if _files.is_file(path) else None
    if name.endswith(".tar"):
        return "tar"
    if _files.is_dir(path) and any(n.endswith(".tar") for n in _files.names(path)):
        return "tar"
    versions = _rlds_folder.versions(path) if _files.is_dir(path) else ()
    if len(versions) == 1 and _files.is_file(_files.join(versions[0], _rlds_folder.FEATURES)):
        folder = _rlds_folder.open_folder(versions[0], of_episodes=False)
        return "tfds" if tfds_captions.found_in(folder) else None
    return None


def summarize(path: str | os.PathLike) -> dict:
    """The data set at `path` as JSON: kind, samples, what they consist of, some words and sizes.

    Raises UserError where nothing of these kinds lies there, and for a broken file.
    """
    path = os.fspath(path)
    return {"llava": _llava, "tfds": _tfds}.get(kind_at(path), _shards)(path)


def text(found: dict) -> str:
    """What `summarize` found, as text."""
    counts = {k: v for k, v in found.items() if isinstance(v, int)}
    told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
    lines = [f"{found['path']}: {found['kind']}, {told}"]
    for name, count in found.get("parts", {}).items():
        lines.append(f"  split {name}: {count} pictures")
    if "captions_from" in found:
        lines.append(
            f"  read as pictures: {found['picture_from']}, as captions: "
            f"{', '.join(found['captions_from'])}"
        )
        fields = {found["picture_from"], *found["captions_from"]}
        if not fields <= {tfds_captions.Reading.image, *tfds_captions.CAPTIONS}:
            lines.append(
                f"  name them: image={found['picture_from']!r}, "
                f"captions={tuple(found['captions_from'])!r}"
            )
    for name, said in found.get("features", {}).items():
        lines.append(f"  {name}: {said}")
    for name, count in found.get("endings", {}).items():
        lines.append(f"  .{name}: {count} samples")
    if found.get("sizes"):
        lines.append(f"  pictures of {', '.join(f'{h} x {w}' for h, w in found['sizes'])}")
    for name, share in found.get("fields", {}).items():
        lines.append(f"  JSON field {name}: in {share:.0%} of those looked at")
    lines += [f"  says: {said!r}" for said in found["language_samples"]]
    return "\n".join(lines)


def pictures(
    path: str | os.PathLike, count: int, split: str | None = None
) -> list[tuple[str, np.ndarray]]:
    """(caption, uint8 [height, width, 3]) of evenly spaced samples, for a sheet.

    `split` is of a TFDS folder (None: `train`, or the first). Raises UserError for LLaVA's JSON.
    """
    path, kind = os.fspath(path), kind_at(path)
    if kind == "llava":
        raise plugin.UserError(
            f"{path}: its pictures lie elsewhere; contact sheets are of tar shards, TFDS folders "
            "and episodes"
        )
    if kind == "tfds":
        source = _captions(path, split)
        chosen = recordings.evenly(len(source), count)
        return [("; ".join(source.spoken(i)[:1]), source.picture(i)) for i in chosen]
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


def _captions(path: str, split: str | None) -> tfds_captions.Captions:
    """All pictures of a split of a TFDS folder."""
    folder = _rlds_folder.open_folder(path, of_episodes=False)
    split = split or _default_split(folder)
    image, captions = tfds_captions.found_in(folder)
    context = types.SourceContext(name=path, stream="", image_sizes={"primary": (1, 1)})
    given = dict(image=image, captions=captions, holdout=0.0)
    return tfds_captions.make(context, path=folder.path, split=split, **given)


def _tfds(path: str) -> dict:
    folder = _rlds_folder.open_folder(path, of_episodes=False)
    parts = {name: sum(n for _, n in shards) for name, shards in folder.splits.items()}
    image, captions = tfds_captions.found_in(folder)
    found = {
        "path": path,
        "kind": f"TFDS folder of pictures with captions ({folder.name} {folder.version})",
        "name": folder.name,
        "version": folder.version,
        "file_format": folder.file_format,
        "pictures": sum(parts.values()),
        "parts": parts,
        "picture_from": image,
        "captions_from": list(captions),
        "features": {
            name: f"{f.kind} {f.dtype} {list(f.shape)}" for name, f in folder.features.items()
        },
        "language_samples": [],
    }
    if not any(parts.values()):
        return found
    source = _captions(path, _first_shard(folder))
    chosen = recordings.evenly(len(source), LOOKED_AT)
    spoken = [source.spoken(i) for i in chosen]
    said = [text for texts in spoken for text in texts[:1]]
    sizes = {source.picture(i).shape[:2] for i in recordings.evenly(len(source), SIZES)}
    return found | {
        "looked_at": len(chosen),
        "captions_of_them": sum(map(len, spoken)),
        "without_a_caption_among_them": sum(not texts for texts in spoken),
        "sizes": [list(size) for size in sorted(sizes)],
        "language_samples": list(dict.fromkeys(said))[:SAMPLES],
    }


def _first_shard(folder: _rlds_folder.Folder) -> str | None:
    """The slice of the split looked at that can be read without walking, or unpacking, the rest.

    None, all of it, where the format finds its records itself.
    """
    if folder.file_format != "tfrecord":
        return None
    split = _default_split(folder)
    return f"{split}[:{next(count for _, count in folder.splits[split] if count)}]"


def _default_split(folder: _rlds_folder.Folder) -> str:
    full = [name for name, shards in folder.splits.items() if sum(n for _, n in shards)]
    return recordings.default_split(full)


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
