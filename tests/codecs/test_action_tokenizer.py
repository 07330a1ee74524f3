import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax import plugin
from vla_jax.codecs import action_tokenizer

make = action_tokenizer.Bins.make


@settings(deadline=None, max_examples=50)
@given(
    count=st.integers(1, 300),
    low=st.floats(-5, 0, width=32),
    width=st.floats(0.125, 10, width=32),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=20),
)
def test_uniform_values_come_back_within_half_a_bin(count, low, width, shares):
    bins = make("test", count=count, low=low, high=low + width)
    values = np.float32(low + width * np.array(shares))
    ids = bins.tokenize(values)
    assert ids.dtype == np.int32 and ids.min() >= 0 and ids.max() < count
    assert np.abs(bins.decode(ids) - values).max() <= 0.5 * width / count + 1e-5


@pytest.mark.parametrize("spacing", action_tokenizer.SPACINGS)
@pytest.mark.parametrize("beyond", action_tokenizer.BEYOND)
def test_middles_are_fixed_points_and_values_lie_in_their_bins(spacing, beyond):
    bins = make("test", count=37, spacing=spacing, beyond=beyond)
    assert (np.diff(bins.thresholds) > 0).all()
    np.testing.assert_array_equal(bins.tokenize(bins.middles), np.arange(37))
    values = np.linspace(bins.thresholds[0], bins.thresholds[-1], 1001)[:-1].astype(np.float32)
    ids = bins.tokenize(values)
    assert (bins.thresholds[ids] <= values).all() and (values < bins.thresholds[ids + 1]).all()


def test_normal_bins_are_equally_full():
    bins = make("test", count=16, spacing="normal")
    ids = bins.tokenize(np.random.default_rng(0).normal(size=(100, 1600)).astype(np.float32))
    np.testing.assert_allclose(np.bincount(ids.ravel()), 10000, rtol=0.05)


def test_values_outside():
    values = np.float32([-9, -1, 1, 9])
    np.testing.assert_array_equal(make("test", count=8).tokenize(values), [0, 0, 7, 7])
    normal = make("test", count=8, spacing="normal")
    np.testing.assert_array_equal(normal.tokenize(values), [0, 1, 6, 7])
    octo = make("test", count=8, spacing="normal", beyond="first")
    np.testing.assert_array_equal(octo.tokenize(values), [0, 1, 6, 0])
    octo = make("test", count=8, beyond="first")  # Octo clips uniform values first …
    np.testing.assert_array_equal(octo.tokenize(values), [0, 0, 7, 7])
    octo = make("test", count=8, low=-64, high=64, beyond="first")  # … but 64 - 1e-6 is 64
    np.testing.assert_array_equal(octo.tokenize(np.float32([-70, 63.9, 64])), [0, 7, 0])


def test_jax_arrays_give_the_same(case=(3, 5)):
    bins = make("test", count=9, spacing="normal")
    values = np.random.default_rng(0).normal(size=case).astype(np.float32)
    ids = jax.jit(bins.tokenize)(values)
    assert isinstance(ids, jax.Array) and ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, bins.tokenize(values))
    np.testing.assert_array_equal(jax.jit(bins.decode)(ids), bins.decode(np.asarray(ids)))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(count=0), "at least 1"),
        (dict(count=4, spacing="normall"), "did you mean 'normal'"),
        (dict(count=4, beyond="frist"), "did you mean 'first'"),
        (dict(count=4, low=1.0, high=1.0), "low < high"),
    ],
)
def test_bad_bins(wrong, message):
    with pytest.raises(plugin.UserError, match=f"heads.x.*{message}"):
        make("heads.x", **wrong)


def test_octo_s_bins(fixtures_dir):
    """Thresholds, ids (also on thresholds and outside) and middles of Octo's BinTokenizer."""
    golden = np.load(fixtures_dir / "octo_golden" / "variant2" / "outputs.npz")
    names = {name.split("/")[1] for name in golden.files if name.startswith("bin/")}
    assert len(names) == 4
    for name in names:
        spacing, low, high, count = name.split("_")
        bins = make(
            name, count=int(count), spacing=spacing, low=float(low), high=float(high),
            beyond="first",
        )  # fmt: skip
        value, ids, middles, thresholds = (
            golden[f"bin/{name}/{part}"] for part in ("x", "ids", "decode_all", "thresholds")
        )
        np.testing.assert_allclose(bins.thresholds, thresholds, atol=1e-5)
        np.testing.assert_array_equal(bins.tokenize(value), ids)
        np.testing.assert_allclose(bins.middles, middles, atol=1e-5)
