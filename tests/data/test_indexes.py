"""`vla data index` of whatever has an index: made once, whole or not at all, and used."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import fsspec
import numpy as np
import psutil
import pytest

from tests.data.sources import lerobot_sets
from tests.data.sources import test_image_text as pictures
from tests.data.sources import test_llava as asked
from vla_jax import plugin
from vla_jax.cli import main as cli
from vla_jax.data import indexes
from vla_jax.data.sources import _sidecar, _tar, image_text, llava

PROJECT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    """Indexes lie beside their data, not where tests/conftest.py puts them."""
    monkeypatch.delenv("VLA_JAX_INDEX_DIR")


@pytest.fixture
def web(tmp_path):
    """Four shards of two captioned pictures."""
    (tmp_path / "web").mkdir()
    for shard in range(4):
        members = {}
        for i in range(2):
            members[f"{shard}{i}.png"] = pictures.png((40 * shard, 0, 0))
            members[f"{shard}{i}.txt"] = b"a cat"
        pictures.write(tmp_path / "web" / f"{shard}.tar", members)
    return tmp_path / "web"


def told(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("workers", ["0", "2"])
def test_tars_are_scanned_once(web, tmp_path, capsys, monkeypatch, workers):
    context = pictures.context_of(None)
    plain = image_text.make(context, path=str(web), holdout=0)
    assert not list(web.glob("*.npz")), "a start writes beside no data by itself"
    assert cli.main(["data", "index", str(web), "--workers", workers]) == 0
    found = told(capsys)
    assert (found["kind"], found["shards"], found["made"], found["samples"]) == ("tar", 4, 4, 8)
    sizes = [file.stat().st_size for file in web.glob("*.tar.index.npz")]
    assert len(sizes) == 4 and found["bytes"] == sum(sizes) and found["index"] == str(web)
    monkeypatch.setattr(_tar, "scan", None)  # nobody scans any more
    again = image_text.make(context, path=str(web / "{0..3}.tar"), holdout=0)
    assert again.fingerprint == plain.fingerprint
    monkeypatch.undo()
    pictures.write(web / "2.tar", {"x.png": pictures.png((0, 0, 0)), "x.txt": b"a dog"})
    (web / "1.tar.index.npz").write_bytes((web / "1.tar.index.npz").read_bytes()[:-9])
    found = indexes.index(str(web))
    assert (found["made"], found["samples"]) == (2, 7), "the changed one, and the damaged one"


def test_a_folder_for_indexes(web, tmp_path, monkeypatch):
    for how in ("given", "environment"):
        place = tmp_path / how
        if how == "environment":
            monkeypatch.setenv("VLA_JAX_INDEX_DIR", str(place))
        given = dict(index_dir=str(place)) if how == "given" else {}
        assert indexes.index(str(web), **given)["made"] == 4
        assert len(list(place.iterdir())) == 4 and not list(web.glob("*.npz"))
        assert indexes.index(str(web), **given)["made"] == 0
        with monkeypatch.context() as patch:
            patch.setattr(_tar, "scan", None)
            image_text.make(pictures.context_of(None), path=str(web), holdout=0, **given)


def test_by_url(web):
    system = fsspec.filesystem("memory")
    system.pipe_file("/web/0.tar", (web / "0.tar").read_bytes())
    assert indexes.index("memory://web/0.tar", workers=2)["samples"] == 2
    assert system.exists("/web/0.tar.index.npz")
    system.rm("/web", recursive=True)


def test_what_is_broken_is_named_and_the_rest_is_made(web, capsys):
    whole = (web / "1.tar").read_bytes()
    (web / "1.tar").write_bytes(whole[:700])
    assert cli.main(["data", "index", str(web)]) == 2
    printed = capsys.readouterr()
    assert "1.tar" in printed.err and "no whole, uncompressed tar" in printed.err
    found = json.loads(printed.out.splitlines()[-1])
    assert found["made"] == 3 and len(found["faults"]) == 1
    for file in web.glob("*.npz"):
        file.unlink()
    web.chmod(0o555)
    try:
        with pytest.raises(plugin.UserError, match="cannot be written; .*--index-dir"):
            indexes.index(str(web))
    finally:
        web.chmod(0o755)


def test_questions_about_pictures(tmp_path, capsys, monkeypatch):
    given = asked.write(tmp_path, asked.RECORDS)
    assert cli.main(["data", "index", given["path"]]) == 0
    found = told(capsys)
    assert (found["kind"], found["made"], found["samples"]) == ("llava", 1, 3)
    monkeypatch.setattr(llava, "_scan", None)
    context = pictures.context_of(None, size=(8, 16))
    assert len(llava.make(context, **given)) == 3
    with pytest.raises(plugin.UserError, match="a folder with asked.json; .*name the file"):
        indexes.index(str(tmp_path))


def test_others(tmp_path, rlds, capsys):
    folder = str(rlds.write(tmp_path / "d", [rlds.episode(i) for i in range(3)]))
    found = indexes.index(folder)
    assert (found["kind"], found["episodes"], found["made"]) == ("rlds", 3, 2)
    path = lerobot_sets.write_v21(tmp_path / "arm", kind="image")
    before = sorted(pathlib.Path(path).rglob("*"))
    assert cli.main(["data", "index", path]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "nothing needs indexing" in printed[0] and json.loads(printed[-1])["made"] == 0
    assert sorted(pathlib.Path(path).rglob("*")) == before
    with pytest.raises(plugin.UserError, match="did you mean 'arm'"):
        indexes.index(str(tmp_path / "arms"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(plugin.UserError, match="expected dataset_info.json"):
        indexes.index(str(tmp_path / "empty"))


# The third index is written in two halves, and between them somebody may be killed.
SLOW = """
import sys
from vla_jax.data import indexes
from vla_jax.data.sources import _files

fill, count = _files._fill, 0

def halves(path, data):
    global count
    count += 1
    if count == 3:
        fill(path, data[: len(data) // 2])
        print("half", flush=True)
        sys.stdin.read()
    fill(path, data)

_files._fill = halves
indexes.index(sys.argv[1], workers=0)
"""


def test_killed_while_an_index_is_written(web):
    plain = image_text.make(pictures.context_of(None), path=str(web), holdout=0)
    program = [sys.executable, "-c", SLOW, str(web)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(program, env=env, **pipes) as process:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert len(list(web.glob("[0-9].tar.index.npz"))) == 2 and len(list(web.glob(".*"))) == 1
    assert indexes.index(str(web))["made"] == 2
    source = image_text.make(pictures.context_of(None), path=str(web), holdout=0)
    assert source.fingerprint == plain.fingerprint


def slow(file):
    time.sleep(60)


def dead(file):
    if file.path.endswith("1.tar"):
        os.kill(os.getpid(), signal.SIGKILL)
    return _tar.scan(file)


def test_killed_workers_and_parents(web):
    files = sorted(map(str, web.glob("*.tar")))
    with pytest.raises(plugin.UserError, match="worker was killed .*start again"):
        _sidecar.build(files, _tar.KIND, dead, workers=2)
    assert indexes.index(str(web))["samples"] == 8
    code = (
        "from tests.data import test_indexes as t\n"
        f"t._sidecar.build({files!r}, 'slow 1', t.slow, workers=2)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT) as process:
        children = []
        while len(children) < 3 and process.poll() is None:  # two, and Python's own watcher
            children = psutil.Process(process.pid).children()
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(signal.SIGKILL)
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert len(gone) == 3 and not alive
    assert indexes.index(str(web))["made"] == 0


def test_indexes_hold_what_a_scan_finds(web):
    path = str(web / "0.tar")
    plain = _sidecar.indexed(path, _tar.KIND, _tar.scan)[1]
    indexes.index(path)
    kept = _sidecar.indexed(path, _tar.KIND, slow)[1]
    assert plain.keys() == kept.keys()
    for name in plain:
        np.testing.assert_array_equal(plain[name], kept[name])
