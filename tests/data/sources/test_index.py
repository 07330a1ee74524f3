import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import uuid

import numpy as np
import psutil
import pytest

from vla_jax import plugin
from vla_jax.cli import main as cli
from vla_jax.data import engine
from vla_jax.data import mixture as mixture_lib
from vla_jax.data.sources import (
    _files,
    _index,
    _index_build,
    _rlds_folder,
    _rlds_record,
    _rlds_table,
    _tfrecord,
)
from vla_jax.data.sources import rlds as source_lib

PROJECT = pathlib.Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    """Indexes lie beside the data, where no test says otherwise."""
    monkeypatch.delenv(_index_build.ENVIRONMENT)


def built(path, **arguments):
    """(what `index` says, {shard's name: its index})."""
    found = source_lib.index(str(path), **arguments)
    folder = _rlds_folder.open_folder(path)
    shards = _index_build.shards(folder, dict(folder.splits["train"]), arguments.get("index_dir"))
    return found, {_files.name(s.path): _index.load(s.target) for s in shards}


def same_as_the_records(path, names=None):
    """Compares all columns through the index with those of the records themselves."""
    folder, (_, indexes) = _rlds_folder.open_folder(path), built(path)
    compared = 0
    for record in _rlds_folder.records(folder, "train", lambda name: True):
        index = indexes[_files.name(record.path)]
        features = [f for f in folder.features.values() if index.holds(f)]
        got = _rlds_record.columns(
            folder.features, [f.name for f in features], index.found(record.number, features), "x"
        )
        assert set(got) == set(names or record.columns)
        for name, value in got.items():
            if hasattr(value, "offsets"):
                np.testing.assert_array_equal(value.offsets, record.columns[name].offsets)
                value, expected = value.lengths, record.columns[name].lengths
            else:
                expected = record.columns[name]
            np.testing.assert_array_equal(value, expected, err_msg=name)
            assert getattr(value, "dtype", None) == getattr(expected, "dtype", None), name
            compared += 1
        assert (index.offsets[record.number], index.faults(record.number, set(got))) == (
            record.offset,
            [],
        )
    return compared


def test_it_says_what_the_records_say(folder):
    assert same_as_the_records(folder) == 12 * 8
    assert (folder / "vla_index" / "v1" / "arm_data-train.tfrecord-00000-of-00002.arrow").is_file()


def test_it_says_what_bridge_says(fixtures_dir, monkeypatch, tmp_path):
    monkeypatch.setenv(_index_build.ENVIRONMENT, str(tmp_path))
    path = fixtures_dir / "bridge_dataset" / "1.0.0"
    assert same_as_the_records(path) == 25 * 20
    found = source_lib.index(str(path))
    assert found["episodes"] == 50 and found["made"] == 0 and found["faults"] == []
    size = sum(shard.stat().st_size for shard in path.glob("*.tfrecord-*"))
    assert found["bytes"] < size / 15, "512 floats per step, the same in all, are kept once"


def test_nothing_is_read_twice(folder, capsys):
    _files.counts.reset()
    assert cli.main(["data", "index", str(folder)]) == 0
    size = sum(shard.stat().st_size for shard in folder.glob("*.tfrecord-*"))
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["made"] == told["shards"] == 2 and told["episodes"] == 12
    assert size < _files.counts.bytes < size + 60_000, "the shards, the indexes and some JSON"
    _files.counts.reset()
    assert source_lib.index(str(folder))["made"] == 0
    assert _files.counts.bytes < 4 * 2**10 + told["bytes"] + 20_000


def test_only_a_changed_shard_is_indexed_again(folder, rlds):
    built(folder)
    targets = sorted((folder / "vla_index" / "v1").glob("*.arrow"))
    before = [target.stat().st_mtime_ns for target in targets]
    time.sleep(0.02)
    shard = next(folder.glob("*-00001-of-*"))
    changed = [rlds.episode(i) for i in (1, 3, 5, 7, 9, 99)]
    _tfrecord.write(shard, [rlds.example(episode) for episode in changed])
    found, indexes = built(folder)
    assert found["made"] == 1
    after = [target.stat().st_mtime_ns for target in targets]
    assert [a == b for a, b in zip(after, before)] == [True, False]
    feature = _rlds_folder.open_folder(folder).features["episode_metadata/episode_id"]
    assert indexes[shard.name].found(5, [feature])[feature.name] == [b"e99"]


@pytest.mark.parametrize("damage", ["flip", "header", "truncate", "empty", "other"])
def test_a_broken_index_is_not_believed(damage, folder, context):
    clean = source_lib.make(context, path=str(folder))
    target = next((folder / "vla_index" / "v1").glob("*.arrow"))
    whole, data = target.read_bytes(), bytearray(target.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "header":
        data[40] ^= 1
    data = {"truncate": data[:-200], "empty": b"", "other": b"no index" * 20}.get(damage, data)
    target.write_bytes(data)
    with pytest.raises(plugin.UserError, match="a broken index"):
        _index.load(str(target))
    for table in (folder / "vla_index" / "v1" / "tables").iterdir():
        table.unlink()
    again = source_lib.make(context, path=str(folder))
    assert again.fingerprint == clean.fingerprint
    assert target.read_bytes() == whole


def test_a_folder_that_cannot_be_written(folder, context, tmp_path, monkeypatch):
    os.chmod(folder, 0o555)
    with pytest.raises(plugin.UserError, match="--index-dir.*VLA_JAX_INDEX_DIR"):
        source_lib.make(context, path=str(folder))
    one = source_lib.make(context, path=str(folder), index_dir=str(tmp_path / "one"))
    monkeypatch.setenv(_index_build.ENVIRONMENT, str(tmp_path / "two"))
    two = source_lib.make(context, path=str(folder))
    assert one.fingerprint == two.fingerprint and len(list((tmp_path / "two").iterdir())) == 1
    assert not (folder / "vla_index").exists()
    os.chmod(folder, 0o755)


def test_wide_numbers_stay_in_the_record(tmp_path, rlds):
    wide = {"steps/observation/proprio/hand": np.random.default_rng(0).normal(size=(7, 1100))}
    path = rlds.write(tmp_path / "d", [rlds.episode(0, **wide)], shards=1)
    found, indexes = built(path)
    feature = _rlds_folder.open_folder(path).features["steps/observation/proprio/hand"]
    (index,) = indexes.values()
    assert not index.holds(feature) and found["bytes"] < 20_000
    reading = _index_build.shards(
        _rlds_folder.open_folder(path), {str(next(path.glob("*rec*"))): 1}
    )
    shard = _rlds_table._Shard(_rlds_folder.open_folder(path), reading[0], [feature.name])
    columns, length, _ = shard.episode(0)
    np.testing.assert_array_equal(columns[feature.name], wide[feature.name].astype(np.float32))
    assert length == 7


def test_compressed_shards_are_unpacked_beside_the_index(folder, context, tmp_path):
    plain = source_lib.make(context, path=str(folder), index_dir=str(tmp_path / "plain"))
    rows = [plain.sample(i, np.random.default_rng(0)) for i in (0, 30)]
    print_ = plain.data_fingerprint
    for shard in folder.glob("*.tfrecord-*"):
        shard.write_bytes(gzip.compress(shard.read_bytes()))
    packed = source_lib.make(context, path=str(folder), index_dir=str(tmp_path / "packed"))
    assert packed.data_fingerprint == print_
    for i, row in zip((0, 30), rows):
        np.testing.assert_equal(packed.sample(i, np.random.default_rng(0)), row)
    np.testing.assert_equal(source_lib.raw(folder).episode(3), source_lib.raw(folder).episode(3))
    for copy in (tmp_path / "packed").glob("*/v1/*.plain"):
        copy.unlink()
    again = source_lib.make(context, path=str(folder), index_dir=str(tmp_path / "packed"))
    np.testing.assert_equal(again.sample(0, np.random.default_rng(0)), rows[0])


def test_a_broken_compressed_shard_is_named(folder, context):
    shard = next(folder.glob("*-00000-of-*"))
    data = gzip.compress(shard.read_bytes(), compresslevel=0)
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(plugin.UserError, match=r"got [1-5] records, expected 6"):
        source_lib.make(context, path=str(folder))
    found, indexes = built(folder)
    assert "records, expected 6" in found["faults"][-1]
    left = source_lib.make(context, path=str(folder), bad_samples="skip", holdout=0)
    assert 1 <= len(left.episodes) - 6 <= 5 and left.sample(0, np.random.default_rng(0))


def test_an_object_store(folder, context):
    url = f"memory://{uuid.uuid4().hex}/arm_data/1.0.0"
    for file in folder.iterdir():
        if file.is_file():
            _files.write(_files.join(url, file.name), file.read_bytes())
    here, there = (source_lib.make(context, path=path) for path in (str(folder), url))
    assert there.fingerprint == here.fingerprint
    np.testing.assert_equal(
        there.sample(5, np.random.default_rng(0)), here.sample(5, np.random.default_rng(0))
    )
    assert len(_files.names(_files.join(url, "vla_index", "v1"))) == 2


SLOW = """
import os, sys, time
from vla_jax.data.sources import _index, _index_build, _rlds_folder, rlds

whole = _index.build
def build(folder, path, *rest):
    whole(folder, path, *rest)
    print("made", os.getpid(), flush=True)
    if len(os.listdir(os.path.dirname(rest[2]))) > 1:
        pack = _index._pack
        def half(*parts):
            def stop(local):
                with open(local, "wb") as file:
                    file.write(pack(*parts)[:-50])
                print("half", flush=True)
                time.sleep(60)
            return stop
        _index._pack = half
_index.build = build
rlds.index(sys.argv[1], workers=0)
"""


def test_a_killed_parent_leaves_no_half_index(rlds, tmp_path, context):
    path = rlds.write(tmp_path / "d", [rlds.episode(i) for i in range(8)], shards=4)
    program = [sys.executable, "-c", SLOW, str(path)]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=env) as process:
        for line in process.stdout:
            if line == "half\n":
                process.send_signal(signal.SIGKILL)
                break
        else:
            raise AssertionError(process.wait())
    index = path / "vla_index" / "v1"
    assert len(list(index.glob("*.arrow"))) == 2 and len(list(index.glob(".*"))) == 1
    found, indexes = built(path)
    assert found["made"] == 2 and sum(i.count for i in indexes.values()) == 8
    assert len(source_lib.make(context, path=str(path), holdout=0)) == 8 * 7


def test_a_killed_worker_is_said_and_the_rest_is_kept(rlds, tmp_path, monkeypatch):
    path = rlds.write(tmp_path / "d", [rlds.episode(i) for i in range(8)], shards=4)
    started, popen = [], subprocess.Popen

    def killed(*arguments, **options):
        process = popen(*arguments, **options)
        if not started:
            process.send_signal(signal.SIGKILL)
        started.append(process)
        return process

    monkeypatch.setattr(subprocess, "Popen", killed)
    with pytest.raises(plugin.UserError, match="worker ended with -9.*start again"):
        source_lib.index(str(path), workers=2)
    assert len(started) == 2 and all(process.poll() is not None for process in started)
    monkeypatch.setattr(subprocess, "Popen", popen)
    assert built(path)[0]["made"] == 2, "the other worker's two shards were kept"


def test_what_is_broken_is_noted_and_named(folder, capsys):
    shard = next(folder.glob("*-00000-of-*"))
    data = bytearray(shard.read_bytes())
    data[500] ^= 1
    shard.write_bytes(data[:-9])
    assert cli.main(["data", "index", str(folder)]) == 2
    told = capsys.readouterr()
    assert "record 0 at byte 0" in told.err and "truncated" in told.err
    assert len(json.loads(told.out.splitlines()[-1])["faults"]) == 2


def test_a_killed_parent_of_workers_leaves_none_behind(rlds, tmp_path):
    path = rlds.write(tmp_path / "d", [rlds.episode(i) for i in range(12)], shards=6)
    code = f"from vla_jax.data.sources import rlds; rlds.index({str(path)!r}, workers=2)"
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen([sys.executable, "-c", code], env=env) as process:
        children = []
        while len(children) < 2 and process.poll() is None:
            children = psutil.Process(process.pid).children()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert len(gone) == 2 and not alive
    found, indexes = built(path)
    assert sum(index.count for index in indexes.values()) == 12 and found["faults"] == []


def test_a_mixture_of_ten_opens_without_reading_its_records(rlds, tmp_path, context):
    members, size = {}, 0
    for d in range(10):
        path = rlds.write(tmp_path / f"d{d}", [rlds.episode(i) for i in range(30)], shards=3)
        members[f"d{d}"] = dict(source=dict(type="rlds", path=str(path), dataset_key="all"))
        size += sum(shard.stat().st_size for shard in path.glob("*.tfrecord-*"))
    first = mixture_lib.Mixture.make(members, context)
    _rlds_table._load.cache_clear()
    _files.counts.reset()
    again = mixture_lib.Mixture.make(members, context)
    with engine.Stream(again, 8) as stream:
        next(stream)
    assert again.fingerprint == first.fingerprint
    assert _files.counts.bytes < size / 10, "tables are mapped; of the shards, some pictures"


@pytest.mark.parametrize("split", ["train[:95%]", "train[1shard]", "train[:6]", "train[6:]"])
def test_slices_are_other_data(split, folder, context):
    whole = source_lib.make(context, path=str(folder), holdout=0)
    part = source_lib.make(context, path=str(folder), holdout=0, split=split)
    assert part.data_fingerprint != whole.data_fingerprint
    ids = list(part.episodes.ids)
    first = list(whole.episodes.ids).index(ids[0])
    assert ids == list(whole.episodes.ids)[first : first + len(ids)]
    for index, e in ((0, first), (len(part) - 1, first + len(ids) - 1)):
        at = index % 7 + 7 * e
        np.testing.assert_equal(
            part.sample(index, np.random.default_rng(0)), whole.sample(at, np.random.default_rng(0))
        )


def test_two_splits_that_repeat_each_other_are_refused(fixtures_dir, monkeypatch, tmp_path):
    monkeypatch.setenv(_index_build.ENVIRONMENT, str(tmp_path))
    path, row = str(fixtures_dir / "bridge_dataset"), dict(type="oxe", row="bridge")
    with pytest.raises(plugin.UserError, match="-val.tfrecord.*two episodes.*-train.tfrecord"):
        source_lib.recorded(path, standardizer=row, split="train+val")
    table, _ = source_lib.recorded(
        path, standardizer=row, split="train[:60%] + val", bad_samples="skip"
    )
    assert len(table) == 25 and len(table.skipped) == 15
