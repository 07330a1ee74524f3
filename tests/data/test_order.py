import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax import plugin
from vla_jax.data import order

CONSTANT = st.one_of(st.integers(1, 9), st.floats(0.01, 5).map(lambda x: round(x, 3)))


@st.composite
def schedules(draw):
    points = draw(st.lists(st.integers(0, 120), min_size=1, max_size=4, unique=True).map(sorted))
    return [(n, draw(st.integers(0, 5))) for n in points]


WEIGHTS = st.lists(st.one_of(CONSTANT, schedules()), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(WEIGHTS)
def test_counts_sum_never_decrease_and_stay_near_the_ideal(weights):
    # One member that never rests, so that the sum is never zero.
    weights = {f"m{i}": weight for i, weight in enumerate([1, *weights])}
    tree = order.Order.make(weights)
    bound = 1 + 0.5 * math.log2(len(weights))
    counts = dict.fromkeys(weights, 0)
    for n in range(200):
        member, draw = tree.locate(n)
        assert draw == counts[member], "draws of a member are numbered without a gap"
        counts[member] += 1
        assert counts == tree.counts(n + 1), "the closed form counts what was drawn"
        ideal = tree.ideal(n + 1)
        assert sum(ideal.values()) == n + 1
        assert all(abs(counts[m] - ideal[m]) <= bound for m in weights)


def test_exact_split_of_plain_weights():
    tree = order.Order.make({"a": 0.5, "b": 0.3, "c": 0.2})
    assert tree.counts(1000) == {"a": 500, "b": 300, "c": 200}


def test_weights_follow_their_schedule():
    tree = order.Order.make({"web": [(0, 1), (1000, 0)], "robot": [(0, 0), (1000, 1)]})
    early, late = tree.counts(100), tree.counts(1000)
    assert early["web"] >= 94 and late["web"] - early["web"] < 410
    assert tree.counts(5000)["web"] == late["web"] == 500
    assert tree.locate(3000)[0] == "robot"


@settings(max_examples=200, deadline=None)
@given(st.fractions(-50, 50), st.fractions(-50, 50), st.fractions(0, 900))
def test_floor_of_a_quadratic_irrational_is_exact(u, v, d):
    k = order._floor(u, v, d)
    scale = 10**30
    root = Fraction(math.isqrt(math.floor(d * scale * scale)), scale)
    value = u + v * root
    error = abs(v) / scale
    assert k <= value + error and value - error < k + 1
    if math.isqrt(d.numerator) ** 2 == d.numerator and math.isqrt(d.denominator) ** 2 == (
        d.denominator
    ):
        root = Fraction(math.isqrt(d.numerator), math.isqrt(d.denominator))
        assert k == math.floor(u + v * root)


def test_the_order_of_a_dict_does_not_matter():
    one, other = order.Order.make({"a": 1, "b": 2}), order.Order.make({"b": 2, "a": 1})
    assert [one.locate(n) for n in range(50)] == [other.locate(n) for n in range(50)]


@pytest.mark.parametrize("size", [1, 7, 70_000])
def test_an_epoch_is_a_permutation_and_the_next_another(size):
    take = range(size) if size < 100 else range(0, 2 * size, size // 50)
    first = [order.permuted(i, size, 0, "robot", "a") for i in take]
    assert len(set(first[: size if size < 100 else 50])) == min(size, len(first[:50]))
    assert all(0 <= index < size for index in first)
    again = [order.permuted(i, size, 0, "robot", "a") for i in reversed(take)][::-1]
    assert first == again, "whatever was read before"
    if size > 1:
        second = [order.permuted(size + i, size, 0, "robot", "a") for i in range(min(size, 50))]
        assert second != first[: len(second)]
        assert first != [order.permuted(i, size, 1, "robot", "a") for i in take]


def test_a_row_has_its_own_random_numbers():
    draws = {
        (seed, stream, source, n): order.generator(seed, stream, source, n).random()
        for seed in (0, 1)
        for stream in ("robot", "vl")
        for source in ("a", "b")
        for n in (0, 1, 2**31)
    }
    assert len(set(draws.values())) == len(draws)
    assert order.generator(0, "robot", "a", 1).random() == draws[0, "robot", "a", 1]


@pytest.mark.parametrize(
    "weights, words",
    [
        ({}, "no members"),
        ({"a": -1}, "mixture.a"),
        ({"a": 0}, "all weights are zero at n=0"),
        ({"a": [(0, 1), (10, 0)]}, "n=10"),
        ({"a": [(5, 1), (5, 2)]}, "increasing"),
        ({"a": "much"}, "mixture.a"),
    ],
)
def test_bad_weights_are_named(weights, words):
    with pytest.raises(plugin.UserError, match=words):
        order.Order.make(weights)


def test_the_sequence_is_a_constant_of_the_program():
    """A changed number here means that no earlier run can be resumed: bump the format version."""
    tree = order.Order.make({"a": 2, "b": [(0, 1), (20, 3)], "c": 0.5})
    members = "".join(tree.locate(n)[0] for n in range(24))
    assert members == GOLDEN_MEMBERS
    assert [order.permuted(i, 10, 3, "robot", "a") for i in range(10)] == GOLDEN_EPOCH
    assert order.generator(3, "robot", "a", 5).bit_generator.random_raw() == GOLDEN_RAW


def test_importing_the_data_road_loads_no_jax_and_no_tensorflow():
    names = "types plugin codecs.normalizer codecs.text_tokenizer data.order data.mixture"
    names += " data.engine data.window data.statistics data.augment data.inspect data.robot"
    program = "import importlib, pkgutil, sys\n"
    program += f"names = {names.split()!r}\n"
    program += "import vla_jax.data.sources as s, vla_jax.data.standardizers as t\n"
    program += "names += ['data.sources.' + m.name for m in pkgutil.iter_modules(s.__path__)]\n"
    program += (
        "names += ['data.standardizers.' + m.name for m in pkgutil.iter_modules(t.__path__)]\n"
    )
    program += "for n in names: importlib.import_module('vla_jax.' + n)\n"
    program += "heavy = {'jax', 'tensorflow', 'flax', 'grain'} & set(sys.modules)\n"
    program += "assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_rows_of_the_permutation_are_uniform():
    counts = np.zeros((6, 6))
    for seed in range(600):
        for place in range(6):
            counts[place, order.permuted(place, 6, seed, "s", "m")] += 1
    assert np.abs(counts - 100).max() < 45  # 4.9 standard deviations


GOLDEN_MEMBERS = "abacabababacabbababbacba"
GOLDEN_EPOCH = [4, 2, 1, 6, 3, 8, 0, 5, 9, 7]
GOLDEN_RAW = 13409793941934539438
