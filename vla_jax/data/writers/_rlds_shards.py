"""Episodes in their source's names → array_record shards that TFDS reads, without TensorFlow.

    steps/<the source's name>           as recorded; names with LeRobot's dots keep them
    steps/is_first, steps/is_last       where the source has none
    episode_metadata/episode_id         where the source has none: what it calls the episode

A shard is written by one worker, whole or not at all; features.json and dataset_info.json have the
form of tensorflow_datasets 4.9 (core/features/feature.proto, core/proto/dataset_info.proto).
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.data import images, recordings
from vla_jax.data.writers import _shards, _tf_example, rlds
from vla_jax.data.writers._shards import Job, Part

PICTURES = ("jpeg", "png")
SUFFIX = "array_record"
CLASSES = "tensorflow_datasets.core.features."


def plan(job: Job, raw: recordings.Raw) -> dict:
    """Full name -> {from, kind, shape, dtype, encoding}: what each record will hold.

    Sizes are those of the first episode. Raises UserError for a field that RLDS has no place for.
    """
    fields = _shards.chosen(job, raw)
    plain = [name for name, field in fields.items() if not _shards.pictured(field)]
    pictures = [name for name in fields if name not in plain]
    index, found = _shards.first(job, raw, plain + pictures)
    leaves = {}
    for name in fields:
        steps = _shards.of_steps(raw, name)
        full = name if not steps or name.startswith(_shards.STEPS) else _shards.STEPS + name
        if name in pictures:
            if not steps:
                raise _shards.refuse(job, name, "a picture that is not of the steps")
            leaves[full] = _picture(job, raw, name, found[name])
        else:
            leaves[full] = _values(job, name, found[name], steps)
        leaves[full] |= {"from": name}
    flag = {"from": None, "kind": "tensor", "shape": [], "dtype": "bool", "encoding": "none"}
    for name in ("is_first", "is_last"):
        leaves.setdefault(f"{_shards.STEPS}{name}", flag)
    text = {"from": None, "kind": "text", "shape": [], "dtype": "string", "encoding": "none"}
    leaves.setdefault(_shards.EPISODE_ID, text)
    return leaves


def _picture(job: Job, raw: recordings.Raw, name: str, found: np.ndarray) -> dict:
    shape, dtype = found.shape[1:], found.dtype.name
    if len(shape) != 3:
        raise _shards.refuse(job, name, f"pictures of shape {shape}, several at a step")
    colour = dtype == "uint8" and shape[2] == 3
    if job.resize is not None and not colour:
        raise _shards.refuse(
            job, name, f"{dtype} {shape} is no colour picture, which can be resized"
        )
    keeps = hasattr(raw, "encoded") and raw.fields[name]["kind"] == "image"
    if keeps and job.resize is None and job.pictures is None:
        encoding = "kept"
    elif not colour and dtype not in ("uint8", "uint16"):
        raise _shards.refuse(job, name, f"pictures of {dtype}, which cannot be encoded again")
    else:
        encoding = (job.pictures or "jpeg") if colour else "png"
    declared = raw.fields[name]["shape"]
    known = len(declared) == 3 and min(declared) > 0
    sides = job.resize or (shape[:2] if known else (-1, -1))
    return {"kind": "image", "shape": [*sides, shape[2]], "dtype": dtype, "encoding": encoding}


def _values(job: Job, name: str, found: np.ndarray, steps: bool) -> dict:
    shape, kind = list(found.shape[1:] if steps else found.shape), found.dtype.kind
    if kind == "U":
        text = {"kind": "tensor" if shape else "text", "shape": shape, "dtype": "string"}
        return text | {"encoding": "none"}
    if kind not in "fiub":
        raise _shards.refuse(job, name, f"{found.dtype} is neither text nor numbers")
    exact = kind != "f" or found.dtype.itemsize <= 4  # tf.Example's floats have 32 bits
    encoding = "none" if exact else "bytes"
    return {"kind": "tensor", "shape": shape, "dtype": found.dtype.name, "encoding": encoding}


def write(job: Job, leaves: Mapping, part: Part, folder: pathlib.Path) -> dict:
    """Writes a shard: {"episodes", "steps", "bytes", "skipped": messages}."""
    from array_record.python import array_record_module

    raw = _shards.source(job, part.split)
    temporary = folder / f".{part.number:06d}"
    temporary.unlink(missing_ok=True)
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
    made = {"episodes": 0, "steps": 0, "bytes": 0, "skipped": []}
    for index in range(part.first, part.last):
        try:
            record, length = _record(job, leaves, raw, index)
        except plugin.UserError as error:
            if not _shards.is_left_out(job, error):
                raise
            made["skipped"].append(str(error))
            continue
        writer.write(record)
        made["episodes"] += 1
        made["steps"] += length
        made["bytes"] += len(record)
    writer.close()
    _shards.settle(temporary, _file(folder, part))
    return made


def _file(folder: pathlib.Path, part: Part) -> pathlib.Path:
    return folder / f"{part.number:06d}.{SUFFIX}"


def _record(job: Job, leaves: Mapping, raw: recordings.Raw, index: int) -> tuple[bytes, int]:
    """(the tf.Example of an episode, T)."""
    where = f"{job.path}: episode {raw.ids()[index]}"
    plain = [leaf["from"] for leaf in leaves.values() if leaf["from"] and leaf["kind"] != "image"]
    found = raw.episode(index, plain)
    steps = [name for name in plain if _shards.of_steps(raw, name)]
    length = len(_shards.held(where, found, steps[0])) if steps else recordings.length(raw, index)
    columns = {}
    for full, leaf in leaves.items():
        name = leaf["from"]
        if leaf["kind"] == "image":
            columns[full] = _encoded(job, leaf, raw, index, length)
        elif name is None:
            made = {"is_first": np.arange(length) == 0, "is_last": np.arange(length) == length - 1}
            added = made.get(full.removeprefix(_shards.STEPS))
            columns[full] = [raw.ids()[index].encode()] if added is None else added
        else:
            value = _shards.held(where, found, name)
            columns[full] = _column(f"{where}: {name}", leaf, value, length, name in steps)
    return _tf_example.serialize(columns), length


def _column(where: str, leaf: Mapping, values: np.ndarray, length: int, steps: bool):
    """Numbers, or a list of bytes, as TFDS stores them."""
    shape = (*([length] if steps else []), *leaf["shape"])
    text = leaf["dtype"] == "string"
    if values.shape != shape or (values.dtype.kind == "U" if text else values.dtype.name) != (
        True if text else leaf["dtype"]
    ):
        raise plugin.UserError(
            f"{where}: got {values.dtype} {list(values.shape)}, expected {leaf['dtype']} "
            f"{list(shape)} as in the first episode; leave it out (--without), or this episode "
            "(--bad-episodes skip)"
        )
    if text:
        return [str(value).encode() for value in values.reshape(-1)]
    if leaf["encoding"] == "bytes":
        rows = values if steps else [values]
        return [np.ascontiguousarray(row).tobytes() for row in rows]
    return values


def _encoded(job: Job, leaf: Mapping, raw: recordings.Raw, index: int, length: int) -> list[bytes]:
    if leaf["encoding"] == "kept":
        return raw.encoded(index, leaf["from"])
    return [
        rlds.encode(image) if leaf["encoding"] == "jpeg" else images.png(image)
        for image in _shards.films(job, raw, index, leaf["from"], length)
    ]


def finish(
    job: Job,
    leaves: Mapping,
    parts: Sequence[Part],
    made: Sequence[Mapping],
    folder: pathlib.Path,
    built: pathlib.Path,
) -> None:
    """Names the shards of `folder` as TFDS does, in `built`, and says what they hold."""
    built.mkdir()
    splits = []
    for split in dict.fromkeys(part.split for part in parts):
        full = [
            (part, told)
            for part, told in zip(parts, made, strict=True)
            if part.split == split and told["episodes"]
        ]
        name = recorded_name(split)
        for number, (part, _) in enumerate(full):
            target = f"{job.name}-{name}.{SUFFIX}-{number:05d}-of-{len(full):05d}"
            _shards.link(_file(folder, part), built / target)
        splits.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": name,
                "numBytes": str(sum(told["bytes"] for _, told in full)),
                "shardLengths": [str(told["episodes"]) for _, told in full],
            }
        )
    about = {
        "description": f"Robot episodes of {job.path}, converted by vla_jax.",
        "fileFormat": SUFFIX,
        "moduleName": "vla_jax",
        "name": job.name,
        "releaseNotes": {"1.0.0": "Converted."},
        "splits": splits,
        "version": "1.0.0",
    }
    (built / "features.json").write_text(json.dumps(_tree(leaves), indent=4))
    (built / "dataset_info.json").write_text(json.dumps(about, indent=2))


def recorded_name(split: str) -> str:
    """What a split or slice is called where it is written: `train` of "train[:95%]"."""
    return split.split("[")[0].split("+")[0].strip()


def _tree(leaves: Mapping) -> dict:
    nested: dict = {}
    for full, leaf in sorted(leaves.items()):
        *above, last = full.split("/")
        place = nested
        for name in above:
            place = place.setdefault(name, {})
        place[last] = _node(leaf)
    return _features({name: _branch(entry, name == "steps") for name, entry in nested.items()})


def _branch(entry: dict, steps: bool = False) -> dict:
    if "pythonClassName" in entry:
        return entry
    made = _features({name: _branch(child) for name, child in entry.items()})
    if not steps:
        return made
    sequence = {"feature": made, "length": "-1"}
    return {"pythonClassName": f"{CLASSES}dataset_feature.Dataset", "sequence": sequence}


def _features(children: Mapping) -> dict:
    of = f"{CLASSES}features_dict.FeaturesDict"
    return {"pythonClassName": of, "featuresDict": {"features": children}}


def _node(leaf: Mapping) -> dict:
    shape = {"dimensions": [str(side) for side in leaf["shape"]]} if leaf["shape"] else {}
    if leaf["kind"] == "text":
        return {"pythonClassName": f"{CLASSES}text_feature.Text", "text": {}}
    if leaf["kind"] == "image":
        body = {"shape": shape, "dtype": leaf["dtype"]}
        if leaf["encoding"] != "kept":
            body["encodingFormat"] = leaf["encoding"]
        return {"pythonClassName": f"{CLASSES}image_feature.Image", "image": body}
    body = {"shape": shape, "dtype": leaf["dtype"], "encoding": leaf["encoding"]}
    of = "tensor_feature.Tensor" if leaf["shape"] else "scalar.Scalar"
    return {"pythonClassName": CLASSES + of, "tensor": body}
