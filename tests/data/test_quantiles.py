import datasketches
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vla_jax.data import quantiles, statistics

WHICH = (0.0, 0.01, 0.3, 0.5, 0.99, 1.0)


def blocks(values, counts, size):
    cuts = range(0, len(values), size)
    return lambda: ((values[i : i + size], counts[i : i + size]) for i in cuts)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([np.float32, np.float64]), st.integers(1, 7))
def test_exact_quantiles_are_numpys_of_the_repeated_rows(data, dtype, size):
    width = 8 * np.dtype(dtype).itemsize
    # Few distinct values and all of them: ties, signed zeros, subnormals, the largest floats.
    numbers = st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0]),
        st.floats(-(2.0**99), 2.0**99, width=width, allow_subnormal=True),
    )
    values = data.draw(
        arrays.arrays(dtype, st.tuples(st.integers(1, 30), st.just(2)), elements=numbers)
    )
    counts = data.draw(arrays.arrays(np.int64, len(values), elements=st.integers(0, 3)))
    counts[-1] += 1
    rows = np.repeat(values, counts, axis=0).astype(np.float64)
    got = quantiles.exact(blocks(values, counts, size), WHICH)
    expected = np.quantile(rows, WHICH, axis=0)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12 * np.abs(rows).max())


def test_order_statistics_are_bit_for_bit_those_of_sorting():
    values = np.random.default_rng(0).standard_cauchy((5001, 3)).astype(np.float32)
    got = quantiles.exact(blocks(values, np.ones(5001, np.int64), 777), (0.0, 0.01, 0.5, 0.99, 1.0))
    ordered = np.sort(values, axis=0)
    np.testing.assert_array_equal(got, ordered[[0, 50, 2500, 4950, 5000]])


def test_no_rows_are_an_error():
    none = blocks(np.zeros((2, 1)), np.zeros(2, np.int64), 2)
    for make in (quantiles.exact, quantiles.sketched):
        with pytest.raises(ValueError, match="no rows"):
            make(none, WHICH)


@pytest.mark.parametrize("size", [4000, quantiles.SKETCH_SIZE])
def test_a_sketch_keeps_its_rank_error(size):
    """Against exact ranks: 12 sketches of 2 dims, of which the bound lets one in a hundred err."""
    rng, wrong, errors = np.random.default_rng(1), 0, set()
    for trial in range(12):
        values = np.stack([rng.normal(size=60_000), rng.exponential(size=60_000) ** 3], axis=1)
        values = values[np.argsort(values[:, 0])] if trial % 2 else values  # sorted: the hard case
        counts = rng.integers(0, 4, len(values))
        found, error = quantiles.sketched(blocks(values, counts, 8192), (0.01, 0.99), size)
        errors.add(error)
        for dim in range(2):
            column = np.sort(np.repeat(values[:, dim], counts))
            ranks = np.searchsorted(column, found[:, dim], side="right") / len(column)
            wrong += int(np.abs(ranks - (0.01, 0.99)).max() > error)
    assert wrong <= 3, wrong
    assert errors == {datasketches.kll_doubles_sketch.get_normalized_rank_error(size, False)}
    assert 0 < errors.pop() < 0.001


def test_above_a_stated_size_the_sketch_and_its_error_stand_beside_the_numbers():
    values = np.random.default_rng(2).normal(size=(50_000, 2)).astype(np.float32)
    column = statistics.Column.whole(values)
    tables = {"arm": {"print": {"action": column}}}
    sketched = statistics.measure(tables, exact_rows=49_999, sketch=4096)["arm"]["action"]
    exact = statistics.measure(tables, exact_rows=50_000, sketch=4096)["arm"]["action"]
    assert exact.rank_error == 0 and 0.0005 < sketched.rank_error < 0.001
    for name in ("count", "mean", "std", "min", "max"):
        assert getattr(sketched, name) == getattr(exact, name), "exact in either case"
    assert exact.q01 == tuple(np.quantile(values.astype(np.float64), 0.01, axis=0))
    assert sketched.q01 == pytest.approx(exact.q01, abs=0.15)
    report = statistics.report(statistics.normalizer(tables, {"arm": {"action": sketched}}))
    assert "rank error 0.07" in report and "exact" not in report
    with pytest.raises(ValueError, match=r"50000 rows, more than the 49999.*vla data stats"):
        statistics.measure(tables, exact_rows=49_999)
