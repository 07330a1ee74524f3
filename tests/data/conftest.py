"""Small RLDS folders made without TensorFlow: one embodiment, two views, known numbers."""

import json
import pathlib

import numpy as np
import pytest
import simplejpeg

from vla_jax.data.sources import _tfrecord
from vla_jax.types import ActionGroup, ActionSpace, Embodiment, ProprioGroup, SourceContext

ARM = Embodiment(
    name="arm",
    joints=(),
    joint_limits=(),
    control_hz=10.0,
    views=("primary", "wrist"),
    proprio=(ProprioGroup(name="hand", size=3, unit="m", meaning="fingertip"),),
    action_spaces=(
        ActionSpace(
            name="xyz_gripper",
            control_hz=10.0,
            groups=(
                ActionGroup(
                    name="xyz", size=3, quantity="position", representation="delta", scale=0.01
                ),
                ActionGroup(name="grip", size=1, quantity="gripper", representation="absolute"),
            ),
        ),
    ),
)
CAMERA = np.array([[1, 0, 0, 0.25], [0, 1, 0, 0.5], [0, 0, 0, 2]], np.float32)


class Words:
    """A text tokenizer of one id per word."""

    pad_id = 0

    def instruction(self, text, max_tokens):
        ids = np.zeros(max_tokens, np.int32)
        words = [len(word) for word in text.split()]
        ids[: len(words)] = words
        return ids, np.arange(max_tokens) < len(words)

    def no_text(self, max_tokens):
        return np.zeros(max_tokens, np.int32), np.zeros(max_tokens, bool)


def varint(value: int) -> bytes:
    out = bytearray()
    value &= 2**64 - 1
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def example(features: dict) -> bytes:
    """tf.Example bytes of {name: float array | int array | list of bytes}."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, list):
            feature = field(1, b"".join(field(1, item) for item in value))
        elif np.asarray(value).dtype.kind == "f":
            feature = field(2, field(1, np.asarray(value, "<f4").tobytes()))
        else:
            numbers = np.asarray(value).reshape(-1).tolist()
            feature = field(3, field(1, b"".join(varint(int(v)) for v in numbers)))
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def leaf(kind: str, shape=(), dtype="float32") -> dict:
    body = {"shape": {"dimensions": [str(d) for d in shape]}, "dtype": dtype}
    return {"text": {}} if kind == "text" else {kind: body}


def tree(features: dict) -> dict:
    return {"featuresDict": {"features": features}}


def episode(number: int, length: int = 7, **changes) -> dict:
    """One episode's features: action[t] = [number, t, -t, t odd], hand = [0, t/10, number/10]."""
    t = np.arange(length)
    action = np.stack([np.full(length, number), t, -t, t % 2], axis=1).astype(np.float32)
    hand = np.stack([0.0 * t, t / 10, np.full(length, number / 10)], axis=1).astype(np.float32)
    rng = np.random.default_rng(number)
    frames = []
    for step in range(length):
        image = np.full((16, 16, 3), 10 * step + number, np.uint8)
        image[:2] = rng.integers(0, 2) * 8
        frames.append(simplejpeg.encode_jpeg(image, quality=95, colorsubsampling="444"))
    return {
        "steps/action": action,
        "steps/language_instruction": [f"touch the {'cat' if number % 2 else 'dog'}".encode()]
        * length,
        "steps/observation/images/primary": frames,
        "steps/observation/proprio/hand": hand,
        "episode_metadata/episode_id": [f"e{number}".encode()],
        "episode_metadata/embodiment": [b"arm"],
        "episode_metadata/action_space": [b"xyz_gripper"],
        "episode_metadata/camera/primary": CAMERA,
        **changes,
    }


def write_folder(path: pathlib.Path, episodes: list[dict], shards: int = 2) -> pathlib.Path:
    """A TFDS folder of native episodes in `shards` TFRecord files; views, sizes are the first's."""
    path.mkdir(parents=True, exist_ok=True)

    def below(prefix: str, described) -> dict:
        names = [n.removeprefix(prefix) for n in episodes[0] if n.startswith(prefix)]
        made = {name: described(episodes[0][prefix + name]) for name in names}
        return {prefix.split("/")[-2]: tree(made)} if made else {}

    steps = {
        "action": leaf("tensor", episodes[0]["steps/action"].shape[1:]),
        "language_instruction": leaf("text"),
        "observation": tree(
            {
                **below("steps/observation/images/", lambda _: leaf("image", (16, 16, 3), "uint8")),
                **below("steps/observation/proprio/", lambda v: leaf("tensor", v.shape[1:])),
                **below("steps/observation/image_masks/", lambda _: leaf("tensor", (), "bool")),
            }
        ),
    }
    metadata = {name: leaf("text") for name in ("episode_id", "embodiment", "action_space")}
    metadata["camera"] = tree({"primary": leaf("tensor", (3, 4))})
    features = {"steps": {"sequence": {"feature": tree(steps)}}, "episode_metadata": tree(metadata)}
    (path / "features.json").write_text(json.dumps(tree(features)))
    parts = [episodes[i::shards] for i in range(shards)]
    for i, part in enumerate(parts):
        name = f"arm_data-train.tfrecord-{i:05d}-of-{shards:05d}"
        _tfrecord.write(path / name, [example(e) for e in part])
    split = {"name": "train", "shardLengths": [str(len(part)) for part in parts]}
    info = {"name": "arm_data", "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
    (path / "dataset_info.json").write_text(json.dumps(info))
    return path


@pytest.fixture
def rlds():
    """Makers of small RLDS folders: `.episode(number, …)`, `.write(path, episodes)`."""

    class Makers:
        pass

    makers = Makers()
    makers.episode, makers.write, makers.example = episode, write_folder, example
    makers.arm, makers.camera = ARM, CAMERA
    return makers


@pytest.fixture
def context():
    """What a source of the small folders is told: window 2, chunk 3, images of 16 px."""
    return SourceContext(
        name="arm",
        stream="robot",
        window=2,
        action_horizon=3,
        action_size=5,
        image_sizes={"primary": (16, 16)},
        max_tokens=4,
        text_tokenizer=Words(),
        embodiments=(ARM,),
        action_spaces=ARM.action_spaces,
    )


@pytest.fixture
def folder(tmp_path):
    """Twelve episodes of 7 steps in two shards."""
    return write_folder(tmp_path / "arm_data" / "1.0.0", [episode(i) for i in range(12)])
