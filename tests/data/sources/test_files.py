import concurrent.futures
import functools
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.data.sources import _files


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "deep")
    return f"memory://{uuid.uuid4().hex}/deep"


def test_a_folder_of_files(root):
    first = _files.join(root, "a", "one.bin")
    assert not _files.is_dir(root) and not _files.is_file(first) and _files.names(root) == []
    _files.write(first, b"0123456789")
    _files.write(_files.join(root, "b"), lambda path: pathlib.Path(path).write_bytes(b"made"))
    assert _files.is_dir(root) and _files.is_file(first) and not _files.is_file(root)
    assert _files.names(root) == ["a", "b"] and _files.read(_files.join(root, "b")) == b"made"
    assert (_files.name(first), _files.parent(first)) == ("one.bin", _files.join(root, "a"))
    assert _files.normal(root + "/") == root
    with pytest.raises(plugin.UserError, match=r"deep/a/oen.bin.*did you mean 'one.bin'"):
        _files.read(_files.join(root, "a", "oen.bin"))


def test_byte_ranges_are_read_and_counted(root):
    path = _files.join(root, "shard")
    _files.write(path, bytes(range(256)) * 40)
    file = _files.File(path)
    assert file.stamp.size == 10240
    _files.counts.reset()
    assert file.read(300, 5) == bytes([44, 45, 46, 47, 48]) and file.read(7, 0) == b""
    assert file.read_many([(0, 2), (255, 2)]) == [b"\0\1", b"\xff\0"]
    assert _files.counts.bytes == 9
    again = pickle.loads(pickle.dumps(file))
    assert again.read(1, 3) == b"\1\2\3" and again.stamp == file.stamp
    with file.open() as stream:
        assert stream.read(3) == b"\0\1\2" and stream.read()[-1] == 255
    with pytest.raises(plugin.UserError, match="shard: got 4 of 9 bytes at byte 10236"):
        file.read(10236, 9)


def test_a_changed_file_has_another_stamp(root):
    path = _files.join(root, "shard")
    _files.write(path, b"first")
    before = _files.File(path)
    time.sleep(0.02)
    _files.write(path, b"other")
    assert _files.stat(path) != before.stamp
    if not _files.is_url(path):
        with pytest.raises(plugin.UserError, match="another file than when it was indexed"):
            before.read(0, 5)
    assert _files.File(path).read(0, 5) == b"other"


def test_more_files_than_descriptors(tmp_path):
    files = []
    for i in range(_files.DESCRIPTORS + 30):
        _files.write(tmp_path / str(i), b"%03d" % i)
        files.append(_files.File(tmp_path / str(i)))
    for _ in range(2):
        assert [file.read(0, 3) for file in files] == [b"%03d" % i for i in range(len(files))]
    held = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
    assert sum(path.startswith(str(tmp_path)) for path in held) <= _files.DESCRIPTORS


def test_threads_do_not_close_each_others_files(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "_descriptor", functools.lru_cache(2)(_files._Descriptor))
    for i in range(8):
        _files.write(tmp_path / str(i), b"%d" % i * 1000)
    files = [_files.File(tmp_path / str(i)) for i in range(8)]

    def read(seed):
        rng = np.random.default_rng(seed)
        for i in rng.integers(0, 8, 1500):
            assert files[i].read(500, 9) == b"%d" % i * 9

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))


def _child(file, pipe):
    pipe.send(file.read(1, 3))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning")
def test_a_file_is_read_in_child_processes(method, tmp_path):
    _files.write(tmp_path / "f", b"abcdef")
    file = _files.File(tmp_path / "f")
    file.read(0, 1)
    context = multiprocessing.get_context(method)
    mine, theirs = context.Pipe()
    child = context.Process(target=_child, args=(file, theirs))
    child.start()
    assert mine.recv() == b"bcd"
    child.join()
    assert file.read(0, 2) == b"ab"


KILLED = """
import pathlib, sys, time
from vla_jax.data.sources import _files

def slow(path):
    with open(path, "wb") as file:
        file.write(b"half")
        file.flush()
        print("begun", flush=True)
        time.sleep(60)

_files.write(sys.argv[1], slow)
"""


def test_a_killed_writer_leaves_no_half_file(tmp_path):
    path = tmp_path / "index"
    program = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGKILL)
    assert not path.exists()
    (leftover,) = tmp_path.iterdir()
    os.utime(leftover, (0, 0))
    _files.write(path, b"whole")
    assert path.read_bytes() == b"whole" and list(tmp_path.iterdir()) == [path], "swept"


def test_a_failed_write_leaves_what_was_there(tmp_path):
    _files.write(tmp_path / "f", b"old")

    def fail(path):
        pathlib.Path(path).write_bytes(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        _files.write(tmp_path / "f", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


def test_where_one_can_write(tmp_path):
    assert _files.writable(tmp_path / "not" / "yet") and _files.writable("memory://anywhere")
    assert not _files.writable("/proc/nowhere") or os.getuid() == 0


def test_an_unknown_kind_of_url_is_said():
    with pytest.raises(plugin.UserError, match="nosuch://.*expected a local path or a URL"):
        _files.is_file("nosuch://bucket/file")
