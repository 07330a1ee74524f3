"""Hindsight goals: distributions against counting, rows through a source, masks up to the goal."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax import plugin
from vla_jax.data import engine, goals, mixture
from vla_jax.data.sources import rlds as source_lib
from vla_jax.types import Batch

VIEWS = ("primary", "wrist")
DRAWS = (np.arange(4000) + 0.5) / 4000


def made(**arguments):
    return goals.Goals.make("here", dict(views=("primary",), **arguments), VIEWS)


def shares(goal, t, candidates, last):
    """Candidate -> share of evenly spaced draws."""
    found = [goal.draw(t, np.asarray(candidates), last, draw) for draw in DRAWS]
    return {int(c): found.count(c) / len(found) for c in sorted(set(found))}


def test_uniform_is_uniform_over_the_future():
    assert shares(made(), 3, range(8), 7) == {4: 0.25, 5: 0.25, 6: 0.25, 7: 0.25}
    assert shares(made(max_distance=2), 3, range(8), 7) == {4: 0.5, 5: 0.5}
    assert shares(made(), 3, [0, 3, 6, 7], 7) == {6: 0.5, 7: 0.5}, "only steps with a picture"
    assert shares(made(max_distance=2), 3, [3, 6, 7], 7) == {6: 1.0}, "the nearest, if all are far"


def test_the_other_strategies_are_what_they_are_called():
    assert shares(made(strategy="last"), 1, range(6), 5) == {5: 1.0}
    assert shares(made(strategy="delta", low=2, high=3), 1, range(9), 8) == {3: 0.5, 4: 0.5}
    assert shares(made(strategy="delta", low=4, high=7), 4, range(7), 6) == {6: 1.0}
    # Bridge's last_state_upweighted: offsets 1 … T-1 from t, clipped to the end.
    got = shares(made(strategy="last_upweighted"), 3, range(6), 5)
    assert got == pytest.approx({4: 1 / 5, 5: 4 / 5}, abs=1e-3)
    got = shares(made(strategy="geometric", discount=0.5), 2, range(6), 5)
    assert got == pytest.approx({3: 4 / 7, 4: 2 / 7, 5: 1 / 7}, abs=1e-3)
    assert shares(made(strategy="geometric", discount=1), 3, range(6), 5) == {4: 0.5, 5: 0.5}


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_goal_is_a_later_picture_or_the_step_itself(data):
    last = data.draw(st.integers(0, 12))
    t = data.draw(st.integers(0, last))
    seen = sorted({t, *data.draw(st.lists(st.integers(0, last)))})
    arguments = data.draw(
        st.sampled_from(
            [{}, dict(max_distance=3), dict(strategy="last"), dict(strategy="last_upweighted"),
             dict(strategy="geometric", discount=0.9), dict(strategy="delta", low=1, high=4)]
        )
    )  # fmt: skip
    draw = data.draw(st.floats(0, 1, exclude_max=True))
    got = made(**arguments).draw(t, np.asarray(seen), last, draw)
    assert got in seen and (got > t or (got == t and t == seen[-1]))


def source(folder, context, **reading):
    reading = {"goals": dict(views=("primary",)), "holdout": 0, **reading}
    return source_lib.make(context, path=str(folder), **reading)


def brightness(picture):
    return int(picture[8, 8].astype(int).mean().round())


def test_rows_show_a_later_picture_and_count_actions_before_it(folder, context):
    rows = source(folder, context)
    goals_seen = set()
    for index in range(0, len(rows), 3):
        episode, t = (int(i) for i in rows._samples[index])
        number = int(rows.episodes.ids[episode][1:])
        for seed in range(4):
            row = rows.sample(index, np.random.default_rng(seed))
            picture = row["task"]["values"]["goal_primary"]
            assert picture.shape == (16, 16, 3) and row["task"]["masks"]["goal_primary"]
            step = round((brightness(picture) - number) / 10)  # pictures say their step
            assert step > t or step == t == 6
            goals_seen.add((t, step))
            mask = row["target_masks"]["action"][..., 0]
            slots = np.array([max(t - 1, 0), t])[:, None] + np.arange(3)[None]
            real = np.array([t > 0, True])[:, None]
            np.testing.assert_array_equal(mask, (slots < step) & real)
    assert len(goals_seen) > 15, "goals vary"
    again = rows.sample(5, np.random.default_rng(1))
    np.testing.assert_equal(again, rows.sample(5, np.random.default_rng(1)))


def test_goals_fit_the_contract_page_and_an_absent_view_is_masked(folder, context):
    context = dataclasses.replace(context, image_sizes={"primary": (24, 24), "wrist": (8, 8)})
    spec = dict(
        type="rlds",
        path=str(folder),
        optional_views=("wrist",),
        goals=dict(views=("primary", "wrist")),
    )
    mix = mixture.Mixture.make({"a": dict(source=spec)}, context)
    with engine.Stream(mix, 4) as stream:
        task = Batch.make(**next(stream)).task
    assert task.values["goal_primary"].shape == (4, 24, 24, 3) and task.masks["goal_primary"].all()
    assert not task.values["goal_wrist"].any() and not task.masks["goal_wrist"].any()


def test_mistakes(folder, context):
    for arguments, match in (
        (dict(strategy="unifrom"), "did you mean 'uniform'"),
        (dict(discount=0.9), "goals uniform: unknown 'discount'"),
        (dict(max_distance=0), "max_distance >= 1"),
        (dict(strategy="delta", low=3, high=2), "low <= high"),
    ):
        with pytest.raises(plugin.UserError, match=match):
            made(**arguments)
    with pytest.raises(plugin.UserError, match="did you mean 'primary'"):
        goals.Goals.make("here", dict(views=("primry",)), VIEWS)
    with pytest.raises(plugin.UserError, match="no views"):
        goals.Goals.make("here", {}, VIEWS)
