import dataclasses

import numpy as np
import pytest

from vla_jax.envs import _scene, cards
from vla_jax.plugin import UserError

pytestmark = pytest.mark.sim

NAMES = tuple("abcdef")
COLORS = ((255, 0, 0), (0, 160, 0), (0, 0, 255), (200, 0, 200), (255, 140, 0), (0, 0, 0))


def picture(color):
    """Full of `color`, its upper left quarter yellow: tells up from down and left from right."""
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[:] = (*color, 255)
    rgba[:28, :28, :3] = (255, 255, 0)
    return rgba


PICTURES = {name: picture(color) for name, color in zip(NAMES, COLORS)}


@pytest.fixture(scope="module")
def env():
    env = cards.make(pictures=PICTURES, embodiment="sawyer_cards_xyz", image_size=96)
    yield env
    env.close()


def play(env, seed, until=None):
    """The expert's episode, to its end or `until` steps."""
    target, names = cards.draw_task(seed, NAMES, NAMES)
    env.reset(seed, target, names, render=False)
    while not env.info["done"] and env.info["steps"] != until:
        env.step(env.expert_action(), render=False)
    return env.info


def test_layout_is_a_function_of_the_seed():
    one, again, other = (cards.draw_layout(seed) for seed in (3, 3, 4))
    for field in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(again, field.name))
        assert np.any(getattr(one, field.name) != getattr(other, field.name))


def test_layouts_keep_their_ranges():
    for seed in range(200):
        layout = cards.draw_layout(seed)
        assert np.all(np.abs(layout.positions[:, 0]) <= 0.24)
        assert np.all((layout.positions[:, 1] >= 0.53) & (layout.positions[:, 1] <= 0.85))
        gaps = np.linalg.norm(layout.positions[:, None] - layout.positions[None], axis=-1)
        assert np.all(gaps[~np.eye(4, dtype=bool)] > 0.156)
        assert np.all(np.abs(layout.angles) <= 0.35)


def test_draw_cards():
    slots = []
    for seed in range(300):
        target, names = cards.draw_task(seed, "ab", "cdef")
        assert target in ("a", "b") and len(set(names)) == 4
        assert {target} == set(names) & {"a", "b"}
        slots.append(names.index(target))
    assert np.all(np.bincount(slots, minlength=4) > 45)  # no slot is favoured
    assert cards.draw_task(0, "ab", "cdef", target="b")[0] == "b"
    with pytest.raises(UserError, match="2 distractor names"):
        cards.draw_task(0, "a", "abc")


def test_expert_always_succeeds(env):
    for seed in range(900, 915):
        info = play(env, seed)
        assert info["success"] and info["first_touch"]
        assert info["first_card_touched"] == env.target and info["steps"] < 80


def test_same_seed_same_episode(env):
    play(env, 7, until=20)
    first = env.observe()
    play(env, 7, until=20)
    second = env.observe()
    np.testing.assert_array_equal(first["proprio"]["hand"], second["proprio"]["hand"])
    np.testing.assert_array_equal(first["images"]["primary"], second["images"]["primary"])


def test_wrong_first_touch_ends_the_episode(env):
    play(env, 900)
    touched = env.target
    wrong = next(name for name in env.cards if name != touched)
    names = env.cards
    env.reset(900, wrong, names, render=False)
    goal = env.layout.positions[names.index(touched)]
    while not env.info["done"]:
        hand = env.hand
        env.step(cards._expert.expert_action(hand, goal), render=False)
    assert env.info["first_card_touched"] == touched and env.info["steps"] < 80
    assert not env.info["first_touch"] and not env.info["success"]


def test_nothing_touched_is_a_miss_after_150_steps(env):
    env.reset(901, "a", tuple("abcd"), render=False)
    while not env.info["done"]:
        env.step(np.zeros(3), render=False)
    expected = dict(first_card_touched=None, first_touch=False, success=False, done=True, steps=150)
    assert env.info == expected


def test_touch_is_inside_the_turned_square(env):
    env.reset(902, "a", tuple("abcd"), render=False)
    tips = env._tips
    centre, angle = env.layout.positions[2], env.layout.angles[2]
    along = np.array([np.cos(angle), np.sin(angle)])

    def touched(xy, z):
        env._data.site_xpos[tips] = (*xy, z)
        return env.touched()

    assert touched(centre, 0.084) == "c" and touched(centre, 0.086) is None
    assert touched(centre + 0.064 * along, 0.05) == "c"
    assert touched(centre + 0.066 * along, 0.05) != "c"


@pytest.mark.parametrize("view", ["primary", "secondary"])
def test_cards_are_drawn_where_the_projection_says(env, view):
    """Each card's four quarters have the colours of its picture, upright as the camera sees it."""
    env.reset(4, "a", tuple("abcd"))
    image = env.observe()["images"][view].astype(int)
    matrix = env.camera_matrix(view)
    for name, centre, angle in zip(env.cards, env.layout.positions, env.layout.angles):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        for right, up in ((-1, 1), (1, 1), (-1, -1), (1, -1)):
            # The primary picture's right is -x of the world, its up is -y.
            x, y = centre + turn @ (-0.025 * np.array([right, up]))
            u, v, w = matrix @ np.array([x, y, _scene.CARD_THICKNESS, 1.0])
            pixel = image[int(v / w * 96), int(u / w * 96)]
            color = (255, 255, 0) if (right, up) == (-1, 1) else COLORS[NAMES.index(name)]
            known = np.array([(255, 255, 0), *COLORS, (255, 255, 255)])
            nearest = known[np.argmin(np.abs(known - pixel).sum(1))]
            assert tuple(nearest) == color, (name, right, up, pixel)


def test_the_hand_is_where_the_projection_says(env):
    """Without the fingers the picture changes around the projected fingertip."""
    play(env, 900, until=10)
    before = env.observe()["images"]["primary"].astype(int)
    fingers = [
        geom
        for geom in range(env._model.ngeom)
        if env._model.geom(geom).name in ("rightpad_geom", "leftpad_geom")
    ]
    env._model.geom_rgba[fingers, 3] = 0.0
    after = env.observe()["images"]["primary"].astype(int)
    env._model.geom_rgba[fingers, 3] = 1.0
    rows, columns = np.nonzero(np.abs(before - after).sum(-1) > 30)
    u, v, w = env.camera_matrix("primary") @ np.append(env.hand, 1.0)
    assert np.hypot(columns - u / w * 96, rows - v / w * 96).min() < 2.0
    assert abs(np.median(columns) - u / w * 96) < 4.0


def test_a_card_is_twenty_pixels_wide(env):
    matrix = env.camera_matrix("primary")
    ends = np.array([[-0.065, 0.69, 0, 1], [0.065, 0.69, 0, 1]]) @ matrix.T
    width = np.abs(np.diff(ends[:, 0] / ends[:, 2]))[0] * 96
    assert 18 < width < 22


def test_two_environments_in_turn(env):
    """A second environment in the process does not disturb the first one's pictures."""
    first = env.reset(5, "a", tuple("abcd"))["images"]["primary"]
    other = cards.make(pictures=PICTURES, image_size=48)
    assert other.reset(5, "a", tuple("abcd"))["images"]["primary"].shape == (48, 48, 3)
    np.testing.assert_array_equal(env.observe()["images"]["primary"], first)
    other.close()
    np.testing.assert_array_equal(env.observe()["images"]["primary"], first)
    forgotten = cards.make(pictures=PICTURES, image_size=48)
    forgotten.reset(5, "a", tuple("abcd"))
    del forgotten
    np.testing.assert_array_equal(env.observe()["images"]["primary"], first)


def test_errors(env):
    with pytest.raises(UserError, match="unknown 'tertiary'"):
        cards.make(pictures=PICTURES, views=("tertiary",))
    with pytest.raises(UserError, match=r"expected uint8 \(64, 64, 4\)"):
        cards.make(pictures={"a": np.zeros((32, 32, 4), np.uint8)})
    with pytest.raises(UserError, match="unknown 'z'"):
        env.reset(0, "a", tuple("abcz"))
    with pytest.raises(UserError, match="4 different names"):
        env.reset(0, "f", tuple("abcd"))
    env.reset(0, "a", tuple("abcd"), render=False)
    with pytest.raises(UserError, match="expected 3 finite numbers"):
        env.step(np.zeros(4))
    with pytest.raises(UserError, match="finite"):
        env.step(np.array([0.0, np.nan, 0.0]))
