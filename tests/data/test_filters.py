"""Episodes chosen by an expression or by the user's function; steps that do nothing."""

import dataclasses
import functools
import json
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.sources import lerobot_sets
from vla_jax import plugin
from vla_jax.data import episodes, filters, selection
from vla_jax.data.sources import _lerobot_folder, lerobot
from vla_jax.data.sources import rlds as source_lib
from vla_jax.embodiments import widowx


def table(lengths=(3, 5, 7), **columns):
    rows = [
        (
            episodes.Episode(
                id=f"e{i}",
                steps=np.arange(length),
                action=np.full((length, 2), float(i)),
                proprio={"hand": np.full((length, 1), -10.0 * i)},
                language=["pick up" if i else ""] * length,
                embodiment="arm",
                action_space="a",
                metadata={name: values[i] for name, values in columns.items()},
            ),
            {},
            0,
            i,
            0,
        )
        for i, length in enumerate(lengths)
    ]
    return episodes.collect("here", "data", rows, ())


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((), [0, 1, 2]),
        ("length >= 5", [1, 2]),
        ("labelled and not max_action > 1", [1]),
        ("max_proprio < 15 or id == 'e2'", [0, 1, 2]),
        ("3 < length < 7", [1]),
        ("scene_name in ['a', 'b'] and success", [0]),
        (("success", "length - 2 > 0 and -length < 0"), [0, 2]),
        ("'pick' in instruction and length % 7 == 0", [2]),
    ],
)
def test_expressions(given, kept):
    data = table(**{"scene/name": ("a", "b", "c"), "success": (True, False, True)})
    assert filters.keep("here", data, np.arange(3), given).tolist() == kept


def test_a_function_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "my_filters.py").write_text(
        "def kept(facts, at_least):\n    return facts['length'] >= at_least\n"
        "def broken(facts):\n    return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = dict(function="my_filters.kept", at_least=5)
    assert filters.keep("here", table(), np.arange(3), spec).tolist() == [1, 2]
    with pytest.raises(plugin.UserError, match="answered None for episode e0"):
        filters.keep("here", table(), np.arange(3), dict(function="my_filters.broken"))
    with pytest.raises(plugin.UserError, match="PYTHONPATH"):
        filters.keep("here", table(), np.arange(3), dict(function="my_filters.absent"))
    sys.modules.pop("my_filters", None)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("lenght > 2", "did you mean 'length'"),
        ("length >", "is no expression"),
        ("__import__('os')", "may not stand in a filter"),
        ("id.upper() == 'A'", "may not stand in a filter"),
        ("id < 3", "episode e0: .*compare like with like"),
        ("length > 99", "leaves none of 3 episodes"),
        (dict(function="kept"), "expected a dotted name"),
    ],
)
def test_mistakes(given, match):
    with pytest.raises(plugin.UserError, match=match):
        filters.keep("here", table(), np.arange(3), given)


def test_filtered_episodes_are_counted_and_leave_statistics(folder, context):
    whole = source_lib.make(context, path=str(folder), holdout=0)
    some = source_lib.make(
        context, path=str(folder), holdout=0, filter="instruction != 'touch the cat'"
    )
    assert whole.summary()["episodes"] == 12 and "filtered" not in whole.summary()
    assert some.summary()["episodes"] == 6 and some.summary()["filtered"] == 6
    assert some.statistics_columns()["action"].rows == 6 * 7
    assert some.summary()["filtered"] == 6, "asking for statistics changes no count"
    assert some.data_fingerprint != whole.data_fingerprint


def test_at_most_so_many_samples_of_an_episode(folder, context):
    made = source_lib.make(context, path=str(folder), holdout=0, samples_per_episode=3)
    assert np.bincount(made._samples[:, 0]).tolist() == [3] * 12
    assert len({tuple(made._samples[made._samples[:, 0] == e][:, 1]) for e in range(12)}) > 4
    again = source_lib.make(context, path=str(folder), holdout=0, samples_per_episode=3)
    np.testing.assert_array_equal(made._samples, again._samples)
    with pytest.raises(plugin.UserError, match="samples_per_episode=0"):
        source_lib.make(context, path=str(folder), samples_per_episode=0)


STEP = st.tuples(st.booleans(), st.booleans())  # the hand moves, the gripper is closed
SPACE = widowx.EMBODIMENT.action_spaces[0]


def plain_noops(action, threshold):
    """OpenVLA's loop over one LIBERO episode, by its description: motion first, gripper last."""
    kept, dropped = [], []
    for row in action:
        still = np.linalg.norm(row[:-1]) < threshold
        same = not kept or row[-1] == kept[-1][-1]
        dropped.append(bool(still and same))
        if not dropped[-1]:
            kept.append(row)
    return dropped


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(STEP, min_size=1, max_size=9), min_size=1, max_size=3))
def test_steps_that_do_nothing_are_openvla_s(steps):
    rows = []
    for i, episode in enumerate(steps):
        action = np.zeros((len(episode), 7), np.float32)
        action[:, 2] = [0.01 * moves for moves, _ in episode]
        action[:, 6] = [closed for _, closed in episode]
        part = episodes.Episode(
            id=str(i), steps=np.arange(len(episode)), action=action, proprio={},
            language=[""] * len(episode), embodiment="widowx", action_space=SPACE.name,
        )  # fmt: skip
        rows.append((part, {}, 0, i, 0))
    data = episodes.collect("here", "data", rows, ())
    got = selection.noops(data, SPACE, 1e-4)
    wanted = [plain_noops(part.action, 1e-4) for part, *_ in rows]
    assert got.tolist() == [drop for episode in wanted for drop in episode]
    left, kept = selection.without(data, got)
    assert left.lengths.tolist() == [len(e) - sum(e) for e in wanted]
    np.testing.assert_array_equal(left.action, data.action[kept])
    np.testing.assert_array_equal(left.step, data.step[kept])


def test_an_absolute_command_that_repeats_itself_does_nothing():
    (xyz,) = (g for g in SPACE.groups[:1])
    space = dataclasses.replace(
        SPACE, groups=(dataclasses.replace(xyz, representation="absolute"), *SPACE.groups[1:])
    )
    data = table((4,))
    action = np.zeros((4, 7), np.float32)
    action[:, 0] = [5, 5, 6, 6]
    data = dataclasses.replace(data, action=action)
    assert selection.noops(data, space, 1e-4).tolist() == [False, True, False, True]


def test_rows_without_idle_steps_keep_their_own_pictures(rlds, tmp_path, context):
    episode = rlds.episode(3)
    episode["steps/action"][2:5, :3] = 0
    episode["steps/action"][:, 3] = 0
    path = rlds.write(tmp_path / "idle", [episode], shards=1)
    made = source_lib.make(context, path=str(path), holdout=0, noop_threshold=1e-4)
    assert made.summary()["idle"] == 3 and len(made) == 4
    assert made.episodes.step.tolist() == [0, 1, 5, 6]
    row = made.sample(2, np.random.default_rng(0))  # recorded step 5, after step 1
    pictures = row["observation"]["images"]["primary"]
    assert np.abs(pictures[:, 8, 8, 0].astype(int) - [13, 53]).max() <= 1
    assert row["targets"]["action"][0, :, 1].tolist() == [1, 5, 6]
    whole = source_lib.make(context, path=str(path), holdout=0)
    assert whole.data_fingerprint != made.data_fingerprint


def ids(context, make, **arguments) -> list[str]:
    source = make(context, **arguments)
    return [source.episodes.ids[e] for e in source.selected.tolist()]


def test_metadata_of_rlds(tmp_path, rlds, context):
    episodes = [
        rlds.episode(
            i,
            **{
                "episode_metadata/file_path": [f"/lab_{i % 2}/{i}.hdf5".encode()],
                "episode_metadata/success": np.array([i != 3]),
                "episode_metadata/score": np.float32([i / 4]),
            },
        )
        for i in range(6)
    ]
    path = str(rlds.write(tmp_path / "arm_data" / "1.0.0", episodes))
    tree = json.loads((tmp_path / "arm_data/1.0.0/features.json").read_text())
    leaves = tree["featuresDict"]["features"]["episode_metadata"]["featuresDict"]["features"]
    leaves["file_path"] = {"text": {}}
    leaves["success"] = {"tensor": {"shape": {}, "dtype": "bool"}}
    leaves["score"] = {"tensor": {"shape": {"dimensions": ["1"]}, "dtype": "float32"}}
    (tmp_path / "arm_data/1.0.0/features.json").write_text(json.dumps(tree))
    row = dict(
        embodiment="arm",
        action_space="xyz_gripper",
        views={"primary": "observation/images/primary"},
        action="action",
        proprio={"hand": "observation/proprio/hand"},
        language="language_instruction",
        episode_id="episode_id",
    )
    # The row names none of them: they are known nevertheless.
    for standardizer in ("native", dict(type="rows", row=row)):
        given = dict(path=path, holdout=0, standardizer=standardizer)
        find = functools.partial(ids, context, source_lib.make, **given)
        assert find(filter="success and 'lab_1' in file_path") == ["e1", "e5"]
        assert sorted(find(filter="0.5 <= score < 1.25")) == ["e2", "e3", "e4"]
        with pytest.raises(plugin.UserError, match="did you mean 'file_path'"):
            find(filter="file_pth == 'x'")


def test_metadata_of_lerobot_v21(tmp_path, context):
    path = lerobot_sets.write_v21(tmp_path / "set", kind="image")
    listed = tmp_path / "set/meta/episodes.jsonl"
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    more = [dict(operator="Zoë", success=True), dict(success=False), {}, dict(operator="Bo")]
    listed.write_text("".join(json.dumps({**a, **b}) + "\n" for a, b in zip(rows, more)))
    find = functools.partial(
        ids, context, lerobot.make, path=path, holdout=0, standardizer=lerobot_sets.STANDARDIZER
    )
    assert find(filter="task == 'touch the cat'") == ["episode_000001", "episode_000003"]
    assert find(filter="success") == ["episode_000000"], "what is not said is not true"
    assert find(filter="operator in ['Zoë', 'Bo']") == ["episode_000000", "episode_000003"]
    assert find(filter="episode_index > 2 or success") == ["episode_000000", "episode_000003"]
    with pytest.raises(plugin.UserError, match="did you mean 'operator'"):
        find(filter="operater == 'Bo'")


def test_metadata_of_lerobot_v3(tmp_path, fixtures_dir):
    path = tmp_path / "set"
    shutil.copytree(fixtures_dir / "lerobot/lerobot_v3_sample", path)
    file = path / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    count = len(table)
    table = table.append_column("quality", pa.array([None, *range(1, count)]))
    order = np.arange(count)[::-1]  # rows need not stand in order, nor in one file
    pq.write_table(table.take(order[:1]).drop(["stats/action/mean"]), file)
    pq.write_table(table.take(order[1:]), file.with_name("file-001.parquet"))
    folder = _lerobot_folder.open_folder(path)
    tasks = [t[0] for t in table["tasks"].to_pylist()]
    assert folder.facts == {"task": tasks, "quality": [None, *range(1, count)]}
