import json
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from vla_jax.data.sources import lerobot as source
from vla_jax.data.writers import _lerobot_stats, lerobot
from vla_jax.plugin import UserError

CAMERA = np.arange(12, dtype=np.float32).reshape(3, 4)
KILLED = """
import sys
from tests.data.writers import test_lerobot as test
from vla_jax.data.writers import _lerobot_files, lerobot
out, place, append = sys.argv[1:]

def wait(*_):
    print("here", flush=True)
    sys.stdin.read()

if place == "publish":
    lerobot.Writer.publish = wait
elif place == "swap":
    rename = lerobot._spool.pathlib.Path.rename
    def swap(self, target):
        if self.name == "built":
            wait()
        return rename(self, target)
    lerobot._spool.pathlib.Path.rename = swap
else:
    setattr(_lerobot_files, place, wait)
lerobot.write(out, [test.episode(9)], append=append == "append")
"""


def episode(i, length=6, size=(32, 48), instruction=None, **metadata):
    rng = np.random.default_rng(i)
    rows, columns = np.mgrid[: size[0], : size[1]]
    pictures = [
        np.stack([rows * 4 + i, columns * 3, np.full(size, 20 * t)], -1).astype(np.uint8)
        for t in range(length)
    ]
    return dict(
        action=rng.standard_normal((length, 4)).astype(np.float32),
        images={"primary": pictures, "wrist": pictures[::-1]},
        proprio={"hand": rng.standard_normal((length, 3)).astype(np.float32)},
        instruction=instruction or f"touch the {'cat' if i % 2 else 'dog'}",
        metadata=dict(
            episode_id=f"e{i}",
            embodiment="arm",
            action_space="xyz_gripper",
            control_hz=10.0,
            success=bool(i % 2),
            camera={"primary": CAMERA},
        )
        | metadata,
    )


def stats_of(out) -> dict:
    return json.loads((out / "meta/stats.json").read_text())


def neighbours(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("codec", [None, "h264", "av1"])
def test_what_is_written_is_read(tmp_path, codec):
    episodes = [episode(i, length=5 + i, size=(64, 80)) for i in range(3)]
    assert lerobot.write(tmp_path / "set", episodes, codec=codec) == 3
    assert neighbours(tmp_path) == ["set"]
    raw = source.raw(tmp_path / "set")
    assert raw.splits == {"train": 3} and raw.kind == "LeRobot v3.0"
    for i, want in enumerate(episodes):
        got = raw.episode(i)
        np.testing.assert_array_equal(got["action"], want["action"])
        np.testing.assert_array_equal(got["observation.state"], want["proprio"]["hand"])
        assert set(got["task"]) == {want["instruction"]}
        assert got["next.success"].tolist() == [False] * (4 + i) + [bool(i % 2)]
        assert got["next.done"].tolist() == [False] * (4 + i) + [True]
        np.testing.assert_allclose(got["timestamp"], np.arange(5 + i) / 10, atol=1e-6)
        for view, pictures in want["images"].items():
            off = np.abs(got[f"observation.images.{view}"].astype(int) - np.stack(pictures))
            assert got[f"observation.images.{view}"].shape == (5 + i, 64, 80, 3)
            # PNG is exact; a video keeps every second pixel's colour, and loses some detail.
            assert off.max() == 0 if codec is None else off.mean() < 4
            if codec is not None:  # each frame is nearest to itself, not to its neighbours
                blue = got[f"observation.images.{view}"][..., 2].mean((1, 2))
                wanted = [picture[..., 2].mean() for picture in pictures]
                assert np.abs(blue - wanted).max() < 6


def test_our_own_data_need_no_row(tmp_path, context):
    lerobot.write(tmp_path / "set", [episode(i) for i in range(3)])
    rows = source.make(context, path=str(tmp_path / "set"), holdout=0)
    table, _ = source.recorded(str(tmp_path / "set"))
    assert table.ids == ("e0", "e1", "e2") and (table.embodiment == "arm") and len(rows) == 18
    np.testing.assert_array_equal(table.action[6:12], episode(1)["action"])
    np.testing.assert_array_equal(table.proprio["hand"][6:12], episode(1)["proprio"]["hand"])
    np.testing.assert_array_equal(table.cameras["primary"][2], CAMERA)
    assert set(table.frames) == {"primary", "wrist"}
    assert list(table.metadata["success"]) == [False, True, False]
    assert rows.sample(2, np.random.default_rng(0))["observation"]["images"]["primary"].any()


def test_the_form_is_lerobots_own(tmp_path, fixtures_dir):
    """The fixture's numbers, frames and texts written again: the same files in the same form."""
    root = fixtures_dir / "lerobot/lerobot_v3_sample"
    raw = source.raw(root)
    episodes = []
    for i in range(len(raw)):
        found = raw.episode(i)
        views = {v: list(found[f"observation.images.{v}"]) for v in ("top", "wrist")}
        episodes.append(
            dict(
                action=found["action"],
                images=views,
                proprio={"state": found["observation.state"]},
                instruction=str(found["task"][0]),
                metadata={},
            )
        )
    out = tmp_path / "again"
    lerobot.write(out, episodes, control_hz=10, embodiment="widowx")
    files = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == files
    for name in sorted(n for n in files if n.endswith(".parquet")):
        ours, theirs = pq.ParquetFile(out / name), pq.ParquetFile(root / name)
        assert ours.schema_arrow.names == theirs.schema_arrow.names, name
        assert ours.schema_arrow.types == theirs.schema_arrow.types, name
        assert set(ours.schema_arrow.metadata or ()) == set(theirs.schema_arrow.metadata or ())
        sizes = [
            [f.metadata.row_group(g).num_rows for g in range(f.metadata.num_row_groups)]
            for f in (ours, theirs)
        ]
        assert sizes[0] == sizes[1], name
        columns = [c for c in ours.schema_arrow.names if not c.startswith("stats/")]
        assert ours.read(columns).to_pylist() == theirs.read(columns).to_pylist(), name
    known = [pq.read_schema(r / "data/chunk-000/file-000.parquet").metadata for r in (out, root)]
    ours, theirs = (json.loads(each[b"huggingface"])["info"]["features"] for each in known)
    assert ours == theirs
    pandas = [json.loads(pq.read_schema(r / "meta/tasks.parquet").metadata[b"pandas"]) for r in
              (out, root)]  # fmt: skip
    assert pandas[0] == pandas[1] | {"creator": pandas[0]["creator"]}
    ours, theirs = (json.loads((r / "meta/info.json").read_text()) for r in (out, root))
    for feature in (*ours["features"].values(), *theirs["features"].values()):
        feature.pop("names")
    assert ours == theirs and list(ours) == list(theirs)
    ours, theirs = stats_of(out), stats_of(root)
    assert set(ours) == set(theirs)
    for name, theirs_ in theirs.items():
        assert set(ours[name]) == set(theirs_)
        exact = ("min", "max", "mean", "std", "count")
        if "images" in name:
            exact = ("count",)  # LeRobot measured the pictures before it encoded them
        for kind in exact:
            np.testing.assert_allclose(ours[name][kind], theirs_[kind], atol=1e-6)
            assert np.shape(ours[name][kind]) == np.shape(theirs_[kind])


def test_statistics_are_those_of_numpy(tmp_path):
    lengths = (3, 9, 4)
    episodes = [episode(i, length=n) for i, n in enumerate(lengths)]
    lerobot.write(tmp_path / "set", episodes, codec=None)
    found = stats_of(tmp_path / "set")
    actions = np.concatenate([e["action"] for e in episodes]).astype(np.float64)
    pixels = np.concatenate([np.stack(e["images"]["primary"]) for e in episodes]) / 255.0
    shares = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
    for name, values in (("action", actions), ("observation.images.primary", pixels)):
        flat = values.reshape(-1, values.shape[-1])
        want = dict(min=flat.min(0), max=flat.max(0), mean=flat.mean(0), std=flat.std(0))
        want |= {q: np.quantile(flat, share, axis=0) for q, share in shares.items()}
        for kind, value in want.items():
            got = np.asarray(found[name][kind])
            assert got.shape == ((4,) if name == "action" else (3, 1, 1))
            np.testing.assert_allclose(got.ravel(), value, atol=1e-9, err_msg=f"{name} {kind}")
        assert found[name]["count"] == [sum(lengths)]
    assert _lerobot_stats.sampled(2000)[[0, -1]].tolist() == [0, 1999]
    assert len(_lerobot_stats.sampled(2000)) == int(2000**0.75)


@pytest.mark.parametrize("codec", ["h264", None])
def test_added_to_is_as_written_at_once(tmp_path, codec):
    episodes = [episode(i, length=4 + i) for i in range(4)]
    lerobot.write(tmp_path / "once", episodes, codec=codec)
    lerobot.write(tmp_path / "twice", episodes[:3], codec=codec)
    lerobot.write(tmp_path / "twice", episodes[3:], codec=codec, append=True)
    assert neighbours(tmp_path) == ["once", "twice"]
    once, twice = source.raw(tmp_path / "once"), source.raw(tmp_path / "twice")
    assert len(once) == len(twice) == 4
    for i in range(4):
        ours, theirs = once.episode(i), twice.episode(i)
        for name in ours:
            if "images" not in name:
                np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert stats_of(tmp_path / "once")["action"] == stats_of(tmp_path / "twice")["action"]
    ours, theirs = (source.recorded(str(tmp_path / n))[0] for n in ("once", "twice"))
    assert ours.ids == theirs.ids and ours.language == theirs.language
    with pytest.raises(UserError, match="exists and is not empty"):
        lerobot.write(tmp_path / "once", episodes)
    with pytest.raises(UserError, match="steps/s"):
        lerobot.write(tmp_path / "once", episodes, codec=codec, append=True, control_hz=5)
    assert len(source.raw(tmp_path / "once")) == 4


@pytest.mark.parametrize("append", ["new", "append"])
@pytest.mark.parametrize("place", ["write_tasks", "write_json", "publish", "swap"])
def test_a_killed_writer_leaves_nothing_that_reads_as_whole(tmp_path, place, append):
    out = tmp_path / "set"
    if append == "append":
        lerobot.write(out, [episode(i) for i in range(2)])
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(out), place, append],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stdout.readline() == "here\n"
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        child.communicate()
    if append == "append" and place != "swap":
        assert len(source.raw(out)) == 2 and source.raw(out).episode(1)["action"].any()
    else:
        assert not out.exists() and not source.is_at(out)
    lerobot.write(out, [episode(9)], append=append == "append")
    assert len(source.raw(out)) == (3 if append == "append" else 1)
    assert source.raw(out).episode(len(source.raw(out)) - 1)["action"].shape == (6, 4)


def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path):
    def refused(match, *episodes, **options):
        with pytest.raises(UserError, match=match):
            lerobot.write(tmp_path / "set", episodes, **options)
        assert neighbours(tmp_path) == []

    good = episode(0)
    holes = good | {"images": good["images"] | {"wrist": [None, *good["images"]["wrist"][1:]]}}
    refused(r"images/wrist: no picture at steps \[0\].*write RLDS", holes)
    refused("no episodes to write")
    refused("codec: unknown 'h265'.*h264", good, codec="h265")
    odd = episode(0, size=(31, 48))
    refused("pictures of 31 x 48, expected even sides", odd)
    refused("episode 1 has .* not the features of those before", good, episode(1, size=(16, 16)))
    refused("steps per second", good | {"metadata": {}})
    nan = good["action"].copy()
    nan[2, 1] = np.nan
    refused(r"action: not finite at steps \[2\]", good | {"action": nan})
    mixed = [good["images"]["primary"][0], *odd["images"]["primary"][1:]]
    refused("expected one size", good | {"images": {"primary": mixed}})


def test_files_are_cut_when_they_are_large(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot._lerobot_files, "DATA_MB", 1e-4)
    monkeypatch.setattr(lerobot._lerobot_files, "VIDEO_MB", 1e-4)
    monkeypatch.setattr(lerobot._lerobot_files, "FILES_PER_CHUNK", 2)
    episodes = [episode(i) for i in range(5)]
    lerobot.write(tmp_path / "set", episodes)
    files = sorted(p.relative_to(tmp_path / "set/data") for p in tmp_path.glob("set/data/*/*"))
    assert [str(f) for f in files[:3]] == [
        "chunk-000/file-000.parquet", "chunk-000/file-001.parquet", "chunk-001/file-000.parquet",
    ]  # fmt: skip
    raw = source.raw(tmp_path / "set")
    for i, want in enumerate(episodes):
        np.testing.assert_array_equal(raw.episode(i)["action"], want["action"])
