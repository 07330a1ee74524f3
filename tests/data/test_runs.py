"""Contiguous access: every epoch a permutation, whole runs read once, a bounded buffer."""

import pathlib
import pickle
import uuid

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax import plugin
from vla_jax.data import engine, order, runs
from vla_jax.data import mixture as mixture_lib
from vla_jax.data.sources import _files
from vla_jax.data.sources import rlds as source_lib


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 2**31)
)
def test_every_epoch_is_a_permutation_in_blocks_of_runs(lengths, num_runs, seed):
    bounds = np.cumsum([0, *lengths])
    access, size = order.Contiguous(bounds, num_runs), int(bounds[-1])
    run_of = np.repeat(np.arange(len(lengths)), lengths)
    for epoch in range(2):
        drawn = [access.permuted(epoch * size + i, seed, "s", "m") for i in range(size)]
        assert sorted(drawn) == list(range(size))
        visited, at = [], 0
        while at < size:  # block by block: `num_runs` runs, all of each, none of another
            block = []
            while len(set(block)) < num_runs and at + len(block) < size:
                block.append(run_of[drawn[at + len(block)]])
            whole = sum(lengths[run] for run in set(block))
            seen = {int(run_of[index]) for index in drawn[at : at + whole]}
            assert seen == set(map(int, block)), "one block at a time"
            visited += sorted(seen)
            at += whole
        assert sorted(visited) == list(range(len(lengths)))
    backwards = [access.permuted(size + i, seed, "s", "m") for i in reversed(range(size))]
    assert backwards[::-1] == drawn, "whatever was read before"


def test_epochs_seeds_and_sources_differ():
    access = order.Contiguous(np.arange(0, 401, 4), 8)
    kinds = [
        (0, "s", "a", 0),
        (0, "s", "a", 1),
        (1, "s", "a", 0),
        (0, "t", "a", 0),
        (0, "s", "b", 0),
    ]
    drawn = {
        tuple(access.permuted(400 * e + i, seed, s, m) for i in range(50))
        for seed, s, m, e in kinds
    }
    assert len(drawn) == len(kinds)
    first = [access.permuted(i, 7, "s", "a") for i in range(400)]
    # Within a block of 8 runs of 4 the order is a permutation, not runs one after the other.
    assert np.mean(np.diff(first[:32]) == 1) < 0.2


def test_the_sequence_is_a_constant_of_the_program():
    """A changed number here means that no earlier run can be resumed: bump the format version."""
    access = order.Contiguous(np.array([0, 2, 5, 9, 10, 14]), 2)
    assert [access.permuted(i, 3, "robot", "a") for i in range(14)] == GOLDEN


@pytest.fixture
def store(rlds, tmp_path):
    """The URL of 24 episodes in 3 shards in fsspec's memory, and their size in bytes."""
    path = rlds.write(tmp_path / "d", [rlds.episode(i, length=12) for i in range(24)], shards=3)
    url = f"memory://{uuid.uuid4().hex}/d"
    for file in path.iterdir():
        _files.write(_files.join(url, file.name), file.read_bytes())
    return url, sum(file.stat().st_size for file in path.glob("*.tfrecord-*"))


def opened(context, url, **arguments):
    spec = dict(type="rlds", path=url, holdout=0.25, **arguments)
    return mixture_lib.Mixture.make({"a": dict(source=spec)}, context, seed=2)


def test_bytes_read_per_sample(store, context, capsys):
    url, size = store
    arguments = dict(access="contiguous", num_runs=3, run_bytes=20_000)
    kinds = {"random": opened(context, url), "contiguous": opened(context, url, **arguments)}
    samples = len(kinds["random"].sources["a"])
    assert samples == 18 * 12
    read = {}
    for kind, mixture in kinds.items():
        for run in mixture.sources["a"]._pictures.read._kept if kind == "contiguous" else ():
            pathlib.Path(mixture.sources["a"]._pictures.read.folder, str(run)).unlink()
        mixture = pickle.loads(pickle.dumps(mixture))  # one that has read nothing yet
        _files.counts.reset()
        rows = [mixture.sample(n) for n in range(samples)]
        read[kind] = (_files.counts.bytes, _files.counts.requests)
        kinds[kind] = rows
    with capsys.disabled():
        for kind, (octets, asked) in read.items():
            print(f"\n{kind}: {octets / samples:.0f} bytes, {asked / samples:.3f} requests/sample")
    pictures = [row["observation"]["timestep_mask"].sum() for row in kinds["random"]]
    assert read["random"][1] == sum(pictures), "each distinct picture of each sample"
    assert read["contiguous"][0] <= size, "each byte of the shards once at most"
    assert read["contiguous"][0] < 0.75 * read["random"][0], "windows share their pictures"
    count = len(opened(context, url, **arguments).sources["a"].runs.bounds) - 1
    assert read["contiguous"][1] == count < samples / 20, "one request a run"

    def contents(row):
        parts = (row["observation"]["images"]["primary"], row["targets"]["action"])
        return tuple(part.tobytes() for part in parts)

    assert sorted(map(contents, kinds["random"])) == sorted(map(contents, kinds["contiguous"]))


def test_the_buffer_is_bounded_and_not_pickled(store, context):
    url, _ = store
    source = opened(context, url, access="contiguous", num_runs=2, run_bytes=1).sources["a"]
    rng = np.random.default_rng(0)
    for n in range(100):
        source.sample(source.runs.permuted(n, 0, "s", "a"), rng)
        assert len(source._pictures.read._kept) <= 4
    small = len(pickle.dumps(source._pictures.read))
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_equal(again.sample(5, rng), source.sample(5, rng))
    assert small < 20_000 + sum(a.nbytes for a in (source._pictures.read.run_of,))


def test_the_processes_of_a_host_fetch_a_run_once(store, context):
    url, _ = store
    parent = opened(context, url, access="contiguous", num_runs=2, run_bytes=10_000)
    runs_of = len(parent.sources["a"].runs.bounds) - 1
    workers = [pickle.loads(pickle.dumps(parent)) for _ in range(3)]
    _files.counts.reset()
    samples = 18 * 12
    rows = [workers[n % 3].sample(n) for n in range(samples)]
    assert _files.counts.requests <= runs_of, "the parent had read one when it was made"
    for n in (0, 100, 215):
        np.testing.assert_equal(rows[n], parent.sample(n))
    folder = pathlib.Path(workers[0].sources["a"]._pictures.read.folder)
    assert len([p for p in folder.iterdir() if not p.suffix]) <= 4


def test_hosts_and_resume_change_nothing(store, context):
    url, _ = store
    arguments = dict(access="contiguous", num_runs=2, run_bytes=10_000)
    mixture = opened(context, url, **arguments)

    def take(batches, **options):
        with engine.Stream(mixture, 8, **options) as stream:
            return [next(stream) for _ in range(batches)]

    whole = take(40)  # an epoch has 27
    for hosts in (2, 4):
        parts = [take(40, rows=np.arange(8)[h::hosts], threads=2) for h in range(hosts)]
        for k in (0, 13, 39):
            together = engine.stack([parts[r % hosts][k] for r in range(8)])
            picked = [together["targets"]["action"][r, r // hosts] for r in range(8)]
            np.testing.assert_array_equal(picked, whole[k]["targets"]["action"])
    np.testing.assert_equal(take(3, start_n=8 * 30), whole[30:33])


def test_only_used_episodes_are_read(store, context):
    url, size = store
    one = opened(context, url, access="contiguous", run_bytes=10**9, episodes=2)
    _files.counts.reset()
    for n in range(24):
        one.sample(n)
    assert _files.counts.bytes < size / 3 and _files.counts.requests <= 2


def test_what_has_no_bytes_to_fetch_is_said(folder, context):
    with pytest.raises(plugin.UserError, match="access: unknown 'contigous'.*did you mean"):
        source_lib.make(context, path=str(folder), access="contigous")
    with pytest.raises(plugin.UserError, match="num_runs=0"):
        source_lib.make(context, path=str(folder), access="contiguous", num_runs=0)
    source = source_lib.make(context, path=str(folder), access="contiguous")
    with pytest.raises(plugin.UserError, match="not read by ranges"):
        runs.make("here", source.episodes, source._samples, [], lambda *_: [], source.reading)


GOLDEN = [10, 11, 5, 8, 13, 6, 7, 12, 3, 2, 9, 4, 0, 1]
