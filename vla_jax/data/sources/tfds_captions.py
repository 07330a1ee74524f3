"""Pictures with captions from TFDS folders (TFRecord or array_record), read without TensorFlow.

    image                     one picture per record
    caption, captions/text    one text, or several of which each row draws one

coco_captions, laion400m and the like have that form; of a data set with other names, say them. Rows
are those of image_text.py. Where each record lies is noted once, from the headers of the records
alone, beside the data or where RLDS indexes lie. A shard under GZIP is unpacked there, once.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import threading
from collections.abc import Sequence

import numpy as np

from vla_jax import plugin, types
from vla_jax.data.sources import (
    _example,
    _files,
    _index_build,
    _picture_row,
    _rlds_folder,
    _rlds_table,
    _tar,
    _tfrecord,
    image_text,
)
from vla_jax.data.sources._rlds_folder import Folder

DEBUG: dict = {}
CAPTIONS = ("caption", "captions/text", "captions", "text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading(image_text.Reading):
    """How records become samples; see also image_text.Reading.

    Attributes:
      image: the feature that holds the picture.
      captions: features to take captions from, those that there are.
    """

    image: str = "image"
    captions: tuple[str, ...] = CAPTIONS


class Captions(image_text.ImageText):
    """An IndexedSource of a TFDS data set's captioned pictures; `make` says what it is made of."""

    def spoken(self, index: int) -> tuple[str, ...]:
        """The captions of a record, of which there may be none."""
        found, columns = [], self._shards.columns(int(self._samples[index]))
        for name in self._reading.captions:
            texts = columns.get(name, [])
            found += [texts] if isinstance(texts, str) else texts
        return tuple(line for text in found if (line := " ".join(str(text).split())))

    def picture(self, index: int) -> np.ndarray:
        """uint8 [height, width, 3] as it is stored; UserError for a broken or absent one."""
        return self._picture(int(self._samples[index]))

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of a record; UserError when it has none."""
        sample, lines = int(self._samples[index]), self.spoken(index)
        if not lines:
            raise plugin.UserError(
                f"{self._shards.where(sample)}: no caption: {list(self._reading.captions)} are "
                "empty; remove this record, or bad_samples='skip'"
            )
        return lines

    def _picture(self, sample: int) -> np.ndarray:
        name = self._reading.image
        where = f"{self._shards.where(sample)}: {name}"
        data = self._shards.columns(sample).get(name)
        if not data:
            raise plugin.UserError(f"{where}: no picture; remove this record")
        return _picture_row.decoded(data, where)


def make(context, *, path: str, split: str = "train", **reading: Reading) -> Captions:
    """A source of captioned pictures for the vl stream.

    Args:
      context: SourceContext; with `train` False the held-out pictures, without augmentation.
      path: the folder with dataset_info.json, or the one above its single version.
      split: a split or slice as TFDS means it.
      reading: image, captions, view, targets, holdout, …: see Reading.

    Raises:
      UserError: no such folder, split or shard; a data set without such features; a broken shard;
        no picture left; an argument out of range.
    """
    made = Reading.make(context.name, reading)
    if made.access != "random":
        raise plugin.UserError(
            f"{context.name}: access={made.access!r}: expected 'random' of a TFDS folder; tar "
            "shards (image_text) are read in runs"
        )
    folder = _rlds_folder.open_folder(path, of_episodes=False)
    made = dataclasses.replace(made, captions=_named(folder, made))
    records = Records(folder, split, (made.image, *made.captions), made.index_dir)
    samples = np.flatnonzero(_picture_row.part_of(context, path, records.share, made.holdout))
    return Captions(context, records, samples, made)


def found_in(folder: Folder) -> tuple[str, tuple[str, ...]] | None:
    """(the feature with the picture, those with captions) that a reader finds by itself.

    Where the features have other names: the first of each kind. None of a data set of another form.
    """
    features = folder.features
    pictures = [name for name, f in features.items() if f.kind == "image" and not f.rank]
    spoken = _spoken(folder)
    if not pictures or not spoken or any(name.startswith("steps/") for name in features):
        return None
    usual = tuple(name for name in CAPTIONS if name in spoken)
    return (Reading.image if Reading.image in pictures else pictures[0]), usual or spoken[:1]


def _spoken(folder: Folder) -> tuple[str, ...]:
    return tuple(n for n, f in folder.features.items() if f.dtype == "string" and f.rank < 2)


def texts(
    *,
    path: str,
    split: str = "train",
    image: str = "image",
    captions: Sequence[str] = CAPTIONS,
    holdout: float = 0.1,
    bad_samples: str = "error",
    index_dir: str | None = None,
) -> list[str]:
    """The training captions, what a text tokenizer may be trained on; arguments as in `make`."""
    context = types.SourceContext(name="texts", stream="", image_sizes={"primary": (1, 1)})
    how = dict(captions=captions, holdout=holdout, bad_samples=bad_samples, index_dir=index_dir)
    return make(context, path=path, split=split, image=image, **how).texts()


def _named(folder: Folder, reading: Reading) -> tuple[str, ...]:
    """The captions that the data set has; UserError without one, or without the picture."""
    image = folder.features.get(reading.image)
    if image is None or image.kind != "image" or image.rank:
        pictures = [name for name, f in folder.features.items() if f.kind == "image"]
        where = f"{folder.path}: image (one picture per record)"
        raise plugin.UserError(plugin.unknown(where, reading.image, pictures))
    spoken = _spoken(folder)
    found = tuple(name for name in reading.captions if name in spoken)
    if not found:
        where = f"{folder.path}: captions"
        raise plugin.UserError(plugin.unknown(where, ", ".join(reading.captions), spoken))
    return found


class Records:
    """Where a split's records lie, and what stands in them; pickled without open files.

    Attributes:
      share: float64 [S] in [0, 1), a hash of the shard's name and the record's number.
    """

    def __init__(self, folder: Folder, split: str, names: Sequence[str], index_dir: str | None):
        self._folder, self._names = folder, tuple(names)
        pieces = folder.pieces(split)
        self._shards = _index_build.shards(folder, {p.path: p.count for p in pieces}, index_dir)
        found = [_places(folder, shard) for shard in self._shards]
        places = [where for where, _ in found]
        self._files = [(path, _files.stat(path)) for _, path in found]  # that are read
        known = {shard.path: i for i, shard in enumerate(self._shards)}
        chosen = [(known[p.path], np.arange(p.first, p.last)) for p in pieces]
        self._shard = np.concatenate([np.full(len(n), i, np.int32) for i, n in chosen])
        self._number = np.concatenate([n for _, n in chosen])
        self._place = np.concatenate([places[i][n] for i, n in chosen])  # [S, 2]
        self.share = np.concatenate([_shares(self._shards[i].path, n) for i, n in chosen])
        self._held = threading.local()

    def __len__(self) -> int:
        return len(self._number)

    def __getstate__(self):
        return {k: v for k, v in vars(self).items() if k != "_held"}

    def __setstate__(self, kept):
        vars(self).update(kept, _held=threading.local())

    def where(self, sample: int) -> str:
        """File and record of a sample, for messages."""
        return f"{self._shards[self._shard[sample]].path}: record {self._number[sample]}"

    def fingerprint(self, samples: np.ndarray) -> str:
        """A hash of which records they are, and of the files that hold them."""
        names = [(_files.name(s.path), s.stamp.size, s.count) for s in self._shards]
        told = repr((names, self._names)).encode()
        for part in (self._shard, self._number):
            told += np.ascontiguousarray(part[samples]).tobytes()
        return hashlib.blake2b(told, digest_size=16).hexdigest()

    def columns(self, sample: int) -> dict:
        """Feature -> text, list of texts, or the bytes of the picture; UserError if broken.

        The record read last is kept by each thread: its caption and picture are asked for in turn.
        """
        if getattr(self._held, "sample", None) != sample:
            data = self._record(sample)
            found = _rlds_folder.decode(self._folder, self._names, data, self.where(sample))
            self._held.columns = {
                name: _bytes(value, data) if isinstance(value, _example.Spans) else value
                for name, value in found.items()
            }
            self._held.sample = sample
        return self._held.columns

    def _record(self, sample: int) -> bytes:
        number, file = int(self._number[sample]), self._files[self._shard[sample]]
        reader = _reader(*file, self._folder.file_format, os.getpid())
        if self._folder.file_format != "tfrecord":
            return reader.record(number)
        return _tfrecord.record(reader.file, number, *self._place[sample].tolist())


def _bytes(spans: _example.Spans, data: bytes) -> bytes:
    parts = spans.read(data)
    return parts[0] if parts else b""


@functools.lru_cache(maxsize=256)
def _reader(path: str, stamp: _files.Stamp, file_format: str, process: int):
    del process
    return _rlds_folder.READERS[file_format].Reader(path, stamp)


def _places(folder: Folder, shard: _index_build.Shard) -> tuple[np.ndarray, str]:
    """(int64 [records, 2], the offset and length of each in a file, that file).

    Zeros where the format finds them itself.
    """
    if folder.file_format != "tfrecord":
        return np.zeros((shard.count, 2), np.int64), shard.path
    told = json.dumps([shard.path, shard.stamp.size, shard.stamp.version])
    key = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
    tables = _files.join(_files.parent(shard.target), "tables")
    local = not _files.is_url(tables) and _files.writable(tables)
    place = tables if local else _rlds_table.cached(tables)
    copy = _files.join(_files.parent(shard.target), f"{_files.name(shard.path)}-{key[:16]}.plain")

    def make() -> tuple[dict, dict]:
        file = _files.File(shard.path, shard.stamp)
        packed = _tfrecord.is_gzip(file)
        if packed:
            _check_writable(shard, copy)
        found = _tfrecord.whole(shard.path) if packed else _tfrecord.places(file)
        _rlds_folder.check_count(shard.path, len(found), shard.count)
        return {"places": np.asarray(found, np.int64).reshape(-1, 2)}, {"packed": packed}

    arrays, about = _rlds_table.kept(os.path.join(place, f"records-{key}.safetensors"), make)
    if not about.get("packed", False):  # older tables, made before GZIP was read, do not say
        return np.asarray(arrays["places"]), shard.path
    if not _files.is_file(copy):
        _check_writable(shard, copy)
        packed = _files.File(shard.path, shard.stamp)
        _files.write(copy, lambda local: _tfrecord.unpack(packed, local))
    return np.asarray(arrays["places"]), copy


def _check_writable(shard: _index_build.Shard, copy: str) -> None:
    if not _files.writable(_files.parent(copy)):
        raise plugin.UserError(
            f"{shard.path}: compressed by GZIP, where no record can be read alone, and "
            f"{_files.parent(copy)}, where its unpacked copy would lie, cannot be written; name a "
            f"folder that can: index_dir=, or the environment {_index_build.ENVIRONMENT}"
        )


def _shares(path: str, numbers: np.ndarray) -> np.ndarray:
    name = _files.name(path)
    return np.asarray([_tar.share(f"{name}__{n}".encode()) for n in numbers.tolist()], np.float64)
