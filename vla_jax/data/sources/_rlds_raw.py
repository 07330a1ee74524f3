"""Episodes of an RLDS folder as they were recorded: every field, decoded, in the source's names."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import cv2
import numpy as np

from vla_jax import plugin
from vla_jax.data import images
from vla_jax.data.sources import _example, _files, _rlds_folder, _rlds_record, _tfrecord
from vla_jax.data.sources._rlds_record import Feature


class Raw:
    """The recorded episodes of a split; `rlds.raw` makes it.

    Attributes:
      kind, name, version, file_format: "RLDS", and what dataset_info.json says.
      splits: name -> number of episodes.
      fields: name -> dict(kind="tensor|text|image", shape, dtype); -1 = differs or unknown.
    """

    kind = "RLDS"

    def __init__(self, path: _files.Path, split: str):
        self.folder = _rlds_folder.open_folder(path)
        self.path, self.name = self.folder.path, self.folder.name
        self.version, self.file_format = self.folder.version, self.folder.file_format
        self.splits = {
            name: sum(n for _, n in shards) for name, shards in self.folder.splits.items()
        }
        self.fields = {
            feature.name: {
                "kind": feature.kind,
                "shape": (-1,) * (feature.rank - feature.of_steps) + feature.shape,
                "dtype": feature.dtype,
            }
            for feature in self.folder.features.values()
        }
        self._places = [
            (piece.path, number)
            for piece in self.folder.pieces(split)
            for number in range(piece.first, piece.last)
        ]

    def __len__(self) -> int:
        return len(self._places)

    def ids(self) -> list[str]:
        """Each episode's file and number in it, as TFDS writes a tfds_id."""
        return [f"{_files.name(path)}__{number}" for path, number in self._places]

    def episode(
        self,
        index: int,
        fields: Sequence[str] | None = None,
        steps: Sequence[int] | None = None,
    ) -> dict[str, np.ndarray]:
        """Every field of one episode: arrays of T steps under `steps/`, text as str, images uint8.

        `fields`: those wanted, None = all. `steps`: those wanted of pictures, None = all. A ragged
        field is padded with zeros, its lengths stand beside it. Raises UserError for a corrupt
        record or picture, naming file, record, field and step; IndexError out of range.
        """
        path, number = self._places[index]
        where = f"{path}: record {number}"
        data = self._record(path, number)
        wanted = list(self.folder.features if fields is None else fields)
        for name in wanted:
            if name not in self.folder.features:
                raise plugin.UserError(
                    plugin.unknown(f"{self.path}: field", name, self.folder.features)
                )
        columns = _rlds_folder.decode(self.folder, wanted, data, where)
        checked = wanted if fields is None else columns  # a field asked for may be lacking alone
        if any(self.folder.features[name].of_steps for name in checked):
            _rlds_record.length(columns, where)
        return {
            name: self._array(name, value, data, where, steps)
            for name, value in sorted(columns.items())
        }

    def encoded(self, index: int, name: str) -> list[bytes]:
        """The pictures of a step field in the bytes that were stored, b"" where there is none.

        Raises UserError as `episode` does, and where a step has several of them.
        """
        path, number = self._places[index]
        where = f"{path}: record {number}"
        data = self._record(path, number)
        spans = _rlds_folder.decode(self.folder, [name], data, where).get(name)
        if spans is None:
            raise plugin.UserError(f"{where}: lacks {name}, which features.json promises")
        if spans.offsets.ndim != 1:
            raise plugin.UserError(f"{where}: {name}: several pictures at a step")
        return spans.read(data)

    def _array(self, name: str, value, data: bytes, where: str, steps) -> np.ndarray:
        if not isinstance(value, _example.Spans):
            return np.asarray(value)
        feature = self.folder.features[name]
        if steps is not None and feature.of_steps:
            value = value[np.asarray(steps, np.int64)]
        spans = _example.Spans(value.offsets.reshape(-1), value.lengths.reshape(-1))
        pictures = [
            decode(feature, part, f"{where}: {name}, picture {t}") if part else None
            for t, part in enumerate(spans.read(data))
        ]
        sizes = {picture.shape for picture in pictures if picture is not None}
        if len(sizes) > 1:
            raise plugin.UserError(f"{where}: {name}: pictures of several sizes {sorted(sizes)}")
        declared = [max(side, 0) for side in feature.shape] or [0, 0, 3]
        shape = sizes.pop() if sizes else tuple(declared)
        empty = np.zeros(shape, feature.dtype)
        stacked = np.stack([empty if picture is None else picture for picture in pictures])
        return stacked.reshape(value.offsets.shape + shape)[() if feature.rank else 0]

    def _record(self, path: str, number: int) -> bytes:
        reader = self._reader(path)
        if self.file_format != "tfrecord":
            return reader.record(number)
        if _tfrecord.is_gzip(reader.file):
            for place, (_, data) in enumerate(_tfrecord.scan(path)):
                if place == number and not isinstance(data, plugin.UserError):
                    return data
                if isinstance(data, plugin.UserError):
                    raise data
            _rlds_folder.check_count(path, place + 1, dict(self._counts())[path])
        places = self._offsets(path)
        if number >= len(places):
            _rlds_folder.check_count(path, len(places), dict(self._counts())[path])
        return _tfrecord.record(reader.file, number, *places[number])

    def _counts(self):
        return (shard for shards in self.folder.splits.values() for shard in shards)

    @functools.lru_cache(maxsize=8)  # noqa: B019  (a Raw lives as long as its program)
    def _reader(self, path: str):
        return self.folder.reader(path)

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def _offsets(self, path: str) -> list[tuple[int, int]]:
        return _tfrecord.places(self._reader(path).file)


def decode(feature: Feature, data: bytes, where: str) -> np.ndarray:
    """A picture as TFDS gives it: uint8 [height, width, 3], or of the declared channels.

    JPEGs are decoded by TensorFlow's own transform, so that every level is the one TFDS reads.
    Depth (uint16, one channel) keeps its numbers; float32 was stored as the bits of four channels
    (tfds core/features/image_feature.py). UserError for bytes that are no such picture.
    """
    try:
        if feature.dtype == "uint8" and feature.shape[-1:] in ((3,), ()):
            return images.decode(data, "tensorflow")
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if found is None:
            raise plugin.UserError(f"{len(data)} bytes that are no readable image")
    except plugin.UserError as error:
        raise plugin.UserError(f"{where}: {error}") from error
    found = found if found.ndim == 3 else found[..., None]
    if found.shape[-1] in (3, 4):  # OpenCV's blue comes first
        found = np.ascontiguousarray(found[..., [2, 1, 0, 3][: found.shape[-1]]])
    if feature.dtype == "float32":
        return found.view(np.float32)
    return found
