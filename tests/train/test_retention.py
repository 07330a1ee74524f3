"""Which saves stay: the newest, every n-th and, kept apart, the best by a metric."""

import dataclasses

import pytest

from tests.train import toy
from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.train import checkpoint, start


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return toy.saved(tmp_path_factory.mktemp("run"), steps=())[2]


def saver(folder, **keep):
    """Checkpoints that keep as said."""
    config = dataclasses.replace(toy.config(), checkpoint=config_lib.CheckpointConfig(**keep))
    return checkpoint.Checkpoints(str(folder), config, checkpoint.Assets())


def kept(folder, name):
    """The steps in a folder of saves; what else lies there is an error."""
    return sorted(int(path.name) for path in (folder / name).iterdir())


def test_every_nth_stays_for_good(state, tmp_path):
    for steps in ((2, 4, 6), (8, 10)):  # a restart between: it is no matter of one process
        run = saver(tmp_path, keep=1, keep_every=4)
        for step in steps:
            run.save(step, state, {"robot": step})
        run.close()
    assert kept(tmp_path, checkpoint.RESUME) == [4, 8, 10]
    assert checkpoint.find(str(tmp_path)).name == "10"  # it goes on from the newest all the same
    assert checkpoint.load(str(tmp_path), step=4).meta.step == 4


@pytest.mark.parametrize(("mode", "best"), [("min", 1), ("max", 4)])
def test_the_best_and_the_resume_points_are_kept_apart(state, tmp_path, mode, best):
    """Neither the best that is old drops the newest, nor the newest that is bad the best."""
    values = {1: 1.0, 2: 3.0, 3: 2.0, 4: 4.0}
    run = saver(tmp_path, keep=2, best_metric="m", best_mode=mode, best_keep=1)
    for step, value in values.items():
        run.save(step, state, {"robot": step})
        run.save_best(step, state, {"robot": step}, {"m": value})
    assert run.latest() == 4
    run.close()
    assert kept(tmp_path, checkpoint.BEST) == [best]
    assert kept(tmp_path, checkpoint.RESUME) == [3, 4]
    assert checkpoint.find(str(tmp_path)).name == "4"
    assert checkpoint.load(str(tmp_path / checkpoint.BEST)).meta.step == best

    # It broke off after 4 and goes on from 3, say: another 4 takes the place of the old one.
    run = saver(tmp_path, keep=2, best_metric="m", best_mode=mode, best_keep=1)
    run.save_best(4, state, {"robot": 4}, {"m": 2.5})
    run.save(5, state, {"robot": 5})
    run.close()
    assert kept(tmp_path, checkpoint.BEST) == [1 if mode == "min" else 4]
    assert kept(tmp_path, checkpoint.RESUME) == [4, 5]


@pytest.mark.parametrize("keep_every", [0, 3, -2])
def test_an_interval_at_which_nothing_is_saved_is_refused(keep_every):
    config = toy.config(checkpoint=dict(every=2, keep_every=keep_every))
    with pytest.raises(plugin.UserError, match=f"keep_every: got {keep_every}, .* nearest: [24]"):
        start.check_intervals(config, [])
    start.check_intervals(toy.config(checkpoint=dict(every=2, keep_every=6)), [])
