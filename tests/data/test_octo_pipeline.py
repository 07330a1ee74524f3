"""Octo's own pipeline outputs (fixtures octo_golden/data), reproduced with the legacy option.

Windows of 2, chunks of 4, Bridge, both splits (Octo's statistics are of train and val together).
"""

import json

import numpy as np
import pytest

from tests.data import octo_bridge
from vla_jax.codecs import normalizer as normalizer_lib
from vla_jax.data import statistics, window
from vla_jax.data.sources import rlds as source_lib
from vla_jax.embodiments import widowx
from vla_jax.types import SourceContext

W, C = 2, 4
EPISODES = range(3)
NAMES = dict(mean="mean", std="std", min="min", max="max", q01="p01", q99="p99")
MODES = {"normal": ("zscore", None), "bounds": ("q01_q99", 1.0)}


@pytest.fixture(scope="module")
def golden(fixtures_dir):
    folder = fixtures_dir / "octo_golden" / "data"
    with np.load(folder / "data.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads((folder / "dataset_statistics.json").read_text())


def open_split(fixtures_dir, split, **reading):
    context = SourceContext(
        name="bridge",
        stream="robot",
        window=W,
        action_horizon=C,
        action_size=7,
        image_sizes={"primary": (256, 256), "wrist": (128, 128)},
        resize="tensorflow",
        embodiments=(widowx.EMBODIMENT,),
        action_spaces=widowx.EMBODIMENT.action_spaces,
    )
    return source_lib.make(
        context,
        path=str(fixtures_dir / "bridge_dataset"),
        split=split,
        standardizer="tests.data.octo_bridge",
        holdout=0,
        optional_views=("wrist",),
        language="optional",
        **reading,
    )


@pytest.fixture(scope="module")
def tables(fixtures_dir):
    return [open_split(fixtures_dir, split).episodes for split in ("train", "val")]


@pytest.mark.parametrize("field", ["action", "proprio"])
def test_statistics(tables, golden, field):
    expected = golden[1][field]
    parts = [t.action if field == "action" else t.proprio["ee"] for t in tables]
    values = np.concatenate(parts)
    # Octo counts every step once, whatever chunks it stands in.
    got = statistics.moments(values, np.ones(len(values), np.int64))
    assert got.count == golden[1]["num_transitions"] == 450
    assert sum(len(t) for t in tables) == golden[1]["num_trajectories"] == 50
    for ours, theirs in NAMES.items():
        np.testing.assert_allclose(getattr(got, ours), expected[theirs], rtol=2e-5, atol=2e-6)


def test_the_gripper_is_octo_s(golden):
    arrays, _ = golden
    got = octo_bridge.binarized(arrays["unit/binarize_in"])
    np.testing.assert_array_equal(got, arrays["unit/binarize_out"])


def normalizer(given, mode, clip):
    """Octo's statistics as ours; its gripper dim has mask False."""
    entries = {}
    for field, name in (("action", "action"), ("proprio", "proprio/ee")):
        s = given[field]
        numbers = {ours: tuple(s[theirs]) for ours, theirs in NAMES.items()}
        active = tuple(s.get("mask", [True] * len(s["mean"])))
        entries[name] = normalizer_lib.Entry(
            mode=mode,
            statistics=normalizer_lib.Statistics(count=450, **numbers),
            active=active,
            clip=clip,
        )
    return normalizer_lib.Normalizer({"bridge_dataset": entries})


def episode_of(source, raw_state):
    """The number of the episode with these states: TFDS gives them in another order."""
    start = source.episodes.start
    for e in range(len(source.episodes)):
        if np.array_equal(source.episodes.proprio["ee"][start[e]], raw_state[0]):
            return e
    raise AssertionError("Octo's episode is not in the split")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("goals", ["nogoal", "uniform"])
def test_chunks_masks_and_normalization(fixtures_dir, golden, mode, goals):
    arrays, given = golden
    table = normalizer(given, *MODES[mode])
    source = open_split(fixtures_dir, "train", chunking="octo").with_normalizer(table)
    for i in EPISODES:
        octo = {
            k.split(f"traj{i}/")[1]: v
            for k, v in arrays.items()
            if k.startswith(f"{mode}_{goals}/traj{i}/")
        }
        episode = episode_of(source, arrays[f"raw/traj{i}/observation/state"])
        first, last = source.episodes.start[episode : episode + 2]
        assert last - first == len(octo["action"]) == 9
        for t in range(9):
            index = int(np.flatnonzero((source._samples == (episode, t)).all(1))[0])
            row = source.sample(index, np.random.default_rng(0))
            real = row["observation"]["timestep_mask"]
            np.testing.assert_array_equal(real, octo["observation/timestep_pad_mask"][t])
            np.testing.assert_allclose(
                row["targets"]["action"], octo["action"][t], rtol=1e-4, atol=1e-5
            )
            np.testing.assert_allclose(
                row["observation"]["proprio"]["ee"],
                octo["observation/proprio"][t],
                rtol=1e-4,
                atol=1e-5,
            )
            end = int(octo["task/timestep"][t]) if goals == "uniform" else 8
            legacy = window.octo_mask(t, W, C, end)
            np.testing.assert_array_equal(legacy, ~octo["observation/task_completed"][t])
            np.testing.assert_array_equal(legacy, octo["action_pad_mask"][t][..., 0])
            if goals == "nogoal":
                # What Octo's loss counts: its mask, and no padded timestep.
                wanted = octo["action_pad_mask"][t] & real[:, None, None]
                np.testing.assert_array_equal(row["target_masks"]["action"], wanted)


def test_octo_counts_actions_that_were_never_recorded_and_we_do_not(golden):
    arrays, _ = golden
    theirs = arrays["normal_nogoal/traj0/action_pad_mask"][..., 0]  # [9, W, C]
    steps = np.arange(9)[:, None, None] + np.arange(-1, 1)[:, None] + np.arange(C)
    assert (theirs & (steps > 8)).sum() == 5, "past the end"
    for t in range(9):
        _, ours = window.chunk(np.zeros((9, 7)), t, W, C, np.zeros(7, bool), np.zeros(7))
        assert not (ours & (steps[t] > 8)).any()
        real = (np.arange(t - 1, t + 1) >= 0)[:, None]
        np.testing.assert_array_equal(ours, (steps[t] <= 8) & real)


def test_pictures_are_octo_s_to_one_level(fixtures_dir, golden):
    arrays, _ = golden
    source = open_split(fixtures_dir, "train")
    episode = episode_of(source, arrays["raw/traj0/observation/state"])
    for t in (0, 5):
        index = int(np.flatnonzero((source._samples == (episode, t)).all(1))[0])
        shown = source.sample(index, np.random.default_rng(0))["observation"]["images"]
        wanted = arrays[f"sample_image_256/traj0_t{t}_w1"].astype(int)
        assert np.abs(shown["primary"][1] - wanted).max() <= 1
        assert not shown["wrist"].any()
