"""2 + 2 train_steps with a restart between equal 4, bit for bit, over real data of two streams."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest

from tests import two_streams
from vla_jax.train import assemble, checkpoint, hooks, smoke
from vla_jax.train.writers import jsonl


@pytest.fixture(scope="module")
def config(fixtures_dir, tmp_path_factory):
    tokenizer = two_streams.text_tokenizer(tmp_path_factory.mktemp("text"))
    return two_streams.config(fixtures_dir, tokenizer, mesh=dict(data=2, fsdp=2, tensor=2))


def stop_at(step: int) -> hooks.Hook:
    """Stands for SIGTERM after train_step `step`."""

    def call(done, state):
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    return hooks.Hook(name="stop", every=1, call=call)


@pytest.mark.mesh
def test_two_and_two_equal_four(config, tmp_path, monkeypatch):
    taken = two_streams.watch(monkeypatch)
    four = assemble.train(assemble.assemble(config), str(tmp_path / "four"))
    whole = list(taken)
    taken.clear()

    two = assemble.train(assemble.assemble(config), str(tmp_path / "two"), [stop_at(2)])
    assert int(two.step) == 2
    stored = checkpoint.read_meta(checkpoint.find(str(tmp_path / "two")))
    assert (stored.step, stored.n) == (2, {"robot": 8, "vl": 8})
    resumed = assemble.train(assemble.assemble(config), str(tmp_path / "two"))
    assert int(resumed.step) == int(four.step) == 4
    for part in ("trained", "opt_state", "ema"):
        assert smoke.same(getattr(four, part), getattr(resumed, part)), part
    assert not smoke.same(four.trained, two.trained)  # the test can fail
    assert len(jax.tree.leaves(four.ema)) > 0

    # The same rows, byte for byte, in the same order, and none of them twice.
    assert taken == whole and len(whole) == 2 * 4
    for name in ("robot", "vl"):
        assert [n for row in whole if row[0] == name for n in row[1]] == list(range(16))
    losses = [[row["loss"] for row in jsonl.read(tmp_path / run)] for run in ("four", "two")]
    assert losses[0] == losses[1] and len(losses[0]) == 4 and np.all(np.isfinite(losses))


def test_another_seed_is_another_mixture(config, tmp_path):
    other = dataclasses.replace(config, seed=3)
    mixtures = [assemble.assemble(c).assets().mixtures for c in (config, other)]
    assert mixtures[0]["vl"]["fingerprint"] != mixtures[1]["vl"]["fingerprint"]
