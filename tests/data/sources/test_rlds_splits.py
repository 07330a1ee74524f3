import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from vla_jax import plugin
from vla_jax.data.sources import _rlds_splits

SHARDS = {"train": [4, 3, 5], "val": [2], "test-dev": [0, 1]}
BOUND = st.one_of(
    st.just(""),
    st.integers(-14, 14).map(str),
    st.integers(-100, 100).map("{}%".format),
    st.floats(-100, 100).map("{:.2f}%".format),
    st.integers(-3, 3).map("{}shard".format),
)
PART = st.builds("{}{}".format, st.sampled_from(sorted(SHARDS)), st.one_of(
    st.just(""), st.builds("[{}:{}]".format, BOUND, BOUND), st.builds("[{}]".format, BOUND)
))  # fmt: skip


def reference(split):
    """[(name, shard, first, last)] as tensorflow_datasets has it; None where it refuses."""
    splits = pytest.importorskip("tensorflow_datasets.core.splits")
    naming = pytest.importorskip("tensorflow_datasets.core.naming")
    infos = [
        splits.SplitInfo(
            name=name,
            shard_lengths=lengths,
            num_bytes=0,
            filename_template=naming.ShardedFileTemplate(
                dataset_name="d", split=name, filetype_suffix="tfrecord", data_dir="/d"
            ),
        )
        for name, lengths in SHARDS.items()
    ]
    try:
        asked = splits.ReadInstruction.from_spec(split).to_absolute({i.name: i for i in infos})
        found = splits.SplitDict(infos)[split].file_instructions
    except Exception:
        return None
    # Of a slice that ends before it begins, in one shard, TFDS 4.9 takes a negative number.
    assume(all((piece.from_ or 0) <= (99 if piece.to is None else piece.to) for piece in asked))
    table = []
    for piece in found:
        name, _, rest = piece.filename.rpartition("/")[2].partition(".tfrecord-")
        take = piece.take if piece.take != -1 else piece.examples_in_shard - piece.skip
        shard = int(rest[:5])
        table.append((name.removeprefix("d-"), shard, piece.skip, piece.skip + take))
    return table


@settings(max_examples=400, deadline=None)
@given(st.lists(PART, min_size=1, max_size=3).map(" + ".join))
@example("train[:95%]")
@example("train[-1%:]")
@example("train[10:20]")
@example("train[1shard]")
@example("train[12.5%:37.5%]+val")
@example("all")
def test_slices_mean_what_they_mean_to_tfds(split):
    expected = reference(split)
    try:
        got = _rlds_splits.resolve("d", split, SHARDS)
    except plugin.UserError:
        got = None
    assert got == (expected or None)


@pytest.mark.parametrize(
    "split, words",
    [
        ("trian", "did you mean 'train'"),
        ("train[:101%]", "more than 100%"),
        ("train[:13]", r"\[0:13\] of 12 episodes"),
        ("train[", "cannot read 'train\\['.*expected e.g."),
        ("train[::2]", "cannot read"),
        ("train[1.5:]", "cannot read"),
        ("train[5:5]", "holds no episode.*'train': 12"),
    ],
)
def test_other_words_are_named(split, words):
    with pytest.raises(plugin.UserError, match=words):
        _rlds_splits.resolve("/data/d", split, SHARDS)
