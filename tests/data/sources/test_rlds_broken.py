"""Broken RLDS data: a fault is an error that names file, episode and field, or a counted skip."""

import json
import pathlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vla_jax import plugin
from vla_jax.data import engine
from vla_jax.data import mixture as mixture_lib
from vla_jax.data.sources import rlds as source_lib

PRIMARY = "steps/observation/images/primary"
NAN = np.where(np.arange(28).reshape(7, 4) == 14, np.nan, 1).astype(np.float32)


def flip(offset):
    def change(shard):
        data = bytearray(shard.read_bytes())
        data[offset] ^= 1
        shard.write_bytes(data)

    return change


def cut(size):
    return lambda shard: shard.write_bytes(shard.read_bytes()[:-size])


def without(name):
    return {name: None}


# name -> (columns of episode 1 of 4, change of the shard, words of the error, episodes left)
FAULTS = {
    "NaN": ({"steps/action": NAN}, None, "record 1 .*e1, step 3: action dim 2 is nan", "023"),
    "infinite": (
        {"steps/observation/proprio/hand": np.full((7, 3), np.inf)},
        None,
        "record 1 .*e1, step 0: proprio hand dim 0 is inf",
        "023",
    ),
    "integers": (
        {"steps/action": np.zeros((7, 4), np.int64)},
        None,
        "record 1 .*steps/action: got 28 values of int64, expected float",
        "023",
    ),
    "numbers for text": (
        {"steps/language_instruction": np.zeros(7)},
        None,
        "record 1 .*language_instruction: got 7 values of float, expected bytes",
        "023",
    ),
    "numbers for pictures": (
        {PRIMARY: np.zeros(7)}, None, "record 1 .*primary: got 7 values of float", "023"
    ),
    "no UTF-8": (
        {"steps/language_instruction": [b"touch \xff"] * 7},
        None,
        "record 1 .*language_instruction: got bytes that are no UTF-8",
        "023",
    ),
    "no steps": (
        {n: v for n, v in (("steps/action", np.zeros(0)),
                           ("steps/language_instruction", []),
                           ("steps/observation/proprio/hand", np.zeros(0)), (PRIMARY, []))},
        None,
        "record 1 .*an episode without steps",
        "023",
    ),
    "fewer actions": (
        {"steps/action": np.zeros((6, 4))}, None, "record 1 .*different lengths.*action': 6", "023"
    ),
    "no camera": (without(PRIMARY), None, r"record 1 .*lacks \['steps/obs.*primary'\]", "023"),
    "no action": (without("steps/action"), None, r"record 1 .*lacks \['steps/action'\]", "023"),
    "same id": (
        {"episode_metadata/episode_id": [b"e0"]},
        None,
        "record 1 .*two episodes have the id 'e0', the other is .*record 0",
        "023",
    ),
    "another body": (
        {"episode_metadata/embodiment": [b"leg"]}, None, "record 1 .*e1: .*kinds of embod", "023"
    ),
    "flipped bit": ({}, flip(9000), "00000-of-00001: corrupt TFRecord: record 1 at byte", "023"),
    "flipped length": ({}, flip(0), r"record 0 at byte 0: got a length", ""),
    "truncated": ({}, cut(5), "record 3 at byte .*truncated copy", "012"),
    "cut between": ({}, lambda s: cut(len(s.read_bytes()) // 4)(s), "record 3 .*truncated", "012"),
}  # fmt: skip


def damaged(rlds, path, columns, change):
    first = {**rlds.episode(1), **columns}
    first = {name: value for name, value in first.items() if value is not None}
    rlds.write(path, [rlds.episode(0), first, rlds.episode(2), rlds.episode(3)], shards=1)
    if change:
        change(next(path.glob("*.tfrecord-*")))
    return str(path)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_or_skipped_and_counted(name, rlds, tmp_path, context):
    columns, change, words, left = FAULTS[name]
    path = damaged(rlds, tmp_path / "bad", columns, change)
    with pytest.raises(plugin.UserError, match=words) as error:
        source_lib.make(context, path=path, holdout=0)
    assert "arm_data-train.tfrecord-00000-of-00001" in str(error.value), "the file"
    arguments = dict(path=path, holdout=0, bad_samples="skip")
    if not left:
        with pytest.raises(plugin.UserError, match="no episode is whole.*4 are not"):
            source_lib.make(context, **arguments)
        return
    source = source_lib.make(context, **arguments)
    assert list(source.episodes.ids) == [f"e{i}" for i in left]
    assert source.summary()["skipped"] == 4 - len(left)
    assert all(part for part in source.episodes.skipped)
    clean = source_lib.make(context, path=path, holdout=0, split="train[:1]")
    np.testing.assert_equal(
        source.sample(0, np.random.default_rng(0)), clean.sample(0, np.random.default_rng(0))
    )


def test_what_no_row_reads_may_be_broken(rlds, tmp_path, context):
    """A fault of a column counts only where the column is used."""
    path = tmp_path / "d"
    rlds.write(path, [rlds.episode(i) for i in range(3)], shards=1)
    features = json.loads((path / "features.json").read_text())
    steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]
    steps["features"]["reward"] = {"tensor": {"shape": {}, "dtype": "float32"}}
    episodes = [rlds.episode(i, **{"steps/reward": np.zeros(7, np.int64)}) for i in range(3)]
    rlds.write(path, episodes, shards=1)
    (path / "features.json").write_text(json.dumps(features))
    assert len(source_lib.make(context, path=str(path), holdout=0)) == 21
    assert source_lib.index(str(path))["faults"]


@pytest.mark.parametrize("text", ["pon la taza aquí", "把杯子放在桌上", "touch the 🐈", "é\u0301"])
def test_instructions_of_any_language(text, rlds, tmp_path, context):
    columns = {"steps/language_instruction": [text.encode()] * 7}
    path = rlds.write(tmp_path / "d", [rlds.episode(i, **columns) for i in range(2)])
    source = source_lib.make(context, path=str(path), holdout=0)
    assert list(source.episodes.language) == [text]
    assert str(source_lib.raw(path).episode(0)["steps/language_instruction"][3]) == text


def test_a_picture_that_cannot_be_read_gives_way_to_the_next(rlds, tmp_path, context):
    good, bad = rlds.episode(1), rlds.episode(1)
    bad[PRIMARY] = [*good[PRIMARY][:3], b"\xff\xd8 no picture", *good[PRIMARY][4:]]
    episodes = [rlds.episode(0), bad, rlds.episode(2)]
    path = str(rlds.write(tmp_path / "d", episodes, shards=1))

    def mixture(**arguments):
        spec = dict(type="rlds", path=path, holdout=0, **arguments)
        return mixture_lib.Mixture.make({"a": dict(source=spec)}, context)

    strict, skipping = mixture(), mixture(bad_samples="skip")
    # Steps 3 and 4 of episode 1 show the picture: indices 10 and 11 of 21.
    places = [strict.locate(n)[1] for n in range(21)]
    with pytest.raises(plugin.UserError, match="episode e1, step 3, view primary"):
        strict.sample(places.index(10))
    for n, place in enumerate(places):
        row = skipping.sample(n)
        shift = {10: 2, 11: 1}.get(place, 0)
        assert row["skipped"] == shift
        expected = strict.sample(places.index(place + shift))
        np.testing.assert_equal(row["targets"], expected["targets"])
        np.testing.assert_equal(row["observation"], expected["observation"])
    with engine.Stream(skipping, 7) as stream:
        for _ in range(3):
            assert "skipped" not in next(stream)
        assert stream.skipped == 3


def test_a_source_of_broken_samples_alone_is_an_error(rlds, tmp_path, context):
    columns = {PRIMARY: [b"\xff\xd8 no picture"] * 7}
    path = rlds.write(tmp_path / "d", [rlds.episode(i, **columns) for i in range(2)])
    spec = dict(type="rlds", path=str(path), holdout=0, bad_samples="skip")
    with pytest.raises(plugin.UserError, match="14 samples in a row cannot be read"):
        mixture_lib.Mixture.make({"a": dict(source=spec)}, context)


def test_the_word_itself_is_checked(folder, context):
    with pytest.raises(plugin.UserError, match="bad_samples: unknown 'skp'.*did you mean 'skip'"):
        source_lib.make(context, path=str(folder), bad_samples="skp")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    from tests.data import conftest

    path = tmp_path_factory.mktemp("fuzz") / "d"
    conftest.write_folder(path, [conftest.episode(i, length=3) for i in range(3)], shards=1)
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(0, 2**20), st.integers(1, 255), st.sampled_from(["flip", "cut", "insert", "zero"])
)
def test_damage_anywhere_is_found(whole, tmp_path_factory, context, place, bits, kind):
    """Whatever happens to a shard, what is then read is an error or the very numbers written."""
    name = "arm_data-train.tfrecord-00000-of-00001"
    data = bytearray((whole / name).read_bytes())
    place %= len(data)
    damaged = {
        "flip": data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :],
        "cut": data[:place],
        "insert": data[:place] + bytes([bits]) + data[place:],
        "zero": data[:place] + bytes(len(data[place : place + bits])) + data[place + bits :],
    }[kind]
    path = pathlib.Path(tmp_path_factory.mktemp("damaged"))
    for file in ("features.json", "dataset_info.json"):
        (path / file).write_bytes((whole / file).read_bytes())
    (path / name).write_bytes(damaged)
    clean = source_lib.make(context, path=str(whole), holdout=0)
    try:
        got = source_lib.make(context, path=str(path), holdout=0)
    except plugin.UserError as error:
        assert name in str(error)
        assert damaged != data
    else:
        assert got.data_fingerprint == clean.data_fingerprint and damaged == data
    try:
        left = source_lib.make(context, path=str(path), holdout=0, bad_samples="skip")
    except plugin.UserError as error:
        assert "no episode is whole" in str(error)
        return
    for k, id_ in enumerate(left.episodes.ids):
        e = list(clean.episodes.ids).index(id_)
        mine = slice(*left.episodes.start[k : k + 2])
        theirs = slice(*clean.episodes.start[e : e + 2])
        np.testing.assert_array_equal(left.episodes.action[mine], clean.episodes.action[theirs])
