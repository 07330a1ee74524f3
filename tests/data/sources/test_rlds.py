import dataclasses
import json
import pickle

import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.codecs.text_tokenizer import TextTokenizer
from vla_jax.data import images, inspect, robot, statistics
from vla_jax.data.sources import rlds as source_lib
from vla_jax.embodiments import widowx
from vla_jax.types import SourceContext

BRIDGE = dict(type="oxe", row="bridge")


def rng():
    return np.random.default_rng(0)


def at(source, episode, t):
    """The sample of (episode number, step)."""
    e = source.episodes.ids.index(f"e{episode}")
    (index,) = np.flatnonzero((source._samples == (e, t)).all(1))
    return source.sample(int(index), rng())


def test_a_row_says_what_was_recorded(folder, context):
    source = source_lib.make(context, path=str(folder), holdout=0)
    assert len(source) == 12 * 7 and source.dataset_key == "arm_data"
    row = at(source, 5, 3)
    observation = row["observation"]
    pictures = observation["images"]["primary"]
    assert pictures.shape == (2, 16, 16, 3) and pictures.dtype == np.uint8
    assert np.abs(pictures[:, 8, 8].astype(int) - [[25] * 3, [35] * 3]).max() <= 1
    np.testing.assert_allclose(observation["proprio"]["hand"], [[0, 0.2, 0.5], [0, 0.3, 0.5]])
    assert observation["timestep_mask"].all() and observation["image_masks"]["primary"].all()
    action, mask = row["targets"]["action"], row["target_masks"]["action"]
    assert action.shape == (2, 3, 5) and action.dtype == np.float32
    assert action[1, :, :4].tolist() == [[5, 3, -3, 1], [5, 4, -4, 0], [5, 5, -5, 1]]
    assert mask[..., :4].all() and not mask[..., 4].any() and not action[..., 4].any()
    assert row["task"]["values"]["language"].tolist() == [5, 3, 3, 0]
    assert row["task"]["masks"]["language"].tolist() == [True] * 3 + [False]
    assert row["action_space"] == 0 and row["dataset_key"] == -1


def test_both_ends_of_an_episode(folder, context):
    source = source_lib.make(context, path=str(folder), holdout=0)
    first = at(source, 2, 0)
    assert first["observation"]["timestep_mask"].tolist() == [False, True]
    assert first["observation"]["image_masks"]["primary"].tolist() == [False, True]
    pictures = first["observation"]["images"]["primary"]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert not first["target_masks"]["action"][0].any()
    last = at(source, 2, 6)
    mask = last["target_masks"]["action"][1, :, :4]
    assert mask.tolist() == [[True] * 4, [False] * 4, [False] * 4]
    # A delta is padded with zero, the absolute gripper is held (6 % 2 = 0 at the last step).
    assert last["targets"]["action"][1, 1, :4].tolist() == [0, 0, 0, 0]


def test_the_held_out_share_is_the_rest_whatever_the_storage(folder, context, rlds, tmp_path):
    held = dataclasses.replace(context, train=False)
    train = source_lib.make(context, path=str(folder), holdout=0.25)
    test = source_lib.make(held, path=str(folder), holdout=0.25)

    def ids(source):
        return {source.episodes.ids[e] for e in source.selected}

    assert len(ids(test)) == 3 and not ids(train) & ids(test) and len(ids(train)) == 9
    other = rlds.write(tmp_path / "other", [rlds.episode(i) for i in range(11, -1, -1)], shards=3)
    assert ids(source_lib.make(held, path=str(other), holdout=0.25)) == ids(test)
    assert ids(source_lib.make(held, path=str(other), holdout=0.25, holdout_seed=1)) != ids(test)
    assert train.fingerprint != test.fingerprint
    with pytest.raises(plugin.UserError, match="no held-out episodes"):
        source_lib.make(held, path=str(folder), holdout=0)


def test_stride_then_steps_choose_the_sample_starts(folder, context):
    def starts(**arguments):
        source = source_lib.make(context, path=str(folder), holdout=0, **arguments)
        return sorted({int(t) for _, t in source._samples})

    assert starts(stride=2) == [0, 2, 4, 6]
    assert starts(steps="[:3]") == [0, 1, 2]
    assert starts(stride=2, steps="[:2]") == [0, 2]
    assert starts(steps="[-1:]") == [6]
    for bad in ({"steps": "3"}, {"stride": 0}, {"steps": "[9:]"}):
        with pytest.raises(plugin.UserError, match="steps=|stride="):
            starts(**bad)


def test_samples_start_where_there_are_pictures(rlds, tmp_path, context):
    mask = np.arange(7) % 4 == 0
    changes = {"steps/observation/image_masks/primary": mask.astype(np.int64)}
    path = rlds.write(tmp_path / "d", [rlds.episode(i, **changes) for i in range(3)])
    source = source_lib.make(context, path=str(path), holdout=0)
    assert sorted({int(t) for _, t in source._samples}) == [0, 4]
    assert at(source, 1, 4)["observation"]["image_masks"]["primary"].tolist() == [False, True]


def test_targets_of_the_endpoint(folder, context):
    source = source_lib.make(
        context, path=str(folder), holdout=0, waypoint_group="hand", point_view="primary"
    )
    table = statistics.compute([source])
    source = source.with_normalizer(table)
    row = at(source, 4, 1)
    end = np.array([0, 0.6, 0.4], np.float32)
    np.testing.assert_allclose(
        row["targets"]["waypoint"],
        np.broadcast_to(table.forward("arm_data", "proprio/hand", end), (2, 3)),
        rtol=1e-5,
    )
    assert row["target_masks"]["waypoint"].tolist() == [True, True]
    # camera: (x + .25, y + .5, 2) -> ((0 + .25) / 2, (.6 + .5) / 2)
    np.testing.assert_allclose(row["targets"]["point"], [[0.125, 0.55]] * 2, rtol=1e-5)
    assert row["target_masks"]["point"].all() and row["dataset_key"] == 0
    behind = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, -1]], np.float32)
    assert np.isnan(robot.project(behind, end)).all()


def test_normalized_rows_and_augmentation_off_in_validation(folder, context):
    arguments = dict(path=str(folder), augment=dict(color=0.4, proprio_noise=0.1))
    source = source_lib.make(context, **arguments)
    source = source.with_normalizer(statistics.compute([source]))
    plain = source_lib.make(context, path=str(folder)).with_normalizer(source.context.normalizer)
    one, again, other = (source.sample(3, np.random.default_rng(s)) for s in (0, 0, 1))
    calm = plain.sample(3, rng())
    image = [r["observation"]["images"]["primary"] for r in (one, again, other, calm)]
    hand = [r["observation"]["proprio"]["hand"] for r in (one, again, other, calm)]
    np.testing.assert_array_equal(image[0], image[1])
    assert not np.array_equal(image[0], image[2]) and not np.array_equal(image[0], image[3])
    assert not np.array_equal(hand[0], hand[2]) and np.abs(hand[0] - hand[3]).max() < 0.6
    assert hand[0].dtype == np.float32
    np.testing.assert_array_equal(one["targets"]["action"], calm["targets"]["action"])
    held = source_lib.make(dataclasses.replace(context, train=False), **arguments)
    np.testing.assert_array_equal(
        held.sample(0, np.random.default_rng(0))["observation"]["images"]["primary"],
        held.sample(0, np.random.default_rng(1))["observation"]["images"]["primary"],
    )


def test_images_are_resized_only_where_the_size_differs(folder, context):
    small = dataclasses.replace(context, image_sizes={"primary": (8, 12)})
    assert source_lib.make(small, path=str(folder)).sample(0, rng())["observation"]["images"][
        "primary"
    ].shape == (2, 8, 12, 3)
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    assert images.resize(image, (16, 16)) is image
    halves = image.reshape(8, 2, 8, 2, 3).mean((1, 3))
    assert np.abs(images.resize(image, (8, 8)) - halves).max() <= 0.5, "area: each pixel counts"


def test_an_optional_view_is_zeros_and_masked(folder, context):
    both = dataclasses.replace(context, image_sizes={"primary": (16, 16), "wrist": (8, 8)})
    with pytest.raises(plugin.UserError, match="optional_views"):
        source_lib.make(both, path=str(folder))
    row = source_lib.make(both, path=str(folder), optional_views=["wrist"]).sample(0, rng())
    assert not row["observation"]["images"]["wrist"].any()
    assert not row["observation"]["image_masks"]["wrist"].any()


def test_pickled_without_open_files(folder, context):
    source = source_lib.make(context, path=str(folder), augment=dict(color=0.2))
    before = source.sample(5, rng())
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_equal(again.sample(5, rng()), before)
    assert again.fingerprint == source.fingerprint


def bad(rlds, tmp_path, context, arguments=None, change=None, **columns):
    """Makes and reads a data set whose episode 1 has `columns`."""
    episodes = [rlds.episode(0), rlds.episode(1, **columns), rlds.episode(2)]
    path = rlds.write(tmp_path / "bad", episodes, shards=1)
    if change:
        change(path)
    return source_lib.make(context, path=str(path), **{"holdout": 0, **(arguments or {})})


def nan_action(at=(3, 2)):
    action = np.zeros((7, 4), np.float32)
    action[at] = np.nan
    return {"steps/action": action}


def flip(offset):
    def change(path):
        (shard,) = path.glob("*.tfrecord-*")
        data = bytearray(shard.read_bytes())
        data[offset] ^= 1
        shard.write_bytes(data)

    return change


def truncate(path):
    (shard,) = path.glob("*.tfrecord-*")
    shard.write_bytes(shard.read_bytes()[:-9])


def fewer(path):
    info = json.loads((path / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["4"]
    (path / "dataset_info.json").write_text(json.dumps(info))


TWO = {"steps/observation/proprio/hand": np.zeros((7, 2), np.float32)}
BAD = {
    "nan": (nan_action(), {}, r"episode e1, step 3: action dim 2 is nan"),
    "unlabelled": ({"steps/language_instruction": [b""] * 7}, {}, r"language='optional'"),
    "duplicate": ({"episode_metadata/episode_id": [b"e0"]}, {}, r"two episodes have the id 'e0'"),
    "mixed": ({"episode_metadata/action_space": [b"other"]}, {}, r"several kinds of action_space"),
    "ragged": ({"steps/action": np.zeros((6, 4), np.float32)}, {}, r"different lengths"),
    "empty": ({"steps/action": np.zeros((0, 4), np.float32)}, {}, r"without steps|different len"),
    "dtype": ({"steps/action": np.zeros((7, 3), np.float32)}, {}, r"got 21 numbers.*\(4,\)"),
    "proprio": (TWO, {}, r"got 14 numbers"),
    "split": ({}, dict(split="trian"), r"did you mean 'train'"),
    "slice": ({}, dict(split="train[:9]"), r"\[0:9\] of 3 episodes"),
    "words": ({}, dict(split="train[half]"), r"cannot read 'train\[half\]'"),
    "standardizer": ({}, dict(standardizer="nativ"), r"did you mean 'native'"),
    "row": ({}, dict(standardizer=dict(type="oxe", row="bridg")), r"did you mean 'bridge'"),
    "wrong row": ({}, dict(standardizer=BRIDGE), r"no such column"),
    "body": ({}, dict(embodiment="arms"), r"did you mean 'arm'"),
    "space": ({}, dict(action_space="xyz"), r"unknown 'xyz'"),
    "group": ({}, dict(waypoint_group="hnd"), r"did you mean 'hand'"),
    "view": ({}, dict(waypoint_group="hand", point_view="wrist"), r"cameras of \['primary'\]"),
    "language": ({}, dict(language="some"), r"language: unknown 'some'"),
    "holdout": ({}, dict(holdout=1.5), r"holdout=1.5"),
    "data bit": ({}, dict(change=flip(400)), r"tfrecord-0.* record 0 at byte 0.*CRC32C"),
    "length bit": ({}, dict(change=flip(0)), r"record 0 at byte 0.*a length"),
    "truncated": ({}, dict(change=truncate), r"record 2 at byte \d+.*truncated"),
    "fewer": ({}, dict(change=fewer), r"got 3 records, expected 4"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_are_named(name, rlds, tmp_path, context):
    columns, arguments, words = BAD[name]
    arguments = dict(arguments)
    change = arguments.pop("change", None)
    with pytest.raises(plugin.UserError, match=words) as error:
        bad(rlds, tmp_path, context, arguments, change, **columns)
    assert "bad" in str(error.value) or "standardizer" in str(error.value), "says where"


def test_an_episode_without_words_is_masked_where_allowed(rlds, tmp_path, context):
    columns = {"steps/language_instruction": [b" "] * 7}
    source = bad(rlds, tmp_path, context, dict(language="optional"), **columns)
    assert not at(source, 1, 0)["task"]["masks"]["language"].any()
    assert source.summary()["unlabelled"] == 7


def test_a_broken_picture_is_named_when_it_is_read(rlds, tmp_path, context):
    columns = {"steps/observation/images/primary": [b"\xff\xd8 no picture"] * 7}
    source = bad(rlds, tmp_path, context, **columns)
    with pytest.raises(plugin.UserError, match="episode e1, step 1, view primary.*no readable"):
        at(source, 1, 2)


def test_sizes_must_fit_the_embodiment(folder, context):
    group = dataclasses.replace(context.embodiments[0].proprio[0], size=4)
    body = dataclasses.replace(context.embodiments[0], proprio=(group,))
    with pytest.raises(plugin.UserError, match="'hand' has 3 numbers, expected 4"):
        source_lib.make(dataclasses.replace(context, embodiments=(body,)), path=str(folder))
    with pytest.raises(plugin.UserError, match="action_size is 3"):
        source_lib.make(dataclasses.replace(context, action_size=3), path=str(folder))


def test_a_missing_folder_names_its_neighbours(folder, context):
    with pytest.raises(plugin.UserError, match="did you mean 'arm_data'"):
        source_lib.make(context, path=str(folder.parent.parent / "arm_dat"))
    with pytest.raises(plugin.UserError, match="expected dataset_info.json"):
        source_lib.make(context, path=str(folder.parent.parent.parent))
    (folder / "arm_data-train.tfrecord-00001-of-00002").unlink()
    with pytest.raises(plugin.UserError, match="no such shard"):
        source_lib.make(context, path=str(folder))


def bridge_context(**changes):
    tokenizer = TextTokenizer.train(["put cup from counter or drying rack into sink"] * 3)
    values = dict(
        name="bridge",
        stream="robot",
        window=2,
        action_horizon=4,
        action_size=7,
        image_sizes={"primary": (64, 64), "secondary": (32, 32)},
        max_tokens=64,
        text_tokenizer=tokenizer,
        embodiments=(widowx.EMBODIMENT,),
        action_spaces=widowx.EMBODIMENT.action_spaces,
    )
    return SourceContext(**{**values, **changes})


def test_real_bridge_episodes(fixtures_dir):
    path = str(fixtures_dir / "bridge_dataset")
    source = source_lib.make(bridge_context(), path=path, standardizer=BRIDGE)
    assert source.summary()["episodes"] == 23 and len(source) == 23 * 9
    assert source.episodes.step.min() == 1, "the zero first action is left out"
    assert np.abs(source.episodes.action[:, :6]).max(axis=1).min() > 1e-6
    assert source.episodes.metadata["file_path"][0].endswith(".npy")
    assert set(source.episodes.metadata["has_language"]) <= {True, False}
    row = source.sample(0, rng())
    assert row["observation"]["images"]["secondary"].shape == (2, 32, 32, 3)
    assert row["observation"]["images"]["primary"].std() > 20
    assert row["observation"]["proprio"]["ee"].shape == (2, 7)
    text = inspect.describe(path)
    assert "25 episodes, 250 steps" in text and "put carrot on plate" in text
    assert inspect.summarize(path)["splits"]["train"]["cameras"]["steps/observation/image_3"][
        "black"
    ]


@pytest.mark.slow
def test_what_collect_writes_is_read(tmp_path, context, rlds):
    from vla_jax.data.writers import rlds as writer

    rng_ = np.random.default_rng(0)

    def episode(i):
        pictures = [rng_.integers(0, 255, (16, 16, 3)).astype(np.uint8) for _ in range(6)]
        return {
            "action": rng_.normal(size=(6, 4)).astype(np.float32),
            "images": {"primary": [p if t % 4 == 0 else None for t, p in enumerate(pictures)]},
            "proprio": {"hand": rng_.normal(size=(6, 3)).astype(np.float32)},
            "instruction": "touch the cat",
            "metadata": {
                "episode_id": f"e{i}",
                "embodiment": "arm",
                "action_space": "xyz_gripper",
                "seed": i,
                "noise": "none",
                "success": True,
                "camera": {"primary": rlds.camera},
            },
        }

    episodes = [episode(i) for i in range(3)]
    writer.write(tmp_path / "out", episodes)
    source = source_lib.make(
        context,
        path=str(tmp_path / "out"),
        holdout=0,
        waypoint_group="hand",
        point_view="primary",
    )
    assert len(source) == 6, "two pictures in each of three episodes"
    row = at(source, 2, 4)
    np.testing.assert_array_equal(row["targets"]["action"][1, :2, :4], episodes[2]["action"][4:])
    np.testing.assert_array_equal(row["targets"]["waypoint"][1], episodes[2]["proprio"]["hand"][5])
    assert row["observation"]["image_masks"]["primary"].tolist() == [False, True]
