import dataclasses
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_jax import plugin
from vla_jax.data import episodes as episodes_lib
from vla_jax.data import mapped, robot, statistics
from vla_jax.data.sources import rlds as source_lib

ARRAYS = {
    "floats": np.arange(12, dtype=np.float32).reshape(3, 4),
    "longs": np.array([-1, 2**62]),
    "flags": np.array([True, False, True]),
    "none": np.zeros((0, 7), np.float32),
    "bytes": np.arange(5, dtype=np.uint8),
}


@pytest.fixture
def file(tmp_path):
    mapped.save(ARRAYS, {"a": [1, "é"]})(str(tmp_path / "file"))
    return tmp_path / "file"


def test_what_is_saved_is_loaded(file):
    arrays, about = mapped.load(str(file))
    assert about == {"a": [1, "é"]} and set(arrays) == set(ARRAYS)
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], value)
        assert arrays[name].dtype == value.dtype
        assert mapped.digest(arrays[name]) == mapped.digest(value)
    with pytest.raises(ValueError, match="read-only"):
        arrays["floats"][0] = 1


def test_an_array_is_pickled_as_its_place(file):
    arrays, _ = mapped.load(str(file))
    again = pickle.loads(pickle.dumps(arrays["floats"]))
    assert again.place == arrays["floats"].place and again.place[0] == str(file)
    part = arrays["floats"][1:]
    assert part.place is None and (part + 1).place is None
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(part)), ARRAYS["floats"][1:])
    file.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickle.dumps(arrays["floats"]))
    np.testing.assert_array_equal(arrays["floats"], ARRAYS["floats"], "what is mapped stays")


def test_damage_is_found(file):
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        data = bytearray(whole)
        data[place] ^= 16
        file.write_bytes(data)
        with pytest.raises(plugin.UserError, match="broken"):
            mapped.load(str(file))
    for size in (0, 5, 100, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(plugin.UserError, match="broken"):
            mapped.load(str(file))


@given(st.lists(st.text()))
def test_texts(texts):
    packed = mapped.Texts.pack(texts)
    assert list(packed) == texts and packed == tuple(texts) and len(packed) == len(texts)
    assert packed[:2] == tuple(texts[:2]) and mapped.digest(packed) == mapped.digest(texts)
    if texts:
        assert packed[-1] == texts[-1]
        assert mapped.digest(packed) != mapped.digest([*texts[:-1], texts[-1] + "x"])


def test_values():
    values = [None, True, 3, "é", np.arange(2), np.float32(0.5)]
    assert list(mapped.Values.pack(values)) == [None, True, 3, "é", [0, 1], 0.5]


def test_a_table_is_what_it_was(folder, context, tmp_path):
    source = source_lib.make(context, path=str(folder))
    table = dataclasses.replace(
        source.episodes, others=(("a cat", "b"),) * len(source.episodes.language)
    )
    mapped.save(*episodes_lib.pack(table))(str(tmp_path / "t"))
    again = episodes_lib.unpack(table.where, *mapped.load(str(tmp_path / "t")))
    assert again.fingerprint() == table.fingerprint() != source.episodes.fingerprint()
    for field in dataclasses.fields(table):
        if field.name not in ("frames", "origin"):  # that is of the open source
            np.testing.assert_equal(getattr(again, field.name), getattr(table, field.name))
    for view, frames in table.frames.items():
        np.testing.assert_array_equal(again.frames[view].offset, frames.offset)
    assert again.metadata.keys() >= {"embodiment"}


def large(tmp_path, steps=600_000):
    """A table of many steps without pictures, mapped."""
    starts = np.arange(0, steps + 1, 100)
    count = len(starts) - 1
    table = episodes_lib.Episodes(
        where="large",
        name="large",
        ids=[f"e{i}" for i in range(count)],
        embodiment="arm",
        action_space="xyz_gripper",
        start=starts,
        step=np.arange(steps) % 100,
        action=np.random.default_rng(0).normal(size=(steps, 4)).astype(np.float32),
        proprio={"hand": np.ones((steps, 3), np.float32)},
        language=("touch",),
        language_index=np.zeros(steps, np.int32),
        cameras={},
        frames={},
        shard=np.zeros(count, np.int32),
        record=np.zeros(count, np.int64),
        record_offset=np.zeros(count, np.int64),
    )
    mapped.save(*episodes_lib.pack(table))(str(tmp_path / "large"))
    return episodes_lib.unpack("large", *mapped.load(str(tmp_path / "large")))


CHILD = """
import pickle, sys, resource, numpy as np
from vla_jax.data import robot
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = pickle.loads(sys.stdin.buffer.read())
for i in range(300):
    source.sample(i * 997 % len(source), np.random.default_rng(0))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_worker_is_sent_places_not_numbers(tmp_path, context):
    table = large(tmp_path)
    size = (tmp_path / "large").stat().st_size
    reading = robot.Reading(optional_views=("primary",))
    source = robot.RobotRows(context, table, print, reading)  # without pictures, no reading
    source = source.with_normalizer(statistics.compute([source]))
    data = pickle.dumps(source)
    assert size > 20e6 and len(data) < 0.2e6, "ids of the held-out split, and paths"
    project = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=data,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(project)},
        check=True,
        timeout=100,
    )
    assert int(done.stdout) * 1024 < size, "of a mapped file, the pages that were touched"


def test_small_arrays_are_not_put_into_files():
    small, big = np.zeros(10), np.zeros(mapped.SHARED // 8 + 1)
    assert mapped.shared(small) is small
    again = pickle.loads(pickle.dumps(mapped.shared(big)))
    assert again.place is not None and not again.any() and len(pickle.dumps(again)) < 400
