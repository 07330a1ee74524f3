import dataclasses
import functools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax import plugin
from vla_jax.codecs import normalizer as normalizer_lib
from vla_jax.data import quantiles, selection, statistics
from vla_jax.data.sources import rlds as source_lib


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(0, 4)), min_size=1, max_size=40))
def test_weighted_rows_equal_repeated_rows(pairs):
    values = np.array([[v] for v, _ in pairs])
    counts = np.array([c for _, c in pairs])
    counts[0] += 1
    rows = np.repeat(values, counts, axis=0)
    got = statistics.moments([statistics.Column.whole(values, counts)])
    assert got.count == len(rows)
    np.testing.assert_allclose(got.mean, rows.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got.std, rows.std(0), rtol=1e-6, atol=1e-6)
    assert got.min == tuple(rows.min(0)) and got.max == tuple(rows.max(0))
    np.testing.assert_allclose(got.q01, np.quantile(rows, 0.01, axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got.q99, np.quantile(rows, 0.99, axis=0), rtol=1e-9, atol=1e-9)


def test_training_episodes_only_over_the_whole_chunk(folder, context):
    source = source_lib.make(context, path=str(folder), holdout=0.25)
    table = statistics.compute([source], mode={"action": "minmax", "*": "zscore"})
    held = selection.split("", source.episodes.ids, 0.25, 0, False)
    assert len(held) == 3
    # All chunks of all training episodes, the slow way.
    chunks = []
    for e in range(12):
        if e not in held:
            first, last = source.episodes.start[e : e + 2]
            for t in range(first, last):
                chunks.extend(source.episodes.action[t : min(t + 3, last)])
    expected = np.asarray(chunks, np.float64)
    got = table.entry("arm_data", "action").statistics
    assert got.count == len(expected)
    np.testing.assert_allclose(got.mean, expected.mean(0), rtol=1e-6)
    np.testing.assert_allclose(got.q99, np.quantile(expected, 0.99, axis=0), rtol=1e-6)
    assert table.entry("arm_data", "action").mode == "minmax"
    assert table.entry("arm_data", "action").active == (True, True, True, False)
    assert table.entry("arm_data", "action").unit_scale[:3] == (0.01,) * 3
    assert table.entry("arm_data", "proprio/hand").mode == "zscore"
    # Held-out readers and other sample starts of the same data give the same table, counted once.
    validation = source_lib.make(
        dataclasses.replace(context, train=False), path=str(folder), holdout=0.25, steps="[:3]"
    )
    assert statistics.compute([source, validation], mode={"action": "minmax"}) == table
    assert "not normalized" in statistics.report(table)


def test_clipped_share_is_stored(folder, context):
    source = source_lib.make(context, path=str(folder))
    table = statistics.compute([source], mode="zscore", clip=1.0)
    entry = table.entry("arm_data", "action")
    assert 0.2 < entry.clipped[1] < 0.5 and entry.clipped[3] == 0


def test_two_data_sets_under_one_key_are_pooled_and_a_bad_mode_is_named(rlds, tmp_path, context):
    paths = [
        rlds.write(tmp_path / str(k), [rlds.episode(i) for i in range(k, k + 4)]) for k in (0, 4)
    ]
    sources = [source_lib.make(context, path=str(p), holdout=0) for p in paths]
    pooled = statistics.compute(sources).entry("arm_data", "action").statistics
    assert pooled.min[0] == 0 and pooled.max[0] == 7
    with pytest.raises(plugin.UserError, match="did you mean 'zscore'"):
        statistics.compute(sources, mode="zscores")


def test_memory_does_not_grow_with_the_data(monkeypatch):
    """Beside a table of 8 MB: a block of rows and 2 MB of counts, whatever the number of rows."""
    for module in (statistics, normalizer_lib):
        monkeypatch.setattr(module, "BLOCK", 4096)
    monkeypatch.setattr(quantiles, "TOGETHER", 1)
    values = np.random.default_rng(0).normal(size=(500_000, 4)).astype(np.float32)
    start = np.arange(0, len(values) + 1, 100)
    column = statistics.Column(
        read=functools.partial(statistics._blocks, start, np.arange(len(start) - 1), values, 4),
        rows=len(values),
        active=np.ones(4, bool),
        unit_scale=np.ones(4),
        chunk=4,
    )
    tables = {"arm": {"print": {"action": column}}}
    tracemalloc.start()
    found = statistics.measure(tables)
    normalizer = statistics.normalizer(tables, found, mode="minmax", clip=0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    normalized = normalizer.forward("arm", "action", values)
    forward = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert peak < 0.5 * values.nbytes and forward < 1.2 * normalized.nbytes
    assert found["arm"]["action"].count == 4 * len(values) - 6 * (len(start) - 1)
