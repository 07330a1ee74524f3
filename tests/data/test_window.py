import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax.data import window


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_vectorised_equals_the_plain_loop(data):
    length = data.draw(st.integers(1, 8))
    t = data.draw(st.integers(0, length - 1))
    w, c, size = (data.draw(st.integers(1, 5)) for _ in range(3))
    action = np.arange(length * size, dtype=np.float32).reshape(length, size) + 1
    hold = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    pad = np.full(size, -3, np.float32)
    goal = data.draw(st.none() | st.integers(t, length - 1))
    read, real, actions, mask = window.reference(action, t, w, c, hold, pad, goal)
    got_read, got_real = window.steps(t, w)
    got_actions, got_mask = window.chunk(action, t, w, c, hold, pad, goal)
    np.testing.assert_array_equal(got_read, read)
    np.testing.assert_array_equal(got_real, real)
    np.testing.assert_array_equal(got_actions, actions)
    np.testing.assert_array_equal(got_mask, mask)
    assert got_actions.dtype == np.float32 and got_mask.dtype == bool
    # Octo masks two steps late (octo_defects.md A1): here every counted action is recorded.
    steps = np.maximum(np.arange(t - w + 1, t + 1), 0)[:, None] + np.arange(c)[None]
    np.testing.assert_array_equal(
        got_actions[got_mask], action[steps[got_mask]], "a masked-in action is the recorded one"
    )
    end = length if goal is None else goal
    counted = (max(0, min(c, end - s)) for s in range(max(0, t - w + 1), t + 1))
    assert got_mask.sum() == sum(counted), "all that is before the end or the goal, and no more"


def test_the_drawing_of_the_module():
    action = np.arange(5, dtype=np.float32)[:, None]
    slots, real = window.steps(1, 3)
    assert slots.tolist() == [0, 0, 1] and real.tolist() == [False, True, True]
    actions, mask = window.chunk(action, 1, 3, 2, np.array([True]), np.zeros(1))
    assert actions[..., 0].tolist() == [[0, 1], [0, 1], [1, 2]]
    assert mask.tolist() == [[False, False], [True, True], [True, True]]


def test_past_the_end_a_delta_is_zero_and_an_absolute_is_held():
    action = np.array([[1, 1], [2, 2]], np.float32)
    actions, mask = window.chunk(action, 1, 1, 3, np.array([False, True]), np.zeros(2, np.float32))
    assert actions[0].tolist() == [[2, 2], [0, 2], [0, 2]]
    assert mask[0].tolist() == [True, False, False]
