import json
import pickle

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.data.sources import lerobot_sets as sets
from vla_jax.data.sources import lerobot

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
