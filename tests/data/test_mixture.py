import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.data import mixture as mixture_lib
from vla_jax.data import statistics
from vla_jax.types import SourceContext


class Numbers:
    """Rows that say which sample of which source they are."""

    def __init__(self, tag, size, shape=()):
        self.tag, self.size, self.shape, self.fingerprint = tag, size, shape, f"{tag}{size}"

    def __len__(self):
        return self.size

    def sample(self, index, rng):
        full = np.full(self.shape, index, np.int32)
        return {"index": full, "tag": np.int32(self.tag), "noise": np.float32(rng.random())}


class Unlabelled(Numbers):
    """Rows whose target is masked out, but for that of one sample."""

    def __init__(self, tag, size, labelled=-1):
        super().__init__(tag, size)
        self.labelled = labelled

    def sample(self, index, rng):
        mask = np.array([index == self.labelled])
        return {**super().sample(index, rng), "target_masks": {"text": mask}}


CONTEXT = SourceContext(name="", stream="s")


def make(seed=0, **members):
    return mixture_lib.Mixture.make(members, CONTEXT, seed=seed)


def test_rows_are_a_pure_function_of_n():
    mixture = make(a=dict(source=Numbers(0, 5)), b=dict(source=Numbers(1, 3), weight=0.5))
    forwards = [mixture.sample(n) for n in range(60)]
    backwards = [mixture.sample(n) for n in reversed(range(60))][::-1]
    assert forwards == backwards
    assert [row["row_id"] for row in forwards] == list(range(60))
    assert forwards[0]["row_id"].dtype == np.uint32
    assert len({row["noise"] for row in forwards}) == 60
    tags = np.array([row["tag"] for row in forwards])
    assert (tags == 0).sum() == 40
    index = np.array([row["index"] for row in forwards])
    assert [
        np.bincount(index[tags == 0][:40]).tolist(),
        np.bincount(index[tags == 1][:18]).tolist(),
    ] == [
        [8] * 5,
        [6] * 3,
    ], "every epoch sees every sample once"


def test_the_fingerprint_is_that_of_the_content():
    a, b = dict(source=Numbers(0, 5)), dict(source=Numbers(1, 3))
    prints = {
        make(a=a, b=b).fingerprint,
        make(seed=1, a=a, b=b).fingerprint,
        make(a=a, b=dict(b, weight=2)).fingerprint,
        make(a=a, b=dict(source=Numbers(1, 4))).fingerprint,
        make(a=a, c=b).fingerprint,
    }
    assert len(prints) == 5
    assert make(b=b, a=a).fingerprint == make(a=a, b=b).fingerprint


def test_the_table_names_sizes_weights_and_epochs(folder, context):
    members = {
        "all": dict(source=dict(type="rlds", path=str(folder)), weight=3),
        "early": dict(source=dict(type="rlds", path=str(folder), steps="[:3]"), weight=1),
    }
    mixture = mixture_lib.Mixture.make(members, context)
    rows = mixture.summary(770)
    assert [row["samples"] for row in rows] == [77, 33]
    assert [row["weight"] for row in rows] == [0.75, 0.25]
    assert [row["epochs"] for row in rows] == [7.5, pytest.approx(770 / 4 / 33)]
    text = mixture.table(770)
    assert "early" in text and "epochs" in text and "7.5" in text
    assert mixture.sources["all"].episodes.action is mixture.sources["early"].episodes.action
    table = statistics.compute(mixture.sources.values())
    assert table.keys == ("arm_data",)
    row = mixture.with_normalizer(table).sample(3)
    assert row["dataset_key"] == 0


@pytest.mark.parametrize(
    "members, words",
    [
        ({}, "streams.s.mixture: no members"),
        ({"a": dict(source=Numbers(0, 0))}, "mixture.a: the source is empty"),
        ({"a": dict(source=Numbers(0, 2), wieght=1)}, "did you mean 'weight'"),
        ({"a": dict(weight=1)}, "no source"),
        ({"a": dict(source=Numbers(0, 2), members={})}, "both source and members"),
        ({"a": dict(source=Unlabelled(0, 40))}, "mixture.a: unlabelled: none of 16 samples"),
        ({"a": dict(source=dict(type="rldz", path="x"))}, "did you mean 'rlds'"),
        ({"a": dict(source=dict(type="rlds", pth="x"))}, "did you mean 'path'"),
        (
            {"a": dict(source=Numbers(0, 2)), "b": dict(source=Numbers(1, 2, (3,)))},
            "rows of 'b' and 'a' differ",
        ),
    ],
)
def test_mistakes_are_named(members, words):
    with pytest.raises(plugin.UserError, match=words):
        mixture_lib.Mixture.make(members, CONTEXT)


def test_a_member_with_some_labels_is_kept():
    make(a=dict(source=Unlabelled(0, 32, labelled=30)))
