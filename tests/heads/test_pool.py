import dataclasses

import jax
import numpy as np
import pytest

from vla_jax import plugin, types
from vla_jax.heads import _pool


def read(case, **arguments):
    full = dict(readout=None, groups=(), pool="mean", known=(*_pool.POOLS, "none"))
    source = _pool.make(case.context, **(full | arguments))
    return _pool.Pool(source=source)


@pytest.fixture
def blinded(case):
    """Row 0: half of the image is not there. Row 1: none of it. The readout of step 0: nowhere."""
    image, readout = case.outputs["primary"], case.outputs["readout_main"]
    valid, real = image.valid.copy(), readout.valid.copy()
    valid[0, :, 6:], valid[1], real[:, 0] = False, False, False
    final = case.rng.normal(size=(*image.final.shape[:3], case.D)).astype(np.float32)
    return case.outputs | {
        "primary": dataclasses.replace(image, final=final, valid=valid),
        "readout_main": dataclasses.replace(readout, valid=real),
    }


def test_mean_is_of_real_tokens_or_of_all(case, blinded):
    got = read(case, groups=("primary",)).apply({}, blinded)
    final = blinded["primary"].final
    assert got.shape == (case.B, case.W, 1, case.D)
    np.testing.assert_allclose(got[0, :, 0], final[0, :, :6].mean(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got[1:, :, 0], final[1:].mean(2), rtol=1e-4, atol=1e-6)
    got = read(case, groups=("primary",), pool="mean_all").apply({}, blinded)
    np.testing.assert_allclose(got[:, :, 0], final.mean(2), rtol=1e-4, atol=1e-6)
    got = read(case, readout="main").apply({}, blinded)
    expected = blinded["readout_main"].final.mean(2)
    np.testing.assert_allclose(got[:, :, 0], expected, rtol=1e-5, atol=1e-6)


def test_several_groups_are_one_sequence(case, blinded):
    groups = ("primary", "readout_main")
    got = read(case, groups=groups, pool="none", count=14).apply({}, blinded)
    expected = np.concatenate([blinded[name].final for name in groups], axis=2)
    np.testing.assert_array_equal(got, expected)


def test_map_has_a_probe_per_vector_and_sees_no_invalid_token(case, blinded):
    pool = read(case, groups=("primary",), pool="map", count=3)
    variables = jax.jit(pool.init)(jax.random.key(0), blinded)
    assert variables["params"]["map"]["probe"].shape == (3, case.D)
    image = blinded["primary"]
    other = image.final + np.where(image.valid, 0, 9.0)[..., None].astype(np.float32)
    run = jax.jit(pool.apply)
    got, again = (
        np.asarray(run(variables, blinded | {"primary": dataclasses.replace(image, final=final)}))
        for final in (image.final, other)
    )
    assert got.shape == (case.B, case.W, 3, case.D)
    np.testing.assert_allclose(got[[0, 2]], again[[0, 2]], rtol=1e-5, atol=1e-6)
    assert np.abs(got[1] - again[1]).max() > 0.1, "where none is real, all count"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(readout="mian"), "readout_main"),
        (dict(groups=("language",)), "no time axis"),
        (dict(readout="main", pool="max"), "mean"),
        (dict(readout="main", groups=("primary",)), "one of them"),
        (dict(readout="main", pool="none"), "has 2 tokens, expected 1"),
    ],
)
def test_bad_sources(case, arguments, message):
    task = types.Output(stem=None, final=np.zeros((3, 6, case.D)), valid=np.ones((3, 6), bool))
    with pytest.raises(plugin.UserError, match=message):
        read(case, **arguments).apply({}, case.outputs | {"language": task})


def test_nothing_to_read_is_no_source(case):
    assert _pool.make(case.context, readout=None, groups=(), pool="mean") is None
