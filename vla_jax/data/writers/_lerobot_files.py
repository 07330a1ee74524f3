"""The files of a LeRobot v3.0 data set: data, videos, tasks, episodes, info (peers.md §2.2).

Several episodes share a file until it is large; a data file has one row group per episode, and an
episode begins in its video file at `from_timestamp`, with a key frame.
"""

from __future__ import annotations

import fractions
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_jax.plugin import UserError

FILES_PER_CHUNK = 1000
DATA_MB, VIDEO_MB = 100, 200
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
# codec -> (PyAV's encoder, what LeRobot calls it, options); a key frame at every second frame, and
# no B frames: a decoder that must reorder gives out a frame only after the next.
CODECS = {
    "h264": ("libx264", "h264", {"g": "2", "bf": "0", "crf": "18", "preset": "medium"}),
    "av1": ("libsvtav1", "av1", {"g": "2", "crf": "30", "preset": "12"}),
}


class DataFiles:
    """Parquet files of the steps, one row group per episode."""

    def __init__(self, root: pathlib.Path, first: int):
        self._root, self._number, self._writer, self._size = root, first, None, 0

    def add(self, table: pa.Table) -> tuple[int, int]:
        """Writes an episode's steps: (chunk_index, file_index)."""
        if self._writer is not None and self._size > DATA_MB * 2**20:
            self.close()
            self._number += 1
        place = divmod(self._number, FILES_PER_CHUNK)
        if self._writer is None:
            path = self._root / DATA.format(chunk_index=place[0], file_index=place[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer, self._size = _parquet(path, table.schema), 0
        self._writer.write_table(table, row_group_size=len(table))
        self._size += table.nbytes
        return place

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class VideoFiles:
    """The mp4 files of one camera."""

    def __init__(self, root: pathlib.Path, key: str, first: int, fps: float, codec: str):
        self._root, self._key, self._number = root, key, first
        self._rate = fractions.Fraction(fps).limit_denominator(1001)
        os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder's banner; errors are still told
        self._encoder, _, self._options = CODECS[codec]
        self._container, self._stream, self._frames, self._size = None, None, 0, 0

    def add(self, pictures: Iterable[np.ndarray]) -> tuple[int, int, float, float]:
        """Encodes an episode's frames: (chunk_index, file_index, from, to); times in s."""
        if self._container is not None and self._size > VIDEO_MB * 2**20:
            self.close()
            self._number += 1
        chunk, file = divmod(self._number, FILES_PER_CHUNK)
        first = self._frames if self._container is not None else 0
        for picture in pictures:
            if self._container is None:
                name = VIDEO.format(video_key=self._key, chunk_index=chunk, file_index=file)
                self._open(self._root / name, *picture.shape[:2])
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = self._frames, 1 / self._rate
            if self._frames == first:
                frame.pict_type = av.video.frame.PictureType.I
            self._mux(frame)
            self._frames += 1
        return chunk, file, float(first / self._rate), float(self._frames / self._rate)

    def close(self) -> None:
        """Ends the file."""
        if self._container is not None:
            self._mux(None)
            self._container.close()
            self._container = None

    def _mux(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            self._size += packet.size
            self._container.mux(packet)

    def _open(self, path: pathlib.Path, height: int, width: int) -> None:
        if height % 2 or width % 2:
            raise UserError(
                f"{self._key}: pictures of {height} x {width}, expected even sides (the video's "
                "colours are of every second pixel); resize them or write codec=None, images"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        self._frames, self._size = 0, 0
        self._container = av.open(str(path), "w", options={"movflags": "faststart"})
        self._stream = self._container.add_stream(self._encoder, rate=self._rate)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        self._stream.time_base, self._stream.options = 1 / self._rate, self._options


def numbers(values: np.ndarray) -> pa.Array:
    """A column [T] of scalars, or [T, n] of vectors as fixed-size lists."""
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def steps(columns: Mapping[str, np.ndarray], images: Mapping[str, list[bytes]]) -> pa.Table:
    """The table of an episode's steps, with what Hugging Face's datasets call its types."""
    arrays, kinds = {}, {}
    for name, values in columns.items():
        arrays[name] = numbers(values)
        dtype = "string" if values.dtype.kind == "U" else values.dtype.name
        kind = {"dtype": dtype, "_type": "Value"}
        if values.ndim == 2:
            kind = {"feature": kind, "length": values.shape[1], "_type": "List"}
        kinds[name] = kind
    for name, encoded in images.items():
        type_ = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        rows = [
            {"bytes": data, "path": f"frame-{number:06d}.png"}
            for number, data in enumerate(encoded)
        ]
        arrays[name], kinds[name] = pa.array(rows, type_), {"_type": "Image"}
    known = json.dumps({"info": {"features": kinds}})
    return pa.table(arrays).replace_schema_metadata({"huggingface": known})


def write_episodes(root: pathlib.Path, number: int, rows: Sequence[Mapping]) -> None:
    """Writes one file of meta/episodes: what is said of each episode, its statistics among it."""
    chunk, file = divmod(number, FILES_PER_CHUNK)
    path = root / EPISODES.format(chunk_index=chunk, file_index=file)
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
    table = pa.Table.from_pylist([{**row, **place} for row in rows])
    with _parquet(path, table.schema) as writer:
        writer.write_table(table)


def write_tasks(root: pathlib.Path, tasks: Mapping[str, int]) -> None:
    """Writes meta/tasks.parquet as pandas would, with the text as the frame's index."""
    index = "__index_level_0__"

    def column(name, field, kind, dtype, metadata=None):
        return {
            "name": name,
            "field_name": field,
            "pandas_type": kind,
            "numpy_type": dtype,
            "metadata": metadata,
        }

    pandas = {
        "index_columns": [index],
        "column_indexes": [column(None, None, "unicode", "object", {"encoding": "UTF-8"})],
        "columns": [
            column("task_index", "task_index", "int64", "int64"),
            column(None, index, "unicode", "object"),
        ],
        "attributes": {},
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.3.3",
    }
    numbered = pa.array(list(tasks.values()), pa.int64())
    table = pa.table({"task_index": numbered, index: pa.array(list(tasks), pa.string())})
    (root / "meta").mkdir(exist_ok=True)
    path = root / "meta/tasks.parquet"
    path.unlink(missing_ok=True)  # it may be a hard link to the data set that is added to
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


def write_json(path: pathlib.Path, content: Mapping) -> None:
    """Writes it as LeRobot does."""
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False))


def video_info(height: int, width: int, fps: float, codec: str) -> dict:
    """The entry `info` of a video feature."""
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": CODECS[codec][1],
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
    }


def _parquet(path: pathlib.Path, schema: pa.Schema) -> pq.ParquetWriter:
    how = dict(compression="snappy", use_dictionary=True, write_page_checksum=True)
    return pq.ParquetWriter(path, schema, **how)
