"""Captioned pictures in TFDS folders: against what was written, and against TFDS' own layout."""

import gzip
import json
import os
import pathlib
import pickle

import numpy as np
import pytest

from tests.data.conftest import Words, example, leaf, tree
from tests.data.sources import test_image_text as pictures
from vla_jax import plugin
from vla_jax.data import mapped
from vla_jax.data.sources import _files, _tfrecord, tfds_captions
from vla_jax.types import SourceContext


class Tokenizer(Words):
    def encode_padded(self, text, length, ends=False, cut=False):
        return self.instruction(text, length)


def colour(i: int) -> tuple[int, int, int]:
    return (20 * i, 5, 250 - 20 * i)


def write(path, count=12, several=False, file_format="tfrecord", changes=None, said=None):
    """A caption per picture, or three in a sequence, as coco_captions has them."""
    path.mkdir(parents=True)
    each = {
        "sequence": {"feature": tree({"id": leaf("tensor", (), "int64"), "text": leaf("text")})}
    }
    features = {
        "image": leaf("image", (-1, -1, 3), "uint8"),
        "image/id": leaf("tensor", (), "int64"),
    }
    features |= {"captions": each} if several else {"caption": leaf("text")}
    (path / "features.json").write_text(json.dumps(tree(features)))
    records = []
    for i in range(count):
        record = {"image": [pictures.png(colour(i))], "image/id": np.array([i])}
        if several:
            record |= {
                "captions/id": np.arange(3),
                "captions/text": [f"{w} möwe {i}".encode() for w in "abc"],
            }
        else:
            record |= {"caption": [(said or f"a  picture\nof {i}").encode()]}
        record |= (changes or {}).get(i, {})
        records.append(example({name: v for name, v in record.items() if v is not None}))
    halves = [records[: count // 2], records[count // 2 :]]
    for number, half in enumerate(halves):
        name = path / f"web-train.{file_format}-{number:05d}-of-00002"
        if file_format == "tfrecord":
            _tfrecord.write(name, half)
            continue
        from array_record.python import array_record_module

        writer = array_record_module.ArrayRecordWriter(str(name), "group_size:1")
        for record in half:
            writer.write(record)
        writer.close()
    split = {"name": "train", "shardLengths": [str(len(half)) for half in halves]}
    info = {"name": "web", "version": "1.0.0", "fileFormat": file_format, "splits": [split]}
    (path / "dataset_info.json").write_text(json.dumps(info))
    return str(path)


def make(path, train=True, **given):
    context = SourceContext(
        name="web", stream="vl", window=1, action_horizon=1, action_size=1, max_tokens=8,
        image_sizes={"primary": (8, 8)}, text_tokenizer=Tokenizer(), train=train,
    )  # fmt: skip
    return plugin.build("data.sources", {"type": "tfds_captions", "path": path, **given}, context)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_each_picture_has_its_caption(tmp_path, file_format):
    source = make(write(tmp_path / "web", file_format=file_format), holdout=0.0)
    assert len(source) == 12
    source = pickle.loads(pickle.dumps(source))
    for i in (0, 5, 6, 11):
        assert source.captions(i) == (f"a picture of {i}",)
        row = source.sample(i, np.random.default_rng(0))
        shown = row["observation"]["images"]["primary"]
        assert shown.shape == (1, 8, 8, 3) and shown[0, 4, 4].tolist() == list(colour(i))
    assert sorted(source.texts()) == sorted(f"a picture of {i}" for i in range(12))


def test_one_of_several_captions_is_drawn(tmp_path):
    path = write(tmp_path / "web", several=True)
    source = make(path, holdout=0.0)
    assert source.captions(7) == ("a möwe 7", "b möwe 7", "c möwe 7")
    assert make(path, holdout=0.0, captions=("captions/text",)).captions(1)[2] == "c möwe 1"
    assert tfds_captions.texts(path=path, holdout=0.0)[:2] == ["a möwe 0", "b möwe 0"]


def test_held_out_pictures_are_the_others_whatever_the_slice(tmp_path):
    path = write(tmp_path / "web", 60)
    parts = [make(path, train, holdout=0.3) for train in (True, False)]
    said = [{part.captions(i) for i in range(len(part))} for part in parts]
    assert not said[0] & said[1] and len(said[0] | said[1]) == 60 and 5 < len(said[1]) < 35
    half = make(path, False, holdout=0.3, split="train[:50%]")
    assert {half.captions(i) for i in range(len(half))} < said[1]
    assert len({part.fingerprint for part in (*parts, half)}) == 3


def test_what_is_wrong_is_named(tmp_path):
    path = write(
        tmp_path / "web",
        changes={3: {"caption": [b" \n"]}, 4: {"image": [b"no picture"]}, 5: {"image": None}},
    )
    source = make(path, holdout=0.0)
    with pytest.raises(plugin.UserError, match="00000-of-00002: record 3: no caption"):
        source.sample(3, np.random.default_rng(0))
    with pytest.raises(plugin.UserError, match="record 4: image: 10 bytes that are no readable"):
        source.sample(4, np.random.default_rng(0))
    with pytest.raises(plugin.UserError, match="record 5: image: no picture"):
        source.sample(5, np.random.default_rng(0))
    for given, message in (
        (dict(captions=("said",)), "captions: unknown 'said'.*caption"),
        (dict(image="picture"), "unknown 'picture'.*image"),
        (dict(split="val"), "unknown 'val'"),
        (dict(access="contiguous"), "expected 'random'"),
    ):
        with pytest.raises(plugin.UserError, match=message):
            make(path, **given)
    shard = tmp_path / "web" / "web-train.tfrecord-00001-of-00002"
    data = bytearray(shard.read_bytes())
    data[-40] ^= 1
    shard.write_bytes(data)
    with pytest.raises(plugin.UserError, match="00001-of-00002.*record 5"):
        make(path, holdout=0.0).sample(11, np.random.default_rng(0))
    shard.write_bytes(data[:-9])
    with pytest.raises(plugin.UserError, match="00001-of-00002"):
        make(path, holdout=0.0).sample(11, np.random.default_rng(0))


def compress(path) -> list[pathlib.Path]:
    shards = sorted(pathlib.Path(path).glob("*.tfrecord-*"))
    for shard in shards:
        shard.write_bytes(gzip.compress(shard.read_bytes()))
    return shards


def test_compressed_shards_are_unpacked_once_and_read_by_record(tmp_path):
    path = write(tmp_path / "web")
    plain = make(path, holdout=0.0, index_dir=str(tmp_path / "plain"))
    rows = [plain.sample(i, np.random.default_rng(1)) for i in range(12)]
    compress(path)
    index = str(tmp_path / "packed")
    packed = pickle.loads(pickle.dumps(make(path, holdout=0.0, index_dir=index)))
    for i in (0, 11, 5):
        np.testing.assert_equal(packed.sample(i, np.random.default_rng(1)), rows[i])
    copies = sorted((tmp_path / "packed").rglob("*.plain"))
    assert len(copies) == 2
    copies[0].unlink()  # somebody tidied up
    again = make(path, holdout=0.0, index_dir=index)
    np.testing.assert_equal(again.sample(3, np.random.default_rng(1)), rows[3])
    assert sorted((tmp_path / "packed").rglob("*.plain")) == copies


def test_a_table_kept_by_an_older_version_is_read(tmp_path):
    index = tmp_path / "index"
    path = write(tmp_path / "web")
    said = make(path, holdout=0.0, index_dir=str(index)).captions(7)
    tables = list(index.rglob("records-*.safetensors"))
    for table in tables:  # as it was before they said whether a shard is compressed
        arrays = {name: np.array(values) for name, values in mapped.load(str(table))[0].items()}
        _files.write(str(table), mapped.save(arrays, {}))
        os.utime(table, (0, 0))
    assert len(tables) == 2
    assert make(path, holdout=0.0, index_dir=str(index)).captions(7) == said


def test_a_compressed_shard_that_is_broken_or_has_no_place(tmp_path, monkeypatch):
    path = write(tmp_path / "web")
    shard = compress(path)[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-20])
    with pytest.raises(plugin.UserError, match="train.tfrecord-00001-of-00002: broken GZIP"):
        make(path)
    assert not [p for p in tmp_path.rglob("*00001*.plain*")]
    shard.write_bytes(whole)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_files, "writable", lambda place: False)
    with pytest.raises(plugin.UserError, match="compressed by GZIP.*index_dir="):
        make(path, index_dir=str(tmp_path / "other"))
