"""Chunks are executed tick by tick; the network is asked every `execute_steps` ticks."""

from types import SimpleNamespace

import numpy as np
import pytest

from vla_jax import plugin


class Counting:
    """A policy whose action says which query and which step of the chunk it is."""

    def __init__(self, rows=2, window=1, horizon=4):
        self.rows, self.horizon = rows, horizon
        self.stream = SimpleNamespace(window=window, action_horizon=horizon)
        self.queries, self.observed, self.resets, self.asked = 0, [], [], []

    def reset(self, row=None):
        self.resets.append(row)

    def observe(self, row, observation):
        self.observed.append((row, observation))

    def act(self, instructions, *, masked_views=()):
        self.asked.append((tuple(instructions), tuple(masked_views)))
        chunk = np.stack([np.full(self.horizon, self.queries), np.arange(self.horizon)], axis=-1)
        self.queries += 1
        return np.stack([chunk] * self.rows), {"action": {"query": self.queries}}


@pytest.fixture(scope="module")
def chunks():
    from vla_jax.policy import chunks

    return chunks


def test_one_query_serves_execute_steps_ticks_of_all_rows(chunks):
    policy = Counting()
    executor = chunks.ChunkExecutor(policy, 3, masked_views=("primary",))
    seen, done = [], []

    def observe(row):
        seen.append(row)
        return {"tick": len(done)}

    for _ in range(7):
        done.append(executor.act(observe, ["a", "b"]))
    assert np.stack(done).shape == (7, 2, 2)
    assert [tuple(a[0]) for a in done] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert seen == [0, 1] * 3  # a picture is taken for a query only
    assert policy.asked == [(("a", "b"), ("primary",))] * 3
    assert executor.answers == {"action": {"query": 3}} and executor.chunks.shape == (2, 4, 2)


def test_a_window_remembers_every_tick(chunks):
    policy = Counting(rows=1, window=2)
    executor = chunks.ChunkExecutor(policy, 2)
    for tick in range(4):
        executor.act(lambda row, tick=tick: tick, ["a"])
    assert policy.observed == [(0, 0), (0, 1), (0, 2), (0, 3)] and policy.queries == 2


def test_an_episode_begins_with_a_query(chunks):
    policy = Counting()
    executor = chunks.ChunkExecutor(policy, 3)
    executor.reset(1)
    executor.act(lambda row: {}, ["a", "b"])
    assert not executor.due
    with pytest.raises(plugin.UserError, match="in 2 ticks"):
        executor.reset(0)
    executor.reset()  # all of them: whatever is left of the chunks is dropped
    assert executor.due and policy.resets == [1, None]
    assert tuple(executor.act(lambda row: {}, ["a", "b"])[0]) == (1, 0)


def test_execute_steps_lie_within_the_chunk(chunks):
    for steps in (0, 5):
        with pytest.raises(plugin.UserError, match="expected 1 to 4"):
            chunks.ChunkExecutor(Counting(), steps)
