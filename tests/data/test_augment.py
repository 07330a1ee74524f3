import time

import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.data import augment

FULL = augment.Augment(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1, proprio_noise=0.1)


def keys(n):
    return [augment.row_key(np.random.default_rng(i)) for i in range(n)]


def test_every_number_has_a_random_key_of_its_own():
    """Octo reused one seed for all of them (octo_defects.md A2): correlations of 1.000."""
    names = "brightness contrast saturation hue dropout crop_scale crop_ratio crop_top crop_left"
    shown = ("primary", "wrist", "goal_primary")
    uses = [f"{image}/{name}" for image in shown for name in names.split()]
    draws = np.array([[augment.uniform(key, use) for use in uses] for key in keys(2000)])
    correlations = np.corrcoef(draws.T)[~np.eye(len(uses), dtype=bool)]
    assert np.abs(correlations).max() < 0.09  # 4 standard errors
    assert np.abs(draws.mean(0) - 0.5).max() < 0.03 and draws.min() >= 0 and draws.max() < 1
    assert np.abs(draws.std(0) - 12**-0.5).max() < 0.02


def test_jitter_is_the_same_over_a_window_and_other_per_view_and_row():
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    frames = np.stack([image, image])
    first, second = keys(2)
    one = augment.jitter(FULL, first, "primary", frames)
    assert one.dtype == np.uint8 and one.shape == frames.shape
    np.testing.assert_array_equal(one[0], one[1])
    np.testing.assert_array_equal(one, augment.jitter(FULL, first, "primary", frames))
    assert not np.array_equal(one, augment.jitter(FULL, first, "wrist", frames))
    assert not np.array_equal(one, augment.jitter(FULL, second, "primary", frames))


def test_each_parameter_does_what_it_is_called():
    gray = np.full((1, 4, 4, 3), 100, np.uint8)
    colour = np.zeros((1, 4, 4, 3), np.uint8) + np.array([200, 50, 80], np.uint8)
    (key,) = keys(1)
    for name in ("saturation", "hue", "contrast"):  # a flat gray image has none of these
        only = augment.Augment(**{name: 0.5})
        out = augment.jitter(only, key, "primary", gray)
        assert np.abs(out.astype(int) - 100).max() <= 1, name
    bright = augment.jitter(augment.Augment(brightness=0.5), key, "primary", gray)
    assert abs(bright.mean() - 100) > 1
    luma = np.array([0.299, 0.587, 0.114])
    turned = augment.jitter(augment.Augment(hue=0.1), key, "primary", colour)
    assert not np.array_equal(turned, colour)
    assert np.abs((turned - colour.astype(float)) @ luma).max() < 2, "hue keeps the luma"
    np.testing.assert_array_equal(augment.jitter(augment.Augment(), key, "primary", colour), colour)


def test_noise_has_its_spread_and_is_independent_per_group():
    draws = np.stack([augment.noise(FULL, key, "hand", (2, 3)) for key in keys(3000)])
    assert draws.dtype == np.float32 and np.abs(draws.std(0) - 0.1).max() < 0.006
    other = np.stack([augment.noise(FULL, key, "gripper", (2, 3)) for key in keys(3000)])
    assert abs(np.corrcoef(draws.ravel(), other.ravel())[0, 1]) < 0.03


CROP = augment.Augment(crop_scale=(0.5, 1.0), crop_ratio=(0.8, 1.25))


def test_crops_have_their_area_ratio_and_place_independently():
    boxes = np.array([augment.crop(CROP, key, "primary") for key in keys(4000)])
    top, left, height, width = boxes.T
    assert (
        (boxes >= 0).all() and (top + height <= 1 + 1e-9).all() and (left + width <= 1 + 1e-9).all()
    )
    area, ratio = height * width, width / height
    inside = (height < 1) & (width < 1)  # a side of the whole picture cuts area and ratio short
    assert area.min() >= 0.5 - 1e-9 and 0.8 <= ratio[inside].min() and ratio[inside].max() <= 1.25
    small = area < 0.75  # there no side is cut: both are uniform
    assert np.mean(area[small] < 0.625) == pytest.approx(0.5, abs=0.05)
    assert np.log(ratio[small]).mean() == pytest.approx(0, abs=0.01)
    room = np.where(height < 1, top / np.maximum(1 - height, 1e-9), np.nan)
    across = np.where(width < 1, left / np.maximum(1 - width, 1e-9), np.nan)
    both = np.isfinite(room) & np.isfinite(across)
    columns = np.stack([room, across, area, np.log(ratio)])[:, both & small]
    correlations = np.corrcoef(columns)[~np.eye(4, dtype=bool)]
    assert np.abs(correlations).max() < 0.1
    # Octo's realised offsets reached a third of their range (octo_defects.md A2).
    assert np.nanmax(room) > 0.98 and np.nanmin(room) < 0.02
    others = np.array([augment.crop(CROP, key, "wrist") for key in keys(4000)])
    for mine, theirs in zip(boxes.T, others.T):
        assert abs(np.corrcoef(mine, theirs)[0, 1]) < 0.07
    assert augment.crop(augment.Augment(), keys(1)[0], "primary") == (0, 0, 1, 1)


def test_dropout_has_its_rate_and_is_independent_per_camera():
    drawn = np.array(
        [
            [augment.dropped(0.3, key, view) for view in ("primary", "wrist", "hand")]
            for key in keys(3000)
        ]
    )
    assert np.abs(drawn.mean(0) - 0.3).max() < 0.035
    assert np.abs(np.corrcoef(drawn.T)[~np.eye(3, dtype=bool)]).max() < 0.08
    assert not any(augment.dropped(0.0, key, "primary") for key in keys(50))


def test_a_camera_may_have_settings_of_its_own():
    made = augment.Augment.make(
        "here", dict(color=0.2, crop_scale=[0.8, 1], views=dict(wrist=dict(crop_scale=[1, 1])))
    )
    assert made.of("primary").crop_scale == (0.8, 1.0) and made.of("wrist").crop_scale == (1, 1)
    assert made.of("wrist").brightness == 0.2
    with pytest.raises(plugin.UserError, match=r"views.wrist: augment: unknown 'hues'"):
        augment.Augment.make("here", dict(views=dict(wrist=dict(hues=1))))
    with pytest.raises(plugin.UserError, match="is no setting of a camera"):
        augment.Augment.make("here", dict(views=dict(wrist=dict(proprio_noise=1))))
    for bad in ((0.9, 0.8), (0, 1), (0.5, 1.5), 0.5):
        with pytest.raises(plugin.UserError, match="expected .low, high."):
            augment.Augment.make("here", dict(crop_scale=bad))


def test_shorthand_and_mistakes():
    made = augment.Augment.make("here", {"color": 0.2, "hue": 0.0, "proprio_noise": 0.03})
    assert made == augment.Augment(0.2, 0.2, 0.2, 0.0, 0.03) and made.color
    assert not augment.Augment.make("here", None).color
    with pytest.raises(plugin.UserError, match="did you mean 'hue'"):
        augment.Augment.make("here", {"hues": 0.1})
    with pytest.raises(plugin.UserError, match="brightness=-1"):
        augment.Augment.make("here", {"brightness": -1})


def test_one_image_is_cheap():
    frames = np.random.default_rng(0).integers(0, 255, (1, 96, 96, 3)).astype(np.uint8)
    key = keys(1)[0]
    best = 1.0
    for _ in range(30):
        begin = time.perf_counter()
        augment.jitter(FULL, key, "primary", frames)
        best = min(best, time.perf_counter() - begin)
    assert best < 1e-3, "0.15 ms on an idle core"
