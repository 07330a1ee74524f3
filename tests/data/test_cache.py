"""The cache of resized images: made once, whole or not at all, bounded, refused when stale."""

import dataclasses
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.data import cache, engine, images, mixture, recordings
from vla_jax.data.sources import rlds as source_lib


@pytest.fixture
def larger(context):
    return dataclasses.replace(context, image_sizes={"primary": (40, 24)}, resize="tensorflow")


def source(folder, context, where=None, **settings):
    given = None if where is None else dict(path=str(where), **settings)
    return source_lib.make(context, path=str(folder), holdout=0, cache=given)


def pictures(made, count=20):
    rows = [
        made.sample(i, np.random.default_rng(i)) for i in range(0, len(made), len(made) // count)
    ]
    return np.stack([row["observation"]["images"]["primary"] for row in rows]).astype(int)


def test_raw_is_what_was_resized_and_jpeg_is_near(folder, larger, tmp_path):
    plain = pictures(source(folder, larger))
    raw = source(folder, larger, tmp_path / "c", format="raw")
    np.testing.assert_array_equal(pictures(raw), plain)
    jpeg = source(folder, larger, tmp_path / "c", quality=98)
    assert 0 < np.abs(pictures(jpeg) - plain).max() <= 4
    assert len(list((tmp_path / "c").iterdir())) == 2
    assert raw.fingerprint != jpeg.fingerprint
    elsewhere = source(folder, larger, tmp_path / "d", format="raw", limit_gb=1)
    assert elsewhere.fingerprint == raw.fingerprint, "where it lies changes no sample"


def test_made_once_and_shared(folder, larger, tmp_path, monkeypatch, capsys):
    first = source(folder, larger, tmp_path, format="raw")
    assert "resizing 84 images of primary" in capsys.readouterr().err
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.bin")}
    monkeypatch.setattr(images, "resize", lambda *a, **k: pytest.fail("resized again"))
    again = pickle.loads(pickle.dumps(source(folder, larger, tmp_path, format="raw")))
    assert capsys.readouterr().err == ""
    monkeypatch.undo()
    np.testing.assert_array_equal(pictures(again), pictures(first))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.bin")} == files


def test_a_resumed_run_reads_the_same(folder, larger, tmp_path):
    spec = dict(
        type="rlds", path=str(folder), cache=dict(path=str(tmp_path)), augment=dict(color=0.2)
    )

    def batches(start, count):
        mix = mixture.Mixture.make({"a": dict(source=spec)}, larger, seed=1)
        with engine.Stream(mix, 4, start_n=start) as stream:
            return [next(stream) for _ in range(count)]

    np.testing.assert_equal(batches(8, 2), batches(0, 4)[2:])


def test_several_files_and_frames_that_are_absent(rlds, tmp_path, larger, monkeypatch):
    monkeypatch.setattr(cache, "FRAMES", 5)
    mask = np.array([1, 0, 1, 1, 0, 1, 1], bool)
    episodes = [
        rlds.episode(i, **{"steps/observation/image_masks/primary": mask}) for i in range(4)
    ]
    path = rlds.write(tmp_path / "data", episodes)
    made = source(path, larger, tmp_path / "c", format="raw")
    assert len(list((tmp_path / "c").rglob("frames-*.bin"))) == 4
    plain = source(path, larger)
    for i in range(len(plain)):
        np.testing.assert_equal(
            made.sample(i, np.random.default_rng(i)), plain.sample(i, np.random.default_rng(i))
        )


def test_a_jpeg_of_the_right_size_is_copied_as_it_is(folder, context, tmp_path):
    made = source(folder, context, tmp_path)
    np.testing.assert_array_equal(pictures(made), pictures(source(folder, context)))


def test_other_data_under_a_cache_are_refused(rlds, tmp_path, larger):
    path = rlds.write(tmp_path / "data", [rlds.episode(i) for i in range(4)])
    source(path, larger, tmp_path / "c")
    changed = [rlds.episode(i) for i in range(4)]
    frames = changed[0]["steps/observation/images/primary"]
    frames[0], frames[1] = frames[1], frames[0]
    rlds.write(path, changed)
    with pytest.raises(plugin.UserError, match="the data changed under it. Delete it"):
        source(path, larger, tmp_path / "c")
    # Other sizes and other episodes have caches of their own.
    wider = dataclasses.replace(larger, image_sizes={"primary": (20, 20)})
    source(path, wider, tmp_path / "c")
    more = rlds.write(tmp_path / "more", [rlds.episode(i) for i in range(5)])
    source(more, larger, tmp_path / "c")


def test_a_limit_is_kept_and_nothing_is_left(folder, larger, tmp_path):
    with pytest.raises(plugin.UserError, match="more than limit_gb=0.0001; raise it"):
        source(folder, larger, tmp_path, format="raw", limit_gb=1e-4)
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob(".*.tmp"))


def test_a_damaged_file_is_named(folder, larger, tmp_path):
    made = source(folder, larger, tmp_path)
    (file,) = tmp_path.rglob("frames-*.bin")
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    with pytest.raises(plugin.UserError, match=f"{file.name}: damaged.*delete this file"):
        source(folder, larger, tmp_path)
    with pytest.raises(plugin.UserError, match="damaged"):
        made.sample(len(made) - 1, np.random.default_rng(0))
    file.unlink()
    with pytest.raises(plugin.UserError, match="needs its cache to stay"):
        pictures(made)
    np.testing.assert_array_equal(pictures(source(folder, larger, tmp_path)) > -1, True)
    assert file.read_bytes() == whole


def test_a_broken_picture_stops_it_and_is_named(rlds, tmp_path, larger):
    broken = {"steps/observation/images/primary": [b"\xff\xd8 no picture"] * 7}
    path = rlds.write(
        tmp_path / "data", [rlds.episode(i, **(broken if i == 2 else {})) for i in range(4)]
    )
    with pytest.raises(plugin.UserError, match="tfrecord.*episode e2, step 0, view primary"):
        source(path, larger, tmp_path / "c")
    assert not list((tmp_path / "c").rglob("frames-*"))


@pytest.mark.parametrize("form", cache.FORMATS)
def test_a_broken_picture_gives_way_if_broken_samples_do(rlds, tmp_path, larger, form):
    broken = {"steps/observation/images/primary": [b"\xff\xd8 no picture"] * 7}
    path = rlds.write(
        tmp_path / "data", [rlds.episode(i, **(broken if i == 2 else {})) for i in range(4)]
    )
    given = dict(path=str(tmp_path / "c"), format=form)
    spec = dict(type="rlds", path=str(path), holdout=0, bad_samples="skip")
    cached, plain = (
        mixture.Mixture.make({"a": dict(source={**spec, **more})}, larger, seed=1)
        for more in (dict(cache=given), {})
    )
    rows = [cached.sample(n) for n in range(28)]
    assert sum(int(row["skipped"]) > 0 for row in rows) == 7
    assert [r["skipped"] for r in rows] == [plain.sample(n)["skipped"] for n in range(28)]
    index = next(i for i in range(28) if "e2" in str(cached.sources["a"].episodes.ids[i // 7]))
    with pytest.raises(plugin.UserError, match="episode e2, step 0.*when the cache was made"):
        cached.sources["a"].sample(index, np.random.default_rng(0))


@pytest.fixture
def hindered(rlds, tmp_path, larger):
    """(cause, row) -> Resized of 4 episodes of 7 steps that skips, reads of the row failing."""
    path = rlds.write(tmp_path / "data", [rlds.episode(i) for i in range(4)], shards=1)
    table, read = recordings.recorded(path)
    times = iter(range(99))

    def make(cause=None, row=-1):
        def reader(view, episode, rows):
            if row in rows:
                raise plugin.UserError(f"no such picture <at 0x{next(times)}>") from cause
            return read(view, episode, rows)

        return cache.resized("here", {"path": str(tmp_path / "c")}, larger, table, reader, True)

    return make


@pytest.mark.parametrize("row", [14, 17])  # one whose picture is hashed, one whose is not
def test_a_read_fault_that_may_pass_leaves_no_hole(hindered, tmp_path, row):
    with pytest.raises(plugin.UserError, match=f"episode e2, step {row - 14}.*this may pass"):
        hindered(OSError(5, "Input/output error"), row)
    assert not list((tmp_path / "c").rglob("frames-*"))
    assert not any(hindered().views["primary"].is_broken(row) for row in range(28))


@pytest.mark.parametrize("row", [14, 17])
def test_what_is_left_empty_is_counted_and_known_again(hindered, tmp_path, capsys, row):
    made = hindered(ValueError("cut"), row)
    told = "1 of 28 images of primary cannot be read and were left empty, the first: "
    assert told in (said := capsys.readouterr().err) and f"episode e2, step {row - 14}" in said
    assert [r for r in range(28) if made.views["primary"].is_broken(r)] == [row]
    hindered(ValueError("cut"), row)  # in other words: it is the same cache
    assert capsys.readouterr().err == "" and len(list((tmp_path / "c").iterdir())) == 1


def test_a_cache_s_folder_may_be_named_as_a_url_of_a_file(folder, larger, tmp_path):
    made = source(folder, larger, f"file://{tmp_path}/c")
    assert pictures(made).size and len(list((tmp_path / "c").iterdir())) == 1


def test_mistakes(folder, larger, tmp_path):
    for given, match in (
        (dict(quality=95), "give path"),
        (dict(path=str(tmp_path), form="raw"), "did you mean 'format'"),
        (dict(path=str(tmp_path), format="png"), "unknown 'png'"),
        (dict(path=str(tmp_path), quality=0), "quality 1 to 100"),
    ):
        with pytest.raises(plugin.UserError, match=match):
            source_lib.make(larger, path=str(folder), cache=given)


KILLED = """
import sys, time
from tests.data import conftest as tiny
from vla_jax.data import cache, images
from vla_jax.data.sources import rlds
from vla_jax.types import SourceContext
cache.FRAMES = 5
resize, done = images.resize, []
def slowly(*arguments):
    done.append(1)
    if len(done) == 13:
        print("ready", flush=True)
        time.sleep(60)
    return resize(*arguments)
images.resize = slowly
context = SourceContext(name="arm", stream="robot", window=2, action_horizon=3, action_size=5,
    image_sizes={"primary": (40, 24)}, resize="tensorflow", embodiments=(tiny.ARM,),
    action_spaces=tiny.ARM.action_spaces)
rlds.make(context, path=sys.argv[1], holdout=0, cache=dict(path=sys.argv[2], format="raw"))
"""


def test_killed_while_it_is_made(folder, larger, tmp_path, monkeypatch):
    project = pathlib.Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(tmp_path)],
        cwd=project,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(project)},
    )
    assert child.stdout.readline().strip() == b"ready"
    time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert list(tmp_path.rglob(".*.tmp")), "it was killed in the middle of a file"
    monkeypatch.setattr(cache, "FRAMES", 5)
    made = source(folder, larger, tmp_path, format="raw")
    np.testing.assert_array_equal(pictures(made), pictures(source(folder, larger)))
    assert not list(tmp_path.rglob(".*.tmp"))
