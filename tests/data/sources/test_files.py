import concurrent.futures
import functools
import multiprocessing
import os
import pickle
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
