import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest

from tests.data.sources import lerobot_sets as sets
from vla_jax.data import passing
from vla_jax.data.sources import _video, lerobot
from vla_jax.plugin import UserError


@pytest.mark.parametrize("codec, group", [("libx264", 2), ("libx264", 30), ("libsvtav1", 2)])
def test_frames_by_time_in_any_order(tmp_path, codec, group):
    """Against decoding from the first frame on; B frames and rare key frames among them."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (8, 8, 3)).astype(np.uint8) for _ in range(70)]
    pictures = [picture.repeat(8, 0).repeat(8, 1) for picture in pictures]
    sets.video(tmp_path / "v.mp4", pictures, codec, group)
    with av.open(str(tmp_path / "v.mp4")) as opened:
        plain = [frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]
    assert len(plain) == 70
    for _ in range(60):
        wanted = rng.choice(70, size=rng.integers(1, 5))
        got = _video.frames(tmp_path / "v.mp4", (wanted / sets.FPS).tolist(), "here")
        for number, frame in zip(wanted, got, strict=True):
            np.testing.assert_array_equal(frame, plain[number], err_msg=str(wanted))
    for time in (-0.1, 3.05, 6.95, 7.0, 100.0):
        with pytest.raises(UserError, match="here: .*v.mp4: no frame at"):
            _video.frames(tmp_path / "v.mp4", [time], "here")


def test_a_fault_says_whether_it_may_pass(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="here: .*v.mp4: no such file") as raised:
        _video.frames(tmp_path / "v.mp4", [0.0], "here")
    assert not passing.passes(raised.value)
    (tmp_path / "v.mp4").write_bytes(b"none" * 99)
    with pytest.raises(UserError) as raised:
        _video.frames(tmp_path / "v.mp4", [0.0], "here")
    assert not passing.passes(raised.value)

    def hindered(path):
        raise OSError(5, "Input/output error", path)

    monkeypatch.setattr(_video, "_Decoder", hindered)
    with pytest.raises(UserError, match="here: .*v.mp4.*copy the video") as raised:
        _video.frames(tmp_path / "v.mp4", [0.0], "here")
    assert passing.passes(raised.value)


def test_a_window_is_one_seek(tmp_path, monkeypatch):
    pictures = [sets.picture(0, t % 20, 32) for t in range(60)]
    sets.video(tmp_path / "v.mp4", pictures, group=2)
    seeks, seek = [], _video._Decoder._seek
    monkeypatch.setattr(
        _video._Decoder, "_seek", lambda self, *a: (seeks.append(a), seek(self, *a))[1]
    )
    for first in (40, 3, 20):
        _video.frames(tmp_path / "v.mp4", [(first + i) / sets.FPS for i in range(8)], "here")
    assert len(seeks) == 3
    _video.frames(tmp_path / "v.mp4", [2.8, 2.9], "here")  # where the last window ended
    assert len(seeks) == 3


def test_threads_and_a_forked_process_share_nothing(tmp_path, context):
    whole = sets.write_v21(tmp_path / "set")
    source = lerobot.make(context, path=whole, standardizer=sets.STANDARDIZER, holdout=0)
    want = [source.sample(i, np.random.default_rng(0)) for i in range(len(source))]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: source.sample(i % 28, np.random.default_rng(0)), range(140)))
    for i, row in enumerate(got):
        np.testing.assert_equal(row, want[i % 28])
    assert len(_video._idle) <= _video.KEPT
    done = subprocess.run(
        [sys.executable, "-c", FORK, f"{whole}/videos/chunk-000/{sets.CAMERA}/episode_000001.mp4"],
        timeout=30,
    )
    assert done.returncode == 0


FORK = """
import os, sys
from vla_jax.data.sources import _video
_video.frames(sys.argv[1], [0.0], "here")
assert len(_video._idle) == 1
if os.fork() == 0:
    assert not _video._idle and _video._lock.acquire(blocking=False)
    os._exit(3)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 3 and len(_video._idle) == 1
"""
