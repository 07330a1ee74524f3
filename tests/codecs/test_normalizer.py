import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax import plugin
from vla_jax.codecs import normalizer
from vla_jax.data import statistics


def entry(values, mode="zscore", **changes):
    values = np.asarray(values, np.float64)
    stats = statistics.moments([statistics.Column.whole(values)])
    return normalizer.Entry(mode, stats, (True,) * values.shape[1], **changes)


def make(values, mode="zscore", **changes):
    return normalizer.Normalizer({"arm": {"action": entry(values, mode, **changes)}})


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(normalizer.MODES),
    st.lists(
        st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=2), min_size=1, max_size=30
    ),
)
def test_inverse_undoes_forward(mode, rows):
    values = np.asarray(rows, np.float32)
    table = make(values, mode)
    back = table.inverse("arm", "action", table.forward("arm", "action", values))
    spread = np.abs(values).max() + 1e-30
    np.testing.assert_allclose(back, values, rtol=1e-6, atol=4e-7 * spread)


def test_modes_do_what_they_are_called():
    values = np.random.default_rng(0).normal(3, 2, (5000, 1))
    z = make(values).forward("arm", "action", values)
    assert abs(z.mean()) < 1e-5 and abs(z.std() - 1) < 1e-5
    m = make(values, "minmax").forward("arm", "action", values)
    assert m.min() == -1 and m.max() == 1
    q = make(values, "q01_q99").forward("arm", "action", values)
    assert abs(np.mean(np.abs(q) <= 1) - 0.98) < 0.002
    np.testing.assert_array_equal(
        make(values, "identity").forward("arm", "action", values), values.astype(np.float32)
    )


@pytest.mark.parametrize("mode", ["zscore", "minmax", "q01_q99"])
def test_a_degenerate_dim_is_shifted_but_not_scaled(mode):
    values = np.stack([np.arange(100.0), np.full(100, 0.9, np.float32)], axis=1)
    table = make(values, mode)
    normalized = table.forward("arm", "action", values)
    np.testing.assert_allclose(normalized[:, 1], 0, atol=1e-6)
    answer = table.inverse("arm", "action", np.array([0.0, 0.5]))
    np.testing.assert_allclose(answer[1], 1.4, rtol=1e-6)


def test_inactive_dims_stay_and_clip_is_explicit_and_counted():
    values = np.stack([np.arange(100.0), np.arange(100.0)], axis=1)
    table = make(values, "q01_q99")
    inner = table.entries["arm"]["action"]
    gripper = dataclasses.replace(inner, active=(True, False), clip=1.0)
    clipped = normalizer.Normalizer({"arm": {"action": gripper}})
    out = clipped.forward("arm", "action", values)
    assert out[:, 0].max() == 1 and out[:, 1].max() == 99
    np.testing.assert_allclose(clipped.clip_fraction("arm", "action", values), [0.02, 0])
    assert table.forward("arm", "action", values)[:, 0].max() > 1
    assert table.clip_fraction("arm", "action", values).tolist() == [0, 0]


def test_json_round_trip_is_exact_and_keeps_the_order_of_keys():
    values = np.random.default_rng(1).normal(size=(50, 3))
    table = normalizer.Normalizer(
        {"zebra": {"action": entry(values)}, "arm": {"action": entry(values, "minmax", clip=2.0)}}
    )
    again = normalizer.Normalizer.from_json(table.to_json())
    assert again == table and again.keys == ("zebra", "arm")
    assert again.fingerprint == table.fingerprint and hash(again) == hash(table)
    assert again.entries == table.entries
    assert table.table(["arm"]).keys == ("arm",)
    assert table.merge(again) == table


def test_constants_turn_normalized_numbers_into_si():
    values = np.random.default_rng(2).normal(size=(50, 2))
    table = normalizer.Normalizer(
        {
            "cm": {"proprio/hand": entry(values * 100, unit_scale=(0.01, 0.01))},
            "none": {},
            "m": {"proprio/hand": entry(values)},
        }
    )
    shift, scale = table.constants("proprio/hand")
    assert isinstance(shift, tuple) and isinstance(shift[0], tuple) and len(shift) == 3
    for row, key, raw in ((0, "cm", values * 100), (2, "m", values)):
        si = table.forward(key, "proprio/hand", raw) * np.array(scale[row]) + np.array(shift[row])
        np.testing.assert_allclose(si, values, rtol=1e-4, atol=1e-5)
    assert shift[1] == (0.0, 0.0) and scale[1] == (1.0, 1.0)


@pytest.mark.parametrize(
    "ask, words",
    [
        (lambda t: t.index("arn"), "did you mean 'arm'"),
        (lambda t: t.forward("arm", "acton", np.zeros(2)), "did you mean 'action'"),
        (lambda t: t.forward("arm", "action", np.zeros(3)), r"expected \[\.\.\., 2\]"),
        (lambda t: t.constants("proprio/hand"), "unknown 'proprio/hand'"),
        (lambda t: t.merge(make(np.ones((3, 2)))), "two different sets"),
        (lambda t: t.from_json('{"format_version": 9}'), "format_version 9"),
    ],
)
def test_mistakes_are_named(ask, words):
    with pytest.raises(plugin.UserError, match=words):
        ask(make(np.arange(6.0).reshape(3, 2)))


@pytest.mark.parametrize(
    "name, mode, clip",
    [
        ("minmax", "minmax", None),
        ("octo/bounds", "q01_q99", 1.0),
        ("openvla/bounds", "minmax", 1.0),
        ("openvla/bounds_q99", "q01_q99", 1.0),
        ("openpi/quantile", "q01_q99", None),
    ],
)
def test_other_projects_names(name, mode, clip):
    assert normalizer.resolve("mode", name) == (mode, clip)
    assert mode in normalizer.MODES


@pytest.mark.parametrize(
    "name, words",
    [
        ("bounds", "'octo/bounds' is q01_q99 clipped to 1.0, 'openvla/bounds' is minmax"),
        ("bounds_q99", "did you mean 'openvla/bounds_q99'"),
        ("quantile", "did you mean 'openpi/quantile'"),
        ("min_max", "did you mean 'minmax'"),
    ],
)
def test_ambiguous_and_unknown_names_are_errors(name, words):
    with pytest.raises(plugin.UserError, match=f"mode: .*{words}"):
        normalizer.resolve("mode", name)


def test_an_alias_brings_its_clip():
    values = np.linspace(0, 1, 300)[:, None]
    tables = {"arm": {"print": {"action": statistics.Column.whole(values)}}}
    found = statistics.measure(tables)
    octo = statistics.normalizer(tables, found, mode="octo/bounds").entry("arm", "action")
    assert (octo.mode, octo.clip) == ("q01_q99", 1.0) and octo.clipped[0] == pytest.approx(0.02)
    with pytest.raises(plugin.UserError, match="clips to 1.0, the config says clip=2.0"):
        statistics.normalizer(tables, found, mode="octo/bounds", clip=2.0)
