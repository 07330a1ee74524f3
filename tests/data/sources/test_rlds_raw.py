import base64
import json
import zlib

import cv2
import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.data.sources import _rlds_folder, _tfrecord
from vla_jax.data.sources import rlds as source_lib

# One episode that tensorflow-datasets 4.9.10 itself wrote (features.encode_example, then its
# ExampleSerializer), of FeaturesDict({
#   "steps": Dataset({
#     "action": Tensor(shape=(2,), dtype=float32), "flag": Scalar(bool_), "big": Scalar(uint64),
#     "depth": Tensor(shape=(2, 3), dtype=float32, encoding="zlib"), "text": Text(),
#     "cloud": Tensor(shape=(None, None), dtype=float32, encoding="bytes"),
#     "words": Sequence(Text()), "points": Sequence(Tensor(shape=(2,), dtype=float32)),
#     "boxes": Sequence({"id": Scalar(int32), "deep": Sequence(Scalar(int64))}),
#     "image": Image(shape=(4, 4, 3))}),
#   "episode_metadata": {
#     "id": Text(), "tags": Sequence(Text()), "arr": Tensor(shape=(None,), dtype=float32)}})
# with, at step t of 3: action [t, 1], depth full of t, flag t == 1, big 2**63 + t, words ["a"] * t,
# points ones [2 - t, 2], boxes [{"id": k, "deep": range(k)} for k in range(t)], cloud ones
# [t + 1, 2], text "h\u00e9llo", image a PNG (OpenCV) of arange(48); id "x", tags ["p", "q"],
# arr [1, 2, 3].
WRITTEN = zlib.decompress(
    base64.b64decode("""
eNrVk01v0zAYx+10G+2/W1UMlapo614QaIiXDAkQp3Wg8tIDE0KMCxKJ17hppKwJiccqcel6QOIKk0CI205wQHyESXwF
PhDO0pdVTSWuWHacJ3r8989P/sZxDutAJEUQGVJ0JNNRxlzr93fP8yfmdVwUgRv5tjD3hOQ2l9zgYciKrIB5QrpVQsiW
6lvYRD7RtEUgW8zADeQ73xrWSYGQMqEoxEHrl3PSo7dfzrxLYiuwVFz8Qg9VeiVZf+CHdmSE3HGEbTY9Ls233NsXEcsj
B8r7/Trmk3TekK7fZovxMchpi6EGI4brVlEaHFjpOeycPosMoUSJXEo+7/odEZOLIG3jWT0DlW0g1892Hbamr6DSHTR6
OHzrDd+U/OpZeddOE09gVIE2cHkaTOgfmJ5oO7IVmbdGK35og5q7e9wR7KuGzxpefXi2/XgBOtTpF+pPas/VPBOPrKae
Vz7lrqpprV67/yK71LB3bes9fbT5utIsW0cfj+Lgzk6pqUq5pNOdP8GxH5e0/nC79vOB1fuPxf+xvBsDd2ioYjlZEfhu
W6Zasu+6s44bjdH/HxdI2U5T9ro5bsaRW6bgPcX5JL/h+fu2cUrE7uEuskOA4gTSdNhVlCZuuuROxLKYAw1A32ARFyZS
XJspHtAOrmEl5QJPgV8eh49aPBAMutqLapqW0f4CYx88WA==
""")
)


def tensor(dtype, *shape, encoding="none"):
    shape = {"dimensions": [str(side) for side in shape]} if shape else {}
    return {"tensor": {"shape": shape, "dtype": dtype, "encoding": encoding}}


def tree(**features):
    return {"featuresDict": {"features": features}}


def sequence(feature):
    return {"sequence": {"feature": feature}}


TEXT = {"text": {}}
FEATURES = tree(
    steps=sequence(
        tree(
            action=tensor("float32", 2),
            flag=tensor("bool"),
            big=tensor("uint64"),
            depth=tensor("float32", 2, 3, encoding="zlib"),
            text=TEXT,
            cloud=tensor("float32", -1, -1, encoding="bytes"),
            words=sequence(TEXT),
            points=sequence(tensor("float32", 2)),
            boxes=sequence(tree(id=tensor("int32"), deep=sequence(tensor("int64")))),
            image={"image": {"shape": {"dimensions": ["4", "4", "3"]}, "dtype": "uint8"}},
        )
    ),
    episode_metadata=tree(id=TEXT, tags=sequence(TEXT), arr=tensor("float32", -1)),
)


def write(path, records, features=FEATURES):
    path.mkdir(parents=True)
    (path / "features.json").write_text(json.dumps(features))
    split = {"name": "train", "shardLengths": [str(len(records))]}
    info = {"name": "d", "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
    (path / "dataset_info.json").write_text(json.dumps(info))
    _tfrecord.write(path / "d-train.tfrecord-00000-of-00001", records)
    return path


@pytest.fixture
def written(tmp_path):
    return write(tmp_path / "d" / "1.0.0", [WRITTEN, WRITTEN])


def test_what_tfds_wrote_comes_out_field_for_field(written):
    assert source_lib.is_at(written) and source_lib.is_at(written.parent)
    assert not source_lib.is_at(written.parent.parent) and not source_lib.is_at("/no/where")
    raw = source_lib.raw(written)
    assert (raw.kind, raw.name, raw.splits, len(raw)) == ("rlds", "d", {"train": 2}, 2)
    assert raw.ids()[1] == "d-train.tfrecord-00000-of-00001__1"
    assert raw.fields["steps/action"] == dict(kind="tensor", shape=(2,), dtype="float32")
    assert raw.fields["steps/points"] == dict(kind="tensor", shape=(-1, 2), dtype="float32")
    assert raw.fields["steps/image"]["kind"] == "image"
    got = raw.episode(1)
    t = np.arange(3)
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)[..., ::-1]  # OpenCV writes BGR
    expected = {
        "steps/action": np.float32([[0, 1], [1, 1], [2, 1]]),
        "steps/flag": t == 1,
        "steps/big": np.uint64(2**63) + t.astype(np.uint64),
        "steps/depth": np.broadcast_to(np.float32(t)[:, None, None], (3, 2, 3)),
        "steps/text": np.array(["h\u00e9llo"] * 3),
        "steps/words": np.array([["", ""], ["a", ""], ["a", "a"]]),
        "steps/words/ragged_row_lengths_0": t,
        "steps/points": np.float32([[[1, 1]] * 2, [[1, 1], [0, 0]], [[0, 0]] * 2]),
        "steps/points/ragged_row_lengths_0": 2 - t,
        "steps/boxes/id": np.int32([[0, 0], [0, 0], [0, 1]]),
        "steps/boxes/id/ragged_row_lengths_0": t,
        "steps/boxes/deep": np.zeros((3, 2, 1), np.int64),
        "steps/boxes/deep/ragged_row_lengths_0": t,
        "steps/boxes/deep/ragged_row_lengths_1": np.int64([0, 0, 1]),
        "steps/cloud": np.tile(np.float32(np.tri(3))[:, :, None], 2),
        "steps/cloud/shape": np.int64([[1, 2], [2, 2], [3, 2]]),
        "steps/image": np.broadcast_to(picture, (3, 4, 4, 3)),
        "episode_metadata/id": np.array("x"),
        "episode_metadata/tags": np.array(["p", "q"]),
        "episode_metadata/arr": np.float32([1, 2, 3]),
    }
    assert set(got) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
        if value.dtype.kind != "U":
            assert got[name].dtype == value.dtype, name


def test_a_slice_of_a_split(folder):
    raw = source_lib.raw(folder, "train[4:9]")
    names = [str(raw.episode(i)["episode_metadata/episode_id"]) for i in range(5)]
    # Two shards hold the even and the odd ones of 0 .. 11.
    assert names == ["e8", "e10", "e1", "e3", "e5"]
    with pytest.raises(plugin.UserError, match="did you mean 'train'"):
        source_lib.raw(folder, "trian")


def test_depth_keeps_its_numbers(tmp_path, rlds):
    depth = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    metres = np.linspace(0, 3, 12, dtype=np.float32).reshape(3, 4, 1)
    png = cv2.imencode(".png", depth)[1].tobytes()
    four = metres.view(np.uint8).reshape(3, 4, 4)[..., [2, 1, 0, 3]]  # OpenCV writes BGRA
    bits = cv2.imencode(".png", four)[1].tobytes()
    steps = {
        name: {"image": {"shape": {"dimensions": ["3", "4", "1"]}, "dtype": dtype}}
        for name, dtype in (("depth", "uint16"), ("metres", "float32"))
    }
    record = rlds.example({"steps/depth": [png, b""], "steps/metres": [bits, bits]})
    raw = source_lib.raw(write(tmp_path / "d", [record], tree(steps=sequence(tree(**steps)))))
    got = raw.episode(0)
    np.testing.assert_array_equal(got["steps/depth"], np.stack([depth, 0 * depth])[..., None])
    np.testing.assert_array_equal(got["steps/metres"], np.stack([metres, metres]))


def test_broken_records_and_pictures_are_named(folder, rlds, tmp_path):
    shard = next(folder.glob("*-00000-of-*"))
    data = bytearray(shard.read_bytes())
    data[500] ^= 1
    shard.write_bytes(data)
    with pytest.raises(plugin.UserError, match="00000-of-00002: corrupt TFRecord: record 0"):
        source_lib.raw(folder).episode(0)
    assert len(source_lib.raw(folder).episode(1)) == 8, "the others are read"
    columns = {"steps/observation/images/primary": [b"\xff\xd8 no picture"] * 7}
    path = rlds.write(tmp_path / "bad", [rlds.episode(0, **columns)], shards=1)
    with pytest.raises(plugin.UserError, match="record 0: steps/observation/images/primary, pict"):
        source_lib.raw(path).episode(0)


def test_wide_numbers_are_cut_by_their_rows(written):
    folder = _rlds_folder.open_folder(written)
    with pytest.raises(plugin.UserError, match="steps/points: 3 values, its row lengths"):
        found = _rlds_folder.parse(folder, ["steps/points"], WRITTEN, "here")
        found["steps/points/ragged_row_lengths_0"] = np.array([2, 1, 1])
        _rlds_folder._rlds_record.columns(folder.features, ["steps/points"], found, "here")
