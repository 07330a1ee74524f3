"""Conversions that are killed: nothing half-written is taken for whole, and a rerun goes on."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.data.conftest import episode, write_folder
from tests.data.test_convert import left, run, same_table
from vla_jax import plugin
from vla_jax.data import convert, recordings

PROJECT = pathlib.Path(__file__).resolve().parents[2]
PATHS = {**os.environ, "PYTHONPATH": str(PROJECT)}
KILLED = """
import sys, time
from vla_jax.data import convert
write, (path, out, to, stop, workers) = convert.TARGETS[sys.argv[3]].write, sys.argv[1:]
def stopping(job, plan, part, folder):
    if part.number == int(stop):
        write(job, plan, part, folder)  # its files are there, its word is not
        print("here", flush=True)
        time.sleep(60)
    return write(job, plan, part, folder)
finish = convert.TARGETS[to].finish
def stopped(*given):
    finish(*given)
    print("here", flush=True)
    time.sleep(60)
convert.TARGETS[to].write = stopping
if stop == "finish":
    stop, convert.TARGETS[to].finish = -1, stopped
convert.convert(path, out, to=to, workers=0, progress=False, control_hz=10)
"""


@pytest.mark.parametrize("to", ["rlds", "lerobot"])
@pytest.mark.parametrize("stop", ["2", "finish"])
def test_killed_it_leaves_nothing_and_goes_on(tmp_path, to, stop):
    folder = tmp_path / "there"
    folder.mkdir()
    path = write_folder(tmp_path / "old", [episode(i) for i in range(4)])
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), str(folder / "new"), to, stop, "0"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stdout.readline() == "here\n"
        with pytest.raises(plugin.UserError, match="another program is converting"):
            run(path, folder / "new", to=to, control_hz=10)
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        child.communicate()
    assert len(left(folder)) == 1 and left(folder)[0].startswith(".new.partial-")
    parts = folder / left(folder)[0] / "parts"
    kept = {f.name: f.stat().st_mtime_ns for f in parts.glob("*.json")}
    assert set(kept) == {f"{i:06d}.json" for i in range(2 if stop == "2" else 4)}
    seen = []
    write = convert.TARGETS[to].write

    def counting(job, plan, part, where):
        seen.append(part.number)
        return write(job, plan, part, where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert.TARGETS[to], "write", counting)
        done = run(path, folder / "new", to=to, control_hz=10)
    assert seen == ([2, 3] if stop == "2" else []) and done["episodes"] == 4
    assert left(folder) == ["new"]
    same_table(recordings.recorded(path)[0], recordings.recorded(folder / "new")[0])


def test_changed_data_begin_anew_and_remove_what_was_begun(tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()
    path = write_folder(tmp_path / "old", [episode(i) for i in range(4)])
    with pytest.MonkeyPatch.context() as patch:

        def interrupted(*given):
            raise KeyboardInterrupt

        patch.setattr(convert.TARGETS["rlds"], "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(path, folder / "new", to="rlds")
    begun = left(folder)
    assert len(begun) == 1
    write_folder(path, [episode(i, 6) for i in range(4)])
    convert._shards.source.cache_clear()
    run(path, folder / "new", to="rlds")
    assert left(folder) == ["new"]
    assert len(recordings.raw(folder / "new").episode(0)["steps/action"]) == 6


WORKER_KILLED = """
import os, pathlib, signal, sys
from vla_jax.data import convert
path, out, marker = sys.argv[1:]
write = convert.TARGETS["rlds"].write
def killed(job, plan, part, folder):
    if part.number == 3 and not os.path.exists(marker):
        pathlib.Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return write(job, plan, part, folder)
convert.TARGETS["rlds"].write = killed  # in workers, too: they import this file
if __name__ == "__main__":
    try:
        convert.convert(path, out, to="rlds", name="arm", workers=2, progress=False)
    except convert.WorkerKilled as error:
        assert "goes on" in str(error) and not os.path.exists(out)
        convert.convert(path, out, to="rlds", name="arm", workers=2, progress=False)
"""


def test_workers_make_the_same_though_one_is_killed(tmp_path):
    path = write_folder(tmp_path / "old", [episode(i) for i in range(6)])
    run(path, tmp_path / "one", to="rlds", name="arm")
    (tmp_path / "killed.py").write_text(WORKER_KILLED)
    given = [str(tmp_path / name) for name in ("killed.py", "old", "two", "marker")]
    done = subprocess.run([sys.executable, *given], capture_output=True, text=True, env=PATHS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "marker").exists()
    files = {f.name: f.read_bytes() for f in (tmp_path / "one").iterdir()}
    again = {f.name: f.read_bytes() for f in (tmp_path / "two").iterdir()}
    assert set(files) == set(again)
    shards = [name for name in files if "array_record" in name]
    assert len(shards) == 6 and all(files[name] == again[name] for name in shards)


ROWS = """
from vla_jax.data.standardizers._table import Row
ROWS = {{"mine": Row(
    embodiment="arm", action_space="xyz_gripper", action="action", views={{}},
    proprio={{"hand": "observation/proprio/hand[{span}]"}}, language="language_instruction",
)}}
"""


def test_a_changed_row_begins_anew(tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()
    path = write_folder(tmp_path / "old", [episode(i) for i in range(4)])
    rows = tmp_path / "rows.py"
    given = dict(to="rlds", standardizer=f"{rows}:mine")
    rows.write_text(ROWS.format(span="0:3"))
    with pytest.MonkeyPatch.context() as patch:

        def interrupted(*given):
            raise KeyboardInterrupt

        patch.setattr(convert.TARGETS["rlds"], "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(path, folder / "new", **given)
    rows.write_text(ROWS.format(span="1:3") + "# another size: another .pyc")
    convert._shards.source.cache_clear()
    run(path, folder / "new", **given)
    assert left(folder) == ["new"]
    found = recordings.raw(folder / "new").episode(1)["steps/observation/proprio/hand"]
    was = recordings.raw(path).episode(1)["steps/observation/proprio/hand"]
    np.testing.assert_array_equal(found, was[:, 1:])


def test_another_conversion_to_the_folder_is_refused_and_leaves_nothing(tmp_path):
    folder = tmp_path / "there"
    path = write_folder(tmp_path / "old", [episode(i) for i in range(2)])
    with convert.Making(folder / "new", "key"):
        begun = left(folder)
        with pytest.raises(plugin.UserError, match="another program is converting"):
            run(path, folder / "new", to="rlds")
        assert left(folder) == begun


@pytest.mark.parametrize("swept", [False, True])
def test_killed_when_all_is_there_the_same_command_says_so(tmp_path, monkeypatch, swept):
    folder = tmp_path / "there"
    path = write_folder(tmp_path / "old", [episode(i) for i in range(2)])

    def killed(making, *error):
        if swept:
            shutil.rmtree(making.parts)
        making._lock.release()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert.Making, "__exit__", killed)
        with pytest.raises(KeyboardInterrupt):
            run(path, folder / "new", to="rlds")
    assert len(left(folder)) == 2
    with pytest.raises(plugin.UserError, match="not empty"):
        run(path, folder / "new", to="rlds", resize=(8, 8))
    done = run(path, folder / "new", to="rlds")
    assert left(folder) == ["new"] and done["episodes"] == 2 and done["bytes"] > 0
    with pytest.raises(plugin.UserError, match="not empty"):
        run(path, folder / "new", to="rlds")
