"""The loop's feed: in order, one placed ahead and no more, exact to resume, honest about waits."""

import time

import jax
import numpy as np
import pytest

from tests.train import toy
from vla_jax import plugin, trees
from vla_jax.parallel import arrays
from vla_jax.parallel import mesh as meshes
from vla_jax.train import feed as feeds

ONE = jax.devices()[:1]


class Counted(toy.Stream):
    """The toy's stream that counts what was drawn, and may be slow or break."""

    drawn, slow, breaks_at = 0, 0.0, None

    def __next__(self):
        time.sleep(self.slow)
        if self.drawn == self.breaks_at:
            raise plugin.UserError("broken")
        self.drawn += 1
        return super().__next__()

    @property
    def skipped(self):
        return 10 * self.drawn


def made(count=4, **changes):
    """(the feed, its one stream) over one device."""
    stream = Counted("robot", 4, np.arange(4), 0)
    vars(stream).update(changes)
    return feeds.Feed({"robot": stream}, meshes.make(devices=ONE), count), stream


def until(true, seconds=10.0):
    end = time.perf_counter() + seconds
    while not true() and time.perf_counter() < end:
        time.sleep(0.005)
    assert true()


class Running:
    """What stands for a train_step's metrics: ready when it is said."""

    ready = False

    def is_ready(self):
        return self.ready


def test_batches_are_those_of_the_stream_and_one_is_placed_ahead():
    feed, stream = made()
    plain = toy.Stream("robot", 4, np.arange(4), 0)
    for number in range(4):
        until(lambda: feed.ahead() == 1)  # before anybody asks
        time.sleep(0.05)
        assert stream.drawn == number + 1  # and no second one
        batches, _, skipped = feed.take()
        mesh = meshes.make(devices=ONE)
        expected = arrays.global_batch(feeds.types.Batch.make(**next(plain)), mesh)
        assert trees.diff(expected, batches["robot"]) == ""
        for got, want in zip(jax.tree.leaves(batches["robot"]), jax.tree.leaves(expected)):
            assert isinstance(got, jax.Array) and got.sharding == want.sharding
            np.testing.assert_array_equal(got, want)
        assert skipped == 10 * (number + 1)  # of what was taken, not of what was drawn
    time.sleep(0.05)
    assert stream.drawn == 4 and feed.ahead() == 0  # nothing past the run's end
    feed.close()


def test_what_breaks_is_raised_after_what_is_whole():
    feed, _ = made(breaks_at=2)
    feed.take()
    feed.take()
    with pytest.raises(plugin.UserError, match="broken"):
        feed.take()
    feed.close()


def test_waiting_counts_where_the_devices_have_nothing_to_do():
    feed, _ = made(slow=0.3)
    running = Running()
    _, waited, _ = feed.take(running)  # the train_step before takes longer than the data
    assert waited == 0
    running.ready = True
    _, waited, _ = feed.take(running)
    assert waited > 0.2
    until(lambda: feed.ahead() == 1)
    assert feed.take(running)[1] == 0  # it was there
    feed.close()


def test_it_ends_while_a_batch_is_being_read():
    feed, stream = made(slow=0.2)
    feed.close()
    assert not feed._thread.is_alive() and stream.drawn <= 1
