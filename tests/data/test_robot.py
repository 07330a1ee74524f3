"""Rows of robot data: pictures under augmentation, dropped cameras, Octo's chunks."""

import dataclasses

import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.data import images
from vla_jax.data.sources import rlds as source_lib

FULL = dict(
    color=0.3, crop_scale=(0.5, 0.9), image_dropout=0.4, proprio_dropout=0.4, proprio_noise=0.1
)


def source(folder, context, **reading):
    return source_lib.make(context, path=str(folder), **{"holdout": 0.5, **reading})


def rows(made, count=200):
    return [made.sample(i % len(made), np.random.default_rng(i)) for i in range(count)]


def test_dropped_cameras_and_readings_are_masked_zeros(folder, context):
    drawn = rows(source(folder, context, augment=FULL))
    views = np.array([row["observation"]["image_masks"]["primary"].any() for row in drawn])
    hands = np.array([row["observation"]["proprio_masks"]["hand"].any() for row in drawn])
    assert abs(views.mean() - 0.6) < 0.14 and abs(hands.mean() - 0.6) < 0.14
    assert abs(np.corrcoef(views, hands)[0, 1]) < 0.28
    for row, seen in zip(drawn, views):
        picture = row["observation"]["images"]["primary"]
        assert picture.any() == seen
    for row, felt in zip(drawn, hands):
        assert row["observation"]["proprio"]["hand"].any() == felt


def test_nothing_varies_in_evaluation(folder, context):
    held = source(folder, dataclasses.replace(context, train=False), augment=FULL)
    plain = source(folder, dataclasses.replace(context, train=False))
    np.testing.assert_equal(rows(held, 20), rows(plain, 20))
    assert held.sample(0, np.random.default_rng(1))["observation"]["image_masks"]["primary"].any()


def test_window_and_goal_share_a_crop_but_not_their_colours(rlds, tmp_path, context):
    import simplejpeg

    ramp = np.zeros((16, 16, 3), np.uint8) + np.arange(0, 240, 15, dtype=np.uint8)[None, :, None]
    data = simplejpeg.encode_jpeg(ramp, quality=100, colorsubsampling="444")
    episodes = [
        rlds.episode(i, **{"steps/observation/images/primary": [data] * 7}) for i in range(3)
    ]
    path = rlds.write(tmp_path / "ramp", episodes, shards=1)
    context = dataclasses.replace(context, image_sizes={"primary": (32, 32)})
    crop = dict(crop_scale=(0.3, 0.6))
    made = source(path, context, goals=dict(views=("primary",)), augment=crop)
    differ = set()
    for i in range(12):
        row = made.sample(i % len(made), np.random.default_rng(i))
        window, goal = (
            row["observation"]["images"]["primary"],
            row["task"]["values"]["goal_primary"],
        )
        np.testing.assert_array_equal(window[0], window[1])
        np.testing.assert_array_equal(window[1], goal)
        differ.add((int(goal[16, 0, 0]), int(goal[16, -1, 0])))
    assert len(differ) > 8, "rows differ"
    made = source(
        path, context, goals=dict(views=("primary",)), augment={**crop, "brightness": 0.5}
    )
    means = np.array(
        [
            (
                row["observation"]["images"]["primary"].mean(),
                row["task"]["values"]["goal_primary"].mean(),
            )
            for row in rows(made, 60)
        ]
    )
    assert np.abs(means[:, 0] / means[:, 1] - 1).mean() > 0.1


def test_training_and_serving_resize_alike(folder, context):
    """What a policy does to a camera's picture (images.resize) is what an unvaried row shows."""
    for method in images.METHODS:
        given = dataclasses.replace(
            context, image_sizes={"primary": (24, 20)}, resize=method, train=False
        )
        made = source(folder, given)
        episode, t = (int(i) for i in made._samples[3])
        row = int(made.episodes.start[episode]) + t
        (data,) = made._pictures.read("primary", episode, [row])
        served = images.resize(images.decode(data, method), (24, 20), method)
        shown = made.sample(3, np.random.default_rng(0))["observation"]["images"]["primary"]
        np.testing.assert_array_equal(shown[-1], served)


def test_octo_s_chunks_count_two_steps_more_and_repeat_the_last(folder, context):
    ours, octo = source(folder, context), source(folder, context, chunking="octo")
    last = int(np.flatnonzero(ours._samples[:, 1] == 6)[0])
    mine, theirs = (s.sample(last, np.random.default_rng(0)) for s in (ours, octo))
    assert mine["target_masks"]["action"][1, :, 0].tolist() == [True, False, False]
    assert theirs["target_masks"]["action"][1, :, 0].tolist() == [True, True, False]
    assert theirs["targets"]["action"][1, :, 1].tolist() == [6, 6, 6]
    assert mine["targets"]["action"][1, :, 1].tolist() == [6, 0, 0]
    assert ours.fingerprint != octo.fingerprint
    with pytest.raises(plugin.UserError, match="did you mean 'octo'"):
        source(folder, context, chunking="octos")
