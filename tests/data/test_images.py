"""Pictures: decoding and resizing, ours and as TensorFlow has them."""

import numpy as np
import pytest

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
