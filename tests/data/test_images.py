"""Pictures: decoding and resizing, ours and as TensorFlow has them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax import plugin
from vla_jax.data import images


@pytest.mark.parametrize("side", [32, 48, 100, 128])
def test_tensorflow_s_pictures(fixtures_dir, side):
    with np.load(fixtures_dir / "octo_golden" / "data" / "data.npz") as file:
        native, jpeg = file["sample_decoded_native/traj0_t0"], file["sample_jpeg_bytes/traj0_t0"]
        wanted = file[f"sample_resize/traj0_t0_{side}"]
    np.testing.assert_array_equal(images.decode(jpeg.tobytes(), "tensorflow"), native)
    got = images.resize(native, (side, side), "tensorflow")
    assert got.dtype == np.uint8 and np.abs(got.astype(int) - wanted.astype(int)).max() <= 1


@pytest.mark.parametrize("method", images.METHODS)
@pytest.mark.parametrize("size", [(7, 5), (24, 40), (96, 64)])
def test_a_plain_picture_stays_plain_and_sides_do_not_mix(method, size):
    plain = np.full((24, 32, 3), (10, 128, 250), np.uint8)
    assert np.all(images.resize(plain, size, method) == plain[0, 0])
    halves = np.repeat(np.uint8([0, 200]), 16)[None, :, None] * np.ones((24, 1, 3), np.uint8)
    made = images.resize(halves, size, method)
    assert made.shape == (*size, 3) and np.all(made[:, 0] < 20) and np.all(made[:, -1] > 180)
    assert images.resize(plain, (24, 32), method) is plain


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(plugin.UserError, match="did you mean 'area'"):
        images.resize(np.zeros((2, 2, 3), np.uint8), (1, 1), "aera")


def lanczos(before, after, start=0.0, extent=1.0):
    """The whole matrix of Lanczos' kernel by its definition, float64."""
    step = before * extent / after
    centre = (np.arange(after) + 0.5) * step + before * start - 0.5
    distance = np.abs(centre[:, None] - np.arange(before)[None]) / max(step, 1.0)
    weights = np.where(distance < 3, np.sinc(distance) * np.sinc(distance / 3), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


SIDES = st.integers(1, 90)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**32 - 1), st.booleans())
def test_banded_products_are_the_whole_kernel_to_one_level(h, w, height, width, seed, cropped):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (h, w, 3)).astype(np.uint8)
    top, left = rng.uniform(0, 0.3, 2) if cropped else (0.0, 0.0)
    down, right = rng.uniform(0.3, 0.7, 2) if cropped else (1.0, 1.0)
    rows, columns = lanczos(h, height, top, down), lanczos(w, width, left, right)
    wanted = np.clip(np.einsum("hH,HWc,wW->hwc", rows, image, columns), 0, 255)
    got = np.empty((height, width, 3), np.uint8)
    images.lanczos(image, got, (top, left, down, right))
    assert np.abs(got - wanted).max() <= (0.6 if cropped else 0.51), "rounded to the nearest level"


@pytest.mark.parametrize("method", images.METHODS)
def test_a_box_is_the_resize_of_that_part(method):
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    half = images.resize(image, (80, 80), method, (0.0, 0.25, 0.5, 0.5))
    part = images.resize(np.ascontiguousarray(image[:32, 24:72]), (80, 80), method)
    inner = np.s_[10:-10, 10:-10]  # at its edge the part sees nothing of what is beyond
    assert np.abs(half[inner].astype(int) - part[inner]).max() <= 1
    same = images.resize(image, (64, 96), method, (0.5, 0.5, 0.5, 0.5))
    assert same.shape == image.shape and not np.array_equal(same, image)
    out = np.zeros((80, 80, 3), np.uint8)
    images.resize(image, (80, 80), method, (0.0, 0.25, 0.5, 0.5), out)
    np.testing.assert_array_equal(out, half)
    images.resize(image, (64, 96), method, out=(whole := np.zeros_like(image)))
    np.testing.assert_array_equal(whole, image)
