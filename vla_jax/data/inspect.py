"""What lies in a folder, for `vla data inspect`."""

from __future__ import annotations

import pathlib

import numpy as np

from vla_jax import plugin
from vla_jax.data import images
from vla_jax.data.sources import _example, _rlds_folder

SAMPLES = 5


def summarize(path: str | pathlib.Path) -> dict:
    """The data set at `path` as JSON: kind, splits, cameras, fields, ranges, instructions.

    Reads every record once (a corrupt one raises UserError). Numbers are of the whole first split.
    """
    folder = _rlds_folder.open_folder(path)
    splits = {}
    for split in folder.splits:
        splits[split] = _split(folder, split)
    return {
        "path": str(folder.path),
        "kind": "rlds",
        "name": folder.name,
        "version": folder.version,
        "file_format": folder.file_format,
        "splits": splits,
        "fields": {
            f.name: {"kind": f.kind, "shape": list(f.shape), "dtype": f.dtype}
            for _, f in sorted(folder.features.items())
        },
    }


def describe(path: str | pathlib.Path) -> str:
    """What lies at `path`, as text."""
    return text(summarize(path))


def text(found: dict) -> str:
    """What `summarize` found, as text."""
    lines = [
        f"{found['path']}: RLDS episodes of {found['name']} {found['version']} "
        f"({found['file_format']})"
    ]
    for name, split in found["splits"].items():
        low, high = split["shortest"], split["longest"]
        lines.append(
            f"split {name}: {split['episodes']} episodes, {split['steps']} steps ({low} to {high} "
            f"each), {split['shards']} shards, {split['instructions']} instructions"
        )
        for camera, entry in split["cameras"].items():
            black = " (black)" if entry["black"] else ""
            lines.append(f"  camera {camera}: {entry['format']} {entry['shape']}{black}")
        for instruction in split["language_samples"]:
            lines.append(f"  says: {instruction!r}")
        for column, entry in split["ranges"].items():
            spread = ", ".join(f"{a:.3g}..{b:.3g}" for a, b in zip(entry["min"], entry["max"]))
            lines.append(f"  {column} [{len(entry['min'])}]: {spread}")
    lines.append("fields:")
    for name, entry in found["fields"].items():
        lines.append(f"  {name}: {entry['kind']} {entry['dtype']} {entry['shape']}")
    return "\n".join(lines)


def _split(folder: _rlds_folder.Folder, split: str) -> dict:
    lengths, texts, ranges, cameras = [], {}, {}, {}
    readers = {piece.path: folder.reader(piece.path) for piece in folder.pieces(split)}
    for record in _rlds_folder.records(folder, split, lambda name: True):
        lengths.append(record.length)
        for name, value in record.columns.items():
            if isinstance(value, _example.Spans):
                if name not in cameras and len(value) and value.lengths[0]:
                    place = (int(value.offsets[0]), int(value.lengths[0]))
                    data = readers[record.path].read(record.number, record.offset, [place])[0]
                    cameras[name] = _camera(data, f"{record.where}: {name}")
            elif isinstance(value, list):
                if "language" in name or "instruction" in name:
                    texts.update(dict.fromkeys(value))
            elif name.startswith("steps/") and value.ndim == 2 and value.shape[1] <= 64:
                low, high = value.min(axis=0), value.max(axis=0)
                before = ranges.get(name, (low, high))
                ranges[name] = (np.minimum(before[0], low), np.maximum(before[1], high))
    return {
        "episodes": len(lengths),
        "steps": sum(lengths),
        "shortest": min(lengths, default=0),
        "longest": max(lengths, default=0),
        "shards": len(readers),
        "cameras": cameras,
        "instructions": len(texts),
        "language_samples": list(texts)[:SAMPLES],
        "ranges": {
            name: {"min": low.tolist(), "max": high.tolist()}
            for name, (low, high) in sorted(ranges.items())
        },
    }


def _camera(data: bytes, where: str) -> dict:
    try:
        image = images.decode(data)
    except plugin.UserError as error:
        raise plugin.UserError(f"{where}: {error}") from error
    kind = "jpeg" if data[:2] == b"\xff\xd8" else "png" if data[1:4] == b"PNG" else "other"
    return {"format": kind, "shape": list(image.shape), "black": bool(image.max() < 10)}
