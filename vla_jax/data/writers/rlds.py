"""Episodes in our nouns → an RLDS dataset that `tfds.builder_from_directory(DIR)` reads.

    writers (any process)          one subprocess                      when complete
    episodes ─spool()─▶ DIR's hidden neighbour/spool/*.pickle ─▶ …/built/*.tfrecord ─rename─▶ DIR

TensorFlow lives in the subprocess only (`python -m vla_jax.data.writers.rlds`): `Writer.finish`
starts it, and on any failure the hidden neighbour goes and DIR is never seen half-written. An
episode is

    action       float32 [n, A]
    images       view -> n pictures: uint8 [h, w, 3], encoded JPEG bytes, or None where none was
    taken
    proprio      group -> float32 [n, P]
    instruction  str
    metadata     name -> bool | int | float | str | numpy array, or a dict of these
                 (`success` decides is_terminal and the last reward)
"""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Iterable, Mapping

import numpy as np
import simplejpeg

from vla_jax.data.writers import _spool
from vla_jax.plugin import UserError

QUALITY = 95
EPISODES_PER_SHARD = 250
SPLIT = "train"


def encode(image: np.ndarray) -> bytes:
    """JPEG (quality 95, 4:4:4) of an uint8 [h, w, 3] picture."""
    image = np.ascontiguousarray(image)
    return simplejpeg.encode_jpeg(image, quality=QUALITY, colorsubsampling="444")


def write(out: str | os.PathLike, episodes: Iterable[Mapping], **options) -> int:
    """Writes `episodes` to the folder `out` and returns their number; `options` as for `Writer`."""
    with Writer(out, **options) as writer:
        for index, chunk in _spool.chunks(episodes):
            spool(writer.spool, index, chunk)
        return writer.finish()


def spool(folder: str | os.PathLike, index: int, episodes: list[Mapping]) -> None:
    """Lays chunk `index` of the dataset down for `Writer.finish`; any process may, in any order.

    Raises UserError when an episode's lengths, dtypes or values do not fit.
    """
    _spool.lay(folder, index, [_prepare(episode) for episode in episodes])


class Writer(_spool.Folder):
    """A folder in the making; as a context manager it leaves nothing half-written behind.

    Raises UserError when `out` is a file or a folder that is not empty.
    """

    def __init__(
        self, out: str | os.PathLike, *, name: str | None = None, shard: int = EPISODES_PER_SHARD
    ):
        """`name` of the dataset (default: the folder's); `shard`: episodes in one."""
        super().__init__(out, name)
        self.shard = shard

    def finish(self) -> int:
        """Builds the dataset from the spool and moves it to `out`: number of episodes.

        Raises UserError when there are no episodes or they differ in form, RuntimeError with the
        subprocess's last words when it fails for another reason.
        """
        if not any(self.spool.glob("*.pickle")):
            raise UserError(f"{self.out}: no episodes to write")
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                __spec__.name,
                str(self.spool),
                str(self.built),
                self.name,
                str(self.shard),
            ],
            capture_output=True,
            text=True,
            env=environment,
        )
        if done.returncode == 2:
            raise UserError(done.stderr.strip().splitlines()[-1])
        if done.returncode != 0:
            raise RuntimeError(
                f"{self.out}: writing failed ({done.returncode}):\n{done.stderr[-4000:]}"
            )
        self.publish()
        return json.loads(done.stdout.strip().splitlines()[-1])["episodes"]


def _prepare(episode: Mapping) -> dict:
    """The checked episode with encoded pictures, masks, and a placeholder where none was taken."""
    _spool.check(episode)
    images, masks = {}, {}
    for view, pictures in episode["images"].items():
        masks[view] = np.array([picture is not None for picture in pictures])
        images[view] = _encoded(view, pictures)
    return {**episode, "images": images, "image_masks": masks}


def _encoded(view: str, pictures) -> list[bytes]:
    codes = [p if p is None or isinstance(p, bytes) else encode(p) for p in pictures]
    shapes = {simplejpeg.decode_jpeg_header(code)[:2] for code in codes if code is not None}
    if len(shapes) != 1:
        raise UserError(
            f"episode images/{view}: sizes {sorted(shapes)}, expected one size in an episode"
        )
    placeholder = encode(np.full((*shapes.pop(), 3), 127, np.uint8))
    return [placeholder if code is None else code for code in codes]


def _steps(episode: Mapping) -> list[dict]:
    length = len(episode["action"])
    success = bool(episode["metadata"].get("success", False))
    return [
        {
            "is_first": t == 0,
            "is_last": t == length - 1,
            "is_terminal": t == length - 1 and success,
            "reward": np.float32(t == length - 1 and success),
            "discount": np.float32(1.0),
            "action": episode["action"][t],
            "language_instruction": episode["instruction"],
            "observation": {
                "images": {view: codes[t] for view, codes in episode["images"].items()},
                "image_masks": {view: mask[t] for view, mask in episode["image_masks"].items()},
                "proprio": {group: reading[t] for group, reading in episode["proprio"].items()},
            },
        }
        for t in range(length)
    ]


def _features(episode: Mapping):
    """The TFDS features of `episode`; the others must fit them."""
    import tensorflow_datasets as tfds

    def scalar(dtype):
        return tfds.features.Scalar(dtype=dtype)

    def metadata(value):
        if isinstance(value, Mapping):
            return {key: metadata(entry) for key, entry in value.items()}
        if isinstance(value, str):
            return tfds.features.Text()
        if isinstance(value, bool | np.bool_):
            return scalar(np.bool_)
        if isinstance(value, int | np.integer):
            return scalar(np.int64)
        if isinstance(value, float | np.floating):
            return scalar(np.float32)
        value = np.asarray(value)
        return tfds.features.Tensor(shape=value.shape, dtype=value.dtype)

    def vector(array):
        return tfds.features.Tensor(shape=array.shape[1:], dtype=np.float32)

    images = {}
    for view, codes in episode["images"].items():
        height, width = simplejpeg.decode_jpeg_header(codes[0])[:2]
        images[view] = tfds.features.Image(shape=(height, width, 3), encoding_format="jpeg")
    steps = {
        **{key: scalar(np.bool_) for key in ("is_first", "is_last", "is_terminal")},
        **{key: scalar(np.float32) for key in ("reward", "discount")},
        "action": vector(episode["action"]),
        "language_instruction": tfds.features.Text(),
        "observation": {
            "images": images,
            "image_masks": {view: scalar(np.bool_) for view in images},
            "proprio": {group: vector(value) for group, value in episode["proprio"].items()},
        },
    }
    return tfds.features.FeaturesDict(
        {"steps": tfds.features.Dataset(steps), "episode_metadata": metadata(episode["metadata"])}
    )


def _form(value):
    """What all episodes of a dataset share: nested names and shapes."""
    if isinstance(value, Mapping):
        return {key: _form(entry) for key, entry in sorted(value.items())}
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.name
    return type(value).__name__


def _episode_form(episode: Mapping) -> dict:
    headers = {v: simplejpeg.decode_jpeg_header(c[0])[:2] for v, c in episode["images"].items()}
    return {
        "action": episode["action"].shape[1:],
        "images": headers,
        "proprio": {group: value.shape[1:] for group, value in sorted(episode["proprio"].items())},
        "metadata": _form(episode["metadata"]),
    }


def _check_forms(spool_folder: pathlib.Path, name: str) -> None:
    form = None
    for path in sorted(spool_folder.glob("*.pickle")):
        for i, episode in enumerate(pickle.loads(path.read_bytes())):
            form = form or _episode_form(episode)
            if _episode_form(episode) != form:
                raise UserError(
                    f"{name}: episode {i} of chunk {path.stem} is {_episode_form(episode)}, "
                    f"expected the form of the first episode, {form}"
                )


def _build(spool_folder: pathlib.Path, out: pathlib.Path, name: str, shard_size: int) -> int:
    """The subprocess's work: the spool, in order, to shards, features and info in `out`."""
    _check_forms(spool_folder, name)  # before TensorFlow, whose import takes seconds
    import tensorflow as tf
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import example_serializer

    paths = sorted(spool_folder.glob("*.pickle"))
    first = pickle.loads(paths[0].read_bytes())[0]
    features = _features(first)
    out.mkdir()
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=name, version=tfds.core.Version("1.0.0"), data_dir=str(out), module_name=__name__
        ),
        description="Robot episodes written by vla_jax (RLDS, native schema).",
        features=features,
    )
    info.set_file_format("tfrecord")
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    writer, lengths, size = None, [], 0
    for path in paths:
        for episode in pickle.loads(path.read_bytes()):
            if writer is None or lengths[-1] == shard_size:
                if writer is not None:
                    writer.close()
                lengths.append(0)
                writer = tf.io.TFRecordWriter(str(out / f"{len(lengths) - 1:05d}.partial"))
            example = {"steps": _steps(episode), "episode_metadata": episode["metadata"]}
            record = serializer.serialize_example(features.encode_example(example))
            writer.write(record)
            lengths[-1] += 1
            size += len(record)
    writer.close()
    template = tfds.core.ShardedFileTemplate(
        dataset_name=name, data_dir=out, split=SPLIT, filetype_suffix="tfrecord"
    )
    for shard in range(len(lengths)):
        target = template.sharded_filepath(shard_index=shard, num_shards=len(lengths))
        (out / f"{shard:05d}.partial").rename(target)
    split = tfds.core.SplitInfo(
        name=SPLIT, shard_lengths=lengths, num_bytes=size, filename_template=template
    )
    info.set_splits(tfds.core.SplitDict([split]))
    info.write_to_directory(str(out))
    return sum(lengths)


def _main(arguments: list[str]) -> int:
    spool_folder, out, name, shard = arguments
    try:
        episodes = _build(pathlib.Path(spool_folder), pathlib.Path(out), name, int(shard))
    except UserError as error:
        print(str(error).replace("\n", " "), file=sys.stderr)
        return 2
    print(json.dumps({"episodes": episodes}))
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
