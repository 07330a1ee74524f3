import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.data import statistics, statistics_file
from vla_jax.data.sources import rlds as source_lib

OLD, NEW = 3, 4  # what the file's single number says before and after
WRITER = """
import os, signal, sys
import numpy as np
from vla_jax.codecs import normalizer
from vla_jax.data import statistics, statistics_file
tables = {"arm": {"print": {"action": statistics.Column.whole(np.full((4, 20000), 4.0))}}}
numbers = (4.0,) * 2000
found = {"arm": {"action": normalizer.Statistics(4, *[numbers] * 6)}}
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "loop":
    print("ready", flush=True)
    while True:
        statistics_file.write(sys.argv[1], tables, found)
if sys.argv[2] == "write":
    import pathlib
    whole = pathlib.Path.write_bytes
    def half(path, data):
        whole(path, data[: len(data) // 2])
        die()
    pathlib.Path.write_bytes = half
else:
    setattr(os, sys.argv[2], die)
statistics_file.write(sys.argv[1], tables, found)
"""


def tables_of(value, size=2):
    column = statistics.Column.whole(np.full((4, size), float(value)))
    return {"arm": {"print": {"action": column}}}


def write(path, value=OLD, size=2):
    tables = tables_of(value, size)
    return statistics_file.write(path, tables, statistics.measure(tables))


@pytest.fixture
def sources(folder, context):
    def make(holdout=0.25, **changes):
        changed = dataclasses.replace(context, **changes)
        return [source_lib.make(changed, path=str(folder), holdout=holdout)]

    return make


def test_what_is_read_is_what_was_measured(tmp_path, sources):
    path = tmp_path / "below" / "stats.json"
    tables = statistics.gather(sources())
    found = statistics.measure(tables)
    content = statistics_file.write(path, tables, found)
    assert statistics_file.fitting([path], tables) == found, "numbers survive exactly"
    assert statistics_file.read(path)[1] == content == json.loads(path.read_text())["content"]
    again = path.read_bytes()
    assert statistics_file.write(path, statistics.gather(sources()), found) == content
    assert path.read_bytes() == again and os.listdir(path.parent) == ["stats.json"]
    text = path.read_text().splitlines()
    assert text.index(' "content": "' + content + '",') < text.index(' "format_version": 1,')
    modes = {"action": "octo/bounds", "*": "openpi/zscore"}
    table = statistics.normalizer(tables, statistics_file.fitting([path], tables), mode=modes)
    assert table == statistics.compute(sources(), mode=modes)
    assert table.entry("arm_data", "action").clip == 1
    clipped = statistics.normalizer(tables, statistics_file.fitting([path], tables), clip=1.0)
    assert clipped == statistics.compute(sources(), clip=1.0)
    assert clipped.entry("arm_data", "action").clipped[1] > 0.2, "measured at loading"


def test_other_data_are_refused_with_both_fingerprints(tmp_path, sources):
    path, tables = tmp_path / "stats.json", statistics.gather(sources())
    statistics_file.write(path, tables, statistics.measure(tables))
    other = statistics.gather(sources(holdout=0.5))
    (ours,), (theirs,) = tables["arm_data"], other["arm_data"]
    with pytest.raises(
        plugin.UserError, match=f"{ours}, this config reads {theirs}.*vla data stat"
    ):
        statistics_file.fitting([path], other)
    longer = statistics.gather(sources(action_horizon=7))
    with pytest.raises(plugin.UserError, match="chunks of 3, this config has action_horizon=7"):
        statistics_file.fitting([path], longer)
    renamed = {"arm_date": tables["arm_data"]}
    with pytest.raises(plugin.UserError, match="did you mean 'arm_data'"):
        statistics_file.fitting([path], renamed)
    less = {"arm_data": {ours: {"action": tables["arm_data"][ours]["action"]}}}
    with pytest.raises(plugin.UserError, match=r"proprio/.*expected \['action'\]"):
        statistics_file.fitting([path], less)
    with pytest.raises(plugin.UserError, match="stands in .* and in"):
        statistics_file.fitting([path, path], tables)
    with pytest.raises(plugin.UserError, match="no such file"):
        statistics_file.fitting([tmp_path / "absent.json"], tables)


def test_several_files_make_one_table(tmp_path):
    write(tmp_path / "a.json")
    tables = {"leg": tables_of(NEW)["arm"]}
    statistics_file.write(tmp_path / "b.json", tables, statistics.measure(tables))
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    found = statistics_file.fitting(files, {**tables, **tables_of(OLD)})
    assert (found["leg"]["action"].max, found["arm"]["action"].max) == ((NEW, NEW), (OLD, OLD))


def test_a_file_that_is_cut_or_edited_is_never_read(tmp_path):
    path = tmp_path / "stats.json"
    write(path)
    whole = path.read_bytes()
    for length in range(len(whole) - 1):  # the last byte is the newline
        path.write_bytes(whole[:length])
        with pytest.raises(plugin.UserError, match="no whole JSON"):
            statistics_file.read(path)
    body = json.loads(whole)
    body["statistics"]["arm"]["fields"]["action"]["q99"][0] = 5.0
    path.write_text(json.dumps(body))
    with pytest.raises(plugin.UserError, match="edited or damaged"):
        statistics_file.read(path)
    body = json.loads(whole)
    body["format_version"] = 9
    body["content"] = statistics_file._hash({k: v for k, v in body.items() if k != "content"})
    path.write_text(json.dumps(body))
    with pytest.raises(plugin.UserError, match="format_version 9"):
        statistics_file.read(path)
    path.write_text('{"mean": [0.1]}')
    with pytest.raises(plugin.UserError, match="no file of `vla data stats`"):
        statistics_file.read(path)


def highest(path) -> float:
    return statistics_file.read(path)[0]["arm"]["fields"]["action"]["max"][0]


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_killed_while_writing_leaves_what_was_there(tmp_path, moment):
    path = tmp_path / "stats.json"
    for before in (False, True):
        if before:
            write(path)
        done = subprocess.run([sys.executable, "-c", WRITER, str(path), moment], check=False)
        assert done.returncode == -signal.SIGKILL
        assert path.exists() == before and (not before or highest(path) == OLD)
    write(path, NEW)
    assert highest(path) == NEW, "a rerun succeeds beside what the killed ones left"


def test_killed_at_any_time_the_file_is_whole(tmp_path):
    path = tmp_path / "stats.json"
    write(path, OLD)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), "loop"], stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        seen, deadline = {highest(path)}, time.monotonic() + 60
        while NEW not in seen and time.monotonic() < deadline:
            seen.add(highest(path))
        for _ in range(50):
            seen.add(highest(path))
        child.kill()
    assert seen <= {OLD, NEW} and highest(path) == NEW
