"""Small LeRobot data sets written with pyarrow and PyAV alone, apart from the project's writer.

Episode e, step t: state = [e, t/10, -t], action = [e, t, -t, t odd], every picture one grey level.
"""

import fractions
import io
import json
import pathlib

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS = 10
TASKS = ("touch the dog", "touch the cat")
CAMERA = "observation.images.top"
ROW = dict(
    embodiment="arm",
    action_space="xyz_gripper",
    views={"primary": CAMERA},
    action="action",
    proprio={"hand": "observation.state"},
    language="task",
)
STANDARDIZER = dict(type="rows", row=ROW)


def picture(episode: int, step: int, size: int = 16) -> np.ndarray:
    """uint8 [size, size, 3]."""
    return np.full((size, size, 3), 20 + 10 * step + 60 * (episode % 3), np.uint8)


def video(path: pathlib.Path, pictures, codec: str = "libx264", group: int = 2) -> None:
    """An mp4 of pictures at FPS, a key frame every `group`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=FPS)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.time_base = "yuv420p", fractions.Fraction(1, FPS)
        stream.options = {"crf": "10", "g": str(group)}
        for number, image in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, fractions.Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def columns(episode: int, length: int, first: int) -> dict:
    """The columns of an episode, as pyarrow arrays."""
    t = np.arange(length)
    state = np.stack([np.full(length, episode), t / 10, -t], 1).astype(np.float32)
    action = np.stack([np.full(length, episode), t, -t, t % 2], 1).astype(np.float32)

    def vectors(values):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])

    return {
        "observation.state": vectors(state),
        "action": vectors(action),
        "timestamp": pa.array((t / FPS).astype(np.float32)),
        "frame_index": pa.array(t),
        "episode_index": pa.array(np.full(length, episode)),
        "index": pa.array(first + t),
        "task_index": pa.array(np.full(length, episode % 2)),
    }


def features(kind: str, size: int = 16) -> dict:
    """The entry `features` of meta/info.json."""

    def numbers(dtype, *shape):
        return {"dtype": dtype, "shape": list(shape), "names": None}

    found = {
        "observation.state": numbers("float32", 3),
        "action": numbers("float32", 4),
        CAMERA: {"dtype": kind, "shape": [size, size, 3], "names": ["height", "width", "channels"]},
        "timestamp": numbers("float32", 1),
    }
    for name in ("frame_index", "episode_index", "index", "task_index"):
        found[name] = numbers("int64", 1)
    return found


def write_v21(path, lengths=(7, 7, 7, 7), kind="video", codec="libx264", change=None) -> str:
    """A v2.1 set; `change(episode, columns)` may alter the columns of an episode.

    Its parquet pages have checksums, which LeRobot's own have not.
    """
    path = pathlib.Path(path)
    (path / "meta").mkdir(parents=True)
    (path / "data" / "chunk-000").mkdir(parents=True)
    for episode, length in enumerate(lengths):
        found = columns(episode, length, sum(lengths[:episode]))
        pictures = [picture(episode, t) for t in range(length)]
        if kind == "video":
            video(path / f"videos/chunk-000/{CAMERA}/episode_{episode:06d}.mp4", pictures, codec, 4)
        else:
            found[CAMERA] = pa.array(
                [{"bytes": png(image), "path": None} for image in pictures],
                pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            )
        if change is not None:
            found = change(episode, found) or found
        file = path / f"data/chunk-000/episode_{episode:06d}.parquet"
        pq.write_table(pa.table(found), file, write_page_checksum=True)
    info = {
        "codebase_version": "v2.1",
        "robot_type": "arm",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": 2,
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/"
        "episode_{episode_index:06d}.mp4",
        "features": features(kind),
    }
    (path / "meta/info.json").write_text(json.dumps(info))
    lines = {
        "episodes": [
            {"episode_index": e, "tasks": [TASKS[e % 2]], "length": n}
            for e, n in enumerate(lengths)
        ],
        "tasks": [{"task_index": i, "task": text} for i, text in enumerate(TASKS)],
    }
    for name, rows in lines.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (path / f"meta/{name}.jsonl").write_text(text)
    return str(path)


def write_v30(path, lengths=(7, 7, 7, 7), files=(0, 1, 1, 1), change=None, tasks=TASKS) -> str:
    """A v3.0 set with pictures in its parquet files, each one row group; arguments as above.

    `files`: the data file of each episode. `tasks` may be bytes.
    """
    path, parts = pathlib.Path(path), {}
    for episode, length in enumerate(lengths):
        found = columns(episode, length, sum(lengths[:episode]))
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        pictures = [{"bytes": png(picture(episode, t)), "path": None} for t in range(length)]
        found[CAMERA] = pa.array(pictures, kind)
        if change is not None:
            found = change(episode, found) or found
        parts.setdefault(files[episode], []).append(pa.table(found))
    for number, tables in parts.items():
        file = path / f"data/chunk-000/file-{number:03d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(tables), file, write_page_checksum=True)
    (path / "meta/episodes/chunk-000").mkdir(parents=True)
    numbers = range(len(lengths))
    listed = {
        "episode_index": list(numbers),
        "length": list(lengths),
        "data/chunk_index": [0 for _ in numbers],
        "data/file_index": list(files),
    }
    pq.write_table(pa.table(listed), path / "meta/episodes/chunk-000/file-000.parquet")
    texts = pa.array([t if isinstance(t, bytes) else t.encode() for t in tasks], pa.binary())
    texts = pa.StringArray.from_buffers(len(tasks), *texts.buffers()[1:])  # whatever they are
    pq.write_table(
        pa.table({"task_index": list(range(len(tasks))), "__index_level_0__": texts}),
        path / "meta/tasks.parquet",
    )
    info = {
        "codebase_version": "v3.0",
        "total_episodes": len(lengths),
        "fps": FPS,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "features": features("image"),
    }
    (path / "meta/info.json").write_text(json.dumps(info))
    return str(path)


def png(image: np.ndarray) -> bytes:
    """The picture as PNG, by Pillow."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "png")
    return out.getvalue()
