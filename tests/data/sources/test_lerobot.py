import json
import pathlib
import pickle
import shutil

import av
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.sources import lerobot_sets as sets
from vla_jax.data.sources import _video, lerobot
from vla_jax.plugin import UserError

ROWS = dict(standardizer=sets.STANDARDIZER, holdout=0)


def rng():
    return np.random.default_rng(0)


def plain_v21(root) -> list[dict]:
    """Every field of every episode of a v2.1 set, by pyarrow and PyAV, from the first frame on."""
    tasks = {
        row["task_index"]: row["task"]
        for row in map(json.loads, (root / "meta/tasks.jsonl").read_text().splitlines())
    }
    found = []
    for file in sorted(root.glob("data/*/*.parquet")):
        rows = pq.read_table(file).to_pylist()
        episode = {name: np.asarray([row[name] for row in rows]) for name in rows[0]}
        episode["task"] = np.asarray([tasks[row["task_index"]] for row in rows])
        for video in sorted(root.glob(f"videos/*/*/{file.stem}.mp4")):
            with av.open(str(video)) as opened:
                frames = [f.to_ndarray(format="rgb24") for f in opened.decode(video=0)]
            episode[video.parent.name] = np.stack(frames)
        found.append(episode)
    return found


def test_v3_equals_what_lerobot_reads(fixtures_dir):
    expected = np.load(fixtures_dir / "lerobot/lerobot_v3_sample_expected.npz")
    source = lerobot.raw(str(fixtures_dir / "lerobot/lerobot_v3_sample"))
    episodes = [source.episode(i) for i in range(3)]
    assert (source.kind, source.splits) == ("LeRobot v3.0", {"train": 3})
    assert [len(e["action"]) for e in episodes] == [12, 16, 20]
    compared = 0
    for key in expected:
        row, name = key.split("/")
        episode = episodes[int(expected[f"{row}/episode_index"])]
        step, want = int(expected[f"{row}/frame_index"]), expected[key]
        if name == "action_is_pad":
            continue
        got = episode[name][step]
        if name == "action":  # a chunk of four; what stands past the end is LeRobot's padding
            got = episode[name][step : step + 4]
            want = want[~expected[f"{row}/action_is_pad"]]
        if name.startswith("observation.images"):
            got = got.transpose(2, 0, 1) / np.float32(255)
        assert got.dtype == want.dtype, key
        np.testing.assert_array_equal(got, want, err_msg=key)
        compared += 1
    assert compared == 6 * 9


def test_v21_equals_a_plain_reading(fixtures_dir):
    root = fixtures_dir / "lerobot/lerobot_v21_sample"
    source, plain = lerobot.raw(str(root)), plain_v21(root)
    assert len(source) == len(plain) == 3
    for i, want in enumerate(plain):
        got = source.episode(i)
        assert set(got) == set(want) == set(source.fields)
        for name, values in want.items():
            np.testing.assert_array_equal(got[name], values, err_msg=name)


@pytest.mark.parametrize("kind", ["video", "image"])
def test_a_row_says_what_was_recorded(tmp_path, context, kind):
    path = sets.write_v21(tmp_path / "arm_data", kind=kind)
    source = lerobot.make(context, path=path, **ROWS)
    assert len(source) == 4 * 7 and source.dataset_key == "arm_data"
    assert source.episodes.ids[3] == "episode_000003"
    (index,) = np.flatnonzero((source._samples == (1, 3)).all(1))
    row = source.sample(int(index), rng())
    pictures = row["observation"]["images"]["primary"]
    assert np.abs(pictures[:, 8, 8].astype(int) - [[100] * 3, [110] * 3]).max() <= 2
    np.testing.assert_allclose(row["observation"]["proprio"]["hand"][1], [1, 0.3, -3])
    assert row["targets"]["action"][1, :, :4].tolist() == [
        [1, 3, -3, 1],
        [1, 4, -4, 0],
        [1, 5, -5, 1],
    ]
    assert row["task"]["values"]["language"].tolist() == [5, 3, 3, 0]
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_equal(again.sample(int(index), rng()), row)


# Damage: each is an error that names the file, the episode and the field.

VIDEO = f"videos/chunk-000/{sets.CAMERA}/episode_000001.mp4"
DATA = "data/chunk-000/episode_000001.parquet"


def read_all(path, context, **arguments):
    """Makes the source and reads every sample and every raw episode."""
    source = lerobot.make(context, path=str(path), **(ROWS | arguments))
    for index in range(len(source)):
        source.sample(index, rng())
    raw = lerobot.raw(str(path))
    return [raw.episode(i) for i in range(len(raw))]


def rewritten(path, name, change) -> None:
    """Changes a JSON file of the set by a function."""
    file = pathlib.Path(path) / name
    if file.suffix == ".jsonl":
        rows = change([json.loads(line) for line in file.read_text().splitlines()])
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        info = json.loads(file.read_text())
        file.write_text(json.dumps(change(info) or info))


def cut(path, name, share=0.5):
    file = pathlib.Path(path) / name
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def info(change):
    return lambda path: rewritten(path, "meta/info.json", change)


def lacks(column):
    def change(path):
        file = pathlib.Path(path) / DATA
        pq.write_table(pq.read_table(file).drop_columns([column]), file)

    return change


DAMAGE = {
    "no video": (lambda p: (p / VIDEO).unlink(), rf"{VIDEO}: no such file"),
    "cut video": (lambda p: cut(p, VIDEO), rf"episode 1, {sets.CAMERA}: .*{VIDEO}: "),
    "no data": (lambda p: (p / DATA).unlink(), rf"{DATA}: no such file"),
    "cut data": (lambda p: cut(p, DATA), rf"{DATA}: not a whole parquet file"),
    "short video": (
        lambda p: sets.video(p / VIDEO, [sets.picture(1, t) for t in range(5)]),
        rf"episode 1, {sets.CAMERA}: .*{VIDEO}: no frame at 0.500000 s, the video ends at 0.5",
    ),
    "other rate": (
        info(lambda i: i.update(fps=0) or i["features"]["action"].update(shape=[5])),
        r"action: rows of \(4,\) numbers .*expected \(5,\)",
    ),
    "old version": (info(lambda i: i.update(codebase_version="v1.6")), "codebase_version 'v1.6'"),
    "unknown version": (info(lambda i: i.update(codebase_version="v9.0")), "v2.0, v2.1, v3.0"),
    "no features": (info(lambda i: i.pop("features") and None), "info.json: features is None"),
    "other kind": (
        info(lambda i: i["features"]["action"].update(dtype="int64")),
        rf"{DATA.replace('1.p', '0.p')}: action: holds float, expected int64",
    ),
    "unknown kind": (
        info(lambda i: i["features"]["action"].update(dtype="float33")),
        "features.action: dtype 'float33'",
    ),
    "template": (
        info(lambda i: i.update(data_path="data/{chunk_index}.parquet")),
        "data_path 'data/{chunk_index}.parquet' cannot be filled",
    ),
    "split": (info(lambda i: i.update(splits={"train": "0:9"})), "'0:9', but there are 4"),
    "hole": (
        lambda p: rewritten(p, "meta/episodes.jsonl", lambda rows: rows[:1] + rows[2:]),
        r"episodes.jsonl: 3 episodes, expected 0 to 3 .*lacks \[1\]",
    ),
    "double": (
        lambda p: rewritten(p, "meta/episodes.jsonl", lambda rows: rows[:3] + rows[:1]),
        r"lacks \[3\], twice \[0\]",
    ),
    "other length": (
        lambda p: rewritten(
            p, "meta/episodes.jsonl", lambda r: [{**row, "length": 6} for row in r]
        ),
        r"episode 0: 7 rows with this episode_index, meta/ says 6",
    ),
    "no task": (
        lambda p: rewritten(p, "meta/tasks.jsonl", lambda rows: rows[:1]),
        rf"{DATA}: episode 1: task_index 1, but meta/tasks has \[0\]",
    ),
    "no column": (lacks("observation.state"), rf"{DATA}: column: unknown 'observation.state'"),
    "not JSON": (lambda p: cut(p, "meta/info.json"), "info.json: not JSON"),
    "not JSON lines": (lambda p: cut(p, "meta/episodes.jsonl", 0.9), "line 4 is no JSON"),
    "no episodes": (lambda p: (p / "meta/episodes.jsonl").unlink(), "episodes.jsonl: no such file"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Four episodes of 7 steps, in videos."""
    return sets.write_v21(tmp_path_factory.mktemp("lerobot") / "set")


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(whole, tmp_path, context, name):
    change, message = DAMAGE[name]
    shutil.copytree(whole, tmp_path / "set")
    change(tmp_path / "set")
    with pytest.raises(UserError, match=f"(?s){message}"):
        read_all(tmp_path / "set", context)


def changed(name, row, value):
    def change(episode, columns):
        if episode == 1:
            values = columns[name].to_pylist()
            values[row] = value
            columns[name] = pa.array(values, columns[name].type)

    return change


@pytest.mark.parametrize(
    "name, row, value, message",
    [
        ("action", 3, [0.0, 0.0, float("nan"), 0.0], "episode_000001, step 3: action dim 2 is nan"),
        ("action", 3, None, "000001.parquet: action: row 3 is empty"),
        ("frame_index", 3, 9, "000001.parquet: episode 1: frame_index 9 at step 3"),
        ("episode_index", 6, 2, "000001.parquet: episode 1: 6 rows with this episode_index"),
        ("task_index", 2, 7, "000001.parquet: episode 1: task_index 7"),
        ("timestamp", 4, 0.45, "episode 1, .*no frame at 0.450000 s, the next is at 0.5"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, context, name, row, value, message):
    sets.write_v21(tmp_path / "set", change=changed(name, row, value))
    with pytest.raises(UserError, match=f"(?s){message}"):
        read_all(tmp_path / "set", context)


@pytest.mark.parametrize("value", [{"bytes": None, "path": "gone.png"}, None, {"bytes": b"x"}])
def test_a_missing_image_is_named(tmp_path, context, value):
    sets.write_v21(tmp_path / "set", kind="image", change=changed(sets.CAMERA, 3, value))
    with pytest.raises(
        UserError, match="(?s)episode (1, observation.images.top|.*step 3, view primary)"
    ):
        read_all(tmp_path / "set", context)


def test_an_image_may_lie_beside_its_parquet_file(tmp_path, context):
    path = tmp_path / "set"
    change = changed(sets.CAMERA, 3, {"bytes": None, "path": "images/three.png"})
    sets.write_v21(path, kind="image", change=change)
    (path / "images").mkdir()
    (path / "images/three.png").write_bytes(sets.png(sets.picture(1, 3) + 7))
    frames = read_all(path, context)[1][sets.CAMERA]
    assert frames[3, 0, 0, 0] == sets.picture(1, 3)[0, 0, 0] + 7
    assert frames[2, 0, 0, 0] == sets.picture(1, 2)[0, 0, 0]


def test_columns_that_nobody_asked_for(tmp_path, context):
    """Unknown ones are passed over, annotations and optional ones are there for the tools."""

    def change(episode, columns):
        length = len(columns["action"])
        columns["unheard_of"] = pa.array([{"x": [episode]}] * length)
        columns["note"] = pa.array([f"n{episode}"] * length)
        columns["language_events"] = pa.array([[{"role": "user"}]] * length)
        columns["grid"] = pa.array([[[1.0, 2.0], [3.0, episode]]] * length)

    sets.write_v21(tmp_path / "set", change=change)
    rewritten(
        tmp_path / "set",
        "meta/info.json",
        lambda i: i["features"].update(
            note={"dtype": "string", "shape": [1], "names": None},
            language_events={"dtype": "language", "shape": [1], "names": None},
            grid={"dtype": "float64", "shape": [2, 2], "names": None},
        ),
    )
    found = read_all(tmp_path / "set", context)[2]
    assert "unheard_of" not in found and found["note"].tolist() == ["n2"] * 7
    assert json.loads(found["language_events"][0]) == [{"role": "user"}]
    assert found["grid"].shape == (7, 2, 2) and found["grid"][6, 1].tolist() == [3, 2]
    row = dict(sets.ROW, language="note", action="action[:3]")
    table, _ = lerobot.recorded(str(tmp_path / "set"), standardizer=dict(type="rows", row=row))
    assert table.language == ("n0", "n1", "n2", "n3") and table.action.shape == (28, 3)
    row = dict(sets.ROW, language="language_events")
    with pytest.raises(UserError, match="no such column: unknown 'language_events'"):
        lerobot.recorded(str(tmp_path / "set"), standardizer=dict(type="rows", row=row))
    with pytest.raises(UserError, match="standardizer=dict.*primary.*observation.images.top"):
        lerobot.recorded(str(tmp_path / "set"))


def test_broken_episodes_are_left_out_where_the_config_allows_it(whole, tmp_path, context):
    path = tmp_path / "set"
    shutil.copytree(whole, path)
    cut(path, DATA)
    source = lerobot.make(context, path=str(path), bad_samples="skip", **ROWS)
    assert source.episodes.ids == ("episode_000000", "episode_000002", "episode_000003")
    assert len(source.episodes.skipped) == 1 and DATA in source.episodes.skipped[0]
    with pytest.raises(UserError, match="bad_samples: unknown 'never'"):
        lerobot.make(context, path=str(path), bad_samples="never", **ROWS)


def test_the_table_is_kept_until_something_changes(whole, tmp_path, context, monkeypatch):
    monkeypatch.delenv("VLA_JAX_INDEX_DIR", raising=False)
    path = tmp_path / "set"
    shutil.copytree(whole, path, ignore=shutil.ignore_patterns("vla_index"))

    def tables():
        return sorted(path.glob("vla_index/*/tables/*"))

    first = lerobot.make(context, path=str(path), **ROWS)
    assert len(tables()) == 1 and len(pickle.dumps(first.episodes.action)) < 1000  # its place
    assert lerobot.make(context, path=str(path), **ROWS).fingerprint == first.fingerprint
    assert len(tables()) == 1
    sets.video(path / VIDEO, [sets.picture(0, t) for t in range(9)])
    assert lerobot.make(context, path=str(path), **ROWS).fingerprint != first.fingerprint
    assert len(tables()) == 2
    elsewhere = tmp_path / "elsewhere"
    lerobot.make(context, path=str(path), index_dir=str(elsewhere), **ROWS)
    assert len(tables()) == 2 and len(list(elsewhere.rglob("*.safetensors"))) == 1


@pytest.mark.parametrize("kind", ["video", "image"])
def test_an_object_store_gives_the_same(tmp_path, context, monkeypatch, kind):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local = sets.write_v21(tmp_path / "set", kind=kind)
    store = fsspec.filesystem("memory")
    store.put(local, f"/{tmp_path.name}/{kind}/set", recursive=True)
    url = f"memory://{tmp_path.name}/{kind}/set"
    ours, theirs = (lerobot.make(context, path=p, **ROWS) for p in (local, url))
    assert ours.fingerprint == theirs.fingerprint and theirs.episodes.where.startswith("memory:")
    for index in (0, 9, 27):
        np.testing.assert_equal(theirs.sample(index, rng()), ours.sample(index, rng()))
    want, got = lerobot.raw(local).episode(3), lerobot.raw(url).episode(3)
    np.testing.assert_equal(got, want)
    store.rm(f"/{tmp_path.name}", recursive=True)


@pytest.mark.parametrize("kind", ["video", "image"])
def test_a_cache_of_resized_frames(tmp_path, context, monkeypatch, kind):
    path = sets.write_v21(tmp_path / "set", kind=kind)
    plain = lerobot.make(context, path=path, **ROWS)
    cached = dict(path=str(tmp_path / "cache"), format="raw")
    source = lerobot.make(context, path=path, cache=cached, **ROWS)
    want = [plain.sample(i, rng()) for i in range(28)]
    monkeypatch.setattr(_video, "frames", None)  # no video is opened any more
    for i in (27, 0, 13):
        np.testing.assert_equal(source.sample(i, rng()), want[i])
