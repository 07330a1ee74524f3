import math
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_mixture import CONTEXT, Numbers
from vla_jax import plugin
from vla_jax.data import members as members_lib
from vla_jax.data import mixture as mixture_lib
from vla_jax.data import order
from vla_jax.data.standardizers import oxe


class Recorded(Numbers):
    """A source that knows how many episodes it has."""

    def __init__(self, tag, size, episodes):
        super().__init__(tag, size)
        self.episodes = episodes

    def summary(self):
        return {"episodes": self.episodes}


def weights(members):
    """Member -> its share of the weights at n = 0, exact."""
    _, found = members_lib.build(members, CONTEXT, "mixture")
    return order.Order.make(found).ideal(1)


def source(size, **weight):
    return dict(source=Numbers(0, size), **weight)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 10**12), st.fractions(0, 1, max_denominator=60))
def test_a_tempered_size_is_rounded_down_to_32_places(size, power):
    """Against exact inequalities: x**q <= (2**32)**q * size**p < (x + 1)**q."""
    decimal = float(round(float(power), 2))
    exact = Fraction(str(decimal))
    x = members_lib.tempered(size, decimal) * 2**32
    assert x.denominator == 1
    p, q = exact.numerator, exact.denominator
    assert int(x) ** q <= size**p << (32 * q) < (int(x) + 1) ** q
    assert float(x / 2**32) == pytest.approx(size**decimal, rel=1e-9)


def test_members_weigh_what_they_hold():
    by = dict(weight=dict(by="samples"))
    assert weights({"a": source(30, **by), "b": source(10, **by)}) == {
        "a": Fraction(3, 4),
        "b": Fraction(1, 4),
    }
    root = dict(weight=dict(by="samples", power=0.5))
    assert weights({"a": source(900, **root), "b": source(100, **root)})["a"] == Fraction(3, 4)
    even = dict(weight=dict(power=0))
    assert weights({"a": source(900, **even), "b": source(100, **even)})["a"] == Fraction(1, 2)
    few = {"a": (Recorded(0, 9, 1), 1), "b": (Recorded(1, 1, 6), 0.5)}
    few = {k: dict(source=s, weight=dict(by="episodes", times=t)) for k, (s, t) in few.items()}
    assert weights(few) == {"a": Fraction(1, 4), "b": Fraction(3, 4)}


def test_a_size_times_a_curve():
    curve = dict(by="samples", times=[(0, 1), (100, 0)])
    mixed = {
        "a": source(30, weight=curve),
        "b": source(10, weight=dict(by="samples", times=0.5)),
    }
    tree = order.Order.make(members_lib.build(mixed, CONTEXT, "mixture")[1])
    late = tree.ideal(1001)
    assert late["a"] == tree.ideal(101)["a"], "nothing more after n=100"
    assert tree.root.left.curve.values[0] == Fraction(30, 35)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=5),
    st.lists(st.integers(1, 10**6), min_size=1, max_size=3),
    st.sampled_from([0.3, 0.5, 1.0]),
)
def test_the_prefix_bound_holds_for_weights_by_size(sizes, others, power):
    by = dict(weight=dict(by="samples", power=power))
    mixed = {
        "group": dict(
            members={f"g{i}": source(size, **by) for i, size in enumerate(sizes)},
            weight=[(0, 0.7), (90, 0.2)],
        ),
        **{f"m{i}": source(size, weight=0.3) for i, size in enumerate(others)},
    }
    tree = order.Order.make(members_lib.build(mixed, CONTEXT, "mixture")[1])
    total = sum(size**power for size in sizes)
    counts = {f"group/g{i}": 0 for i in range(len(sizes))} | {
        f"m{i}": 0 for i in range(len(others))
    }
    bound = 1 + 0.5 * math.log2(len(counts))
    for n in range(150):
        member, draw = tree.locate(n)
        assert draw == counts[member]
        counts[member] += 1
        ideal = tree.ideal(n + 1)
        assert sum(ideal.values()) == n + 1
        assert all(abs(counts[name] - ideal[name]) <= bound for name in counts)
    grouped = sum(ideal[f"group/g{i}"] for i in range(len(sizes)))
    for i, size in enumerate(sizes):
        share = float(ideal[f"group/g{i}"] / grouped)
        assert share == pytest.approx(size**power / total, rel=1e-6), "independent floats agree"


def test_weights_are_the_same_in_another_process():
    program = (
        "from vla_jax.data import members as m\n"
        "print([m.tempered(s, p) for s in (7, 123456789) for p in (0.1, 0.43, 0.999)])"
    )
    other = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    ours = [members_lib.tempered(s, p) for s in (7, 123456789) for p in (0.1, 0.43, 0.999)]
    assert other.stdout.strip() == str(ours)


def test_a_named_mixture_is_a_group_of_its_table(tmp_path, folder, monkeypatch):
    table = {"first": 2.0, "bridge_dataset": dict(weight=1.0, row="bridge"), "third": 1.0}
    monkeypatch.setattr(oxe, "MIXTURES", {"soup": table}, raising=False)
    spec = dict(named="soup", root="/data/oxe/", weight=0.7, without=("third",), holdout=0.2)
    found = members_lib.expand("mixture", {"oxe": spec, "mine": source(3, weight=0.3)})
    assert sorted(found) == ["mine", "oxe/bridge_dataset", "oxe/first"]
    bridge = found["oxe/bridge_dataset"]
    assert bridge.source == dict(
        type="rlds",
        path="/data/oxe/bridge_dataset",
        standardizer=dict(type="oxe", row="bridge"),
        holdout=0.2,
    )
    assert (bridge.by, bridge.times, bridge.share) == ("samples", 1.0, 0.7)
    assert found["oxe/first"].source["standardizer"]["row"] == "first"
    with pytest.raises(plugin.UserError, match=r"2 members cannot be read(.|\n)*oxe/first"):
        members_lib.build({"oxe": spec}, CONTEXT, "mixture")
    for change, words in (
        (dict(named="soop"), "did you mean 'soup'"),
        (dict(without=("frist",)), "did you mean 'first'"),
        (dict(root=""), "root is missing"),
        (dict(by="sampels"), "did you mean 'samples'"),
    ):
        with pytest.raises(plugin.UserError, match=words):
            members_lib.expand("mixture", {"oxe": spec | change})


def test_the_table_shows_groups(folder, context):
    rlds = dict(type="rlds", path=str(folder))
    by = dict(by="samples")
    members = dict(
        robots=dict(
            members=dict(
                all=dict(source=rlds, weight=by),
                early=dict(source=rlds | dict(steps="[:3]"), weight=by),
            ),
            weight=2,
        )
    )
    mixture = mixture_lib.Mixture.make(members, context)
    rows = {row["member"]: row for row in mixture.summary(1100)}
    assert rows["robots/all"]["weight"] == pytest.approx(77 / 110)
    assert {row["epochs"] for row in rows.values()} == {10.0}, "by size: all epochs alike"
    assert (
        rows["robots/early"]["dataset_key"] == "arm_data" and rows["robots/all"]["episodes"] == 11
    )
    text = mixture.table(1100)
    assert all(word in text for word in ("robots/early", "unlabelled", "dataset_key", "episodes"))


@pytest.mark.parametrize(
    "members, words",
    [
        ({"a": source(3, weight=dict(by="sample"))}, "did you mean 'samples'"),
        ({"a": source(3, weight=dict(buy="samples"))}, "did you mean 'by'"),
        ({"a": source(3, weight=dict(power=1.5))}, r"a.weight.power: got 1.5, expected 0"),
        ({"a": source(3, weight=dict(power="half"))}, "power: got 'half'"),
        ({"a": source(3, weight=dict(power=0.12345))}, "denominator"),
        ({"a": source(3, weight=dict(by="episodes"))}, "use by='samples'"),
        ({"a": source(3, weight=dict(times="much"))}, "mixture.a: weight='much'"),
        ({"a": source(3, weight=dict()), "b": source(3)}, "unlike kinds"),
        ({"a": source(3, weight=dict()), "b": source(3, weight=dict(power=0))}, "unlike kinds"),
        (
            {"g": dict(members={"a": source(3, weight=dict()), "b": source(3)})},
            "mixture.g: weights",
        ),
        ({"g": dict(members={"a": source(3, weight=[(0, 1)])})}, "constant weights"),
        ({"g": dict(members={"a": source(3, weight=0)})}, "mixture.g: all weights are zero"),
        ({"g": dict(members={})}, "mixture.g: no members"),
        ({"g": dict(members={"a": source(0)})}, "mixture.g.a: the source is empty"),
        ({"g": dict(members={"a": source(1)}, wieght=1)}, "did you mean 'weight'"),
    ],
)
def test_mistakes_are_named(members, words):
    with pytest.raises(plugin.UserError, match=words):
        weights(members)
