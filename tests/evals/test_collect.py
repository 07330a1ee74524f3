import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.data.sources import lerobot as lerobot_source
from vla_jax.data.sources import rlds as rlds_source
from vla_jax.envs import cards
from vla_jax.evals import collect
from vla_jax.plugin import UserError
from vla_jax.types import SourceContext

pytestmark = pytest.mark.sim

NAMES = tuple("abcdef")


def pictures():
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, (64, 64, 4), dtype=np.uint8) for name in NAMES}


def chunks(tmp_path, workers):
    """The spooled bytes of 4 episodes in two chunks."""
    folder = tmp_path / str(workers)
    folder.mkdir()
    recipe = collect.Recipe(NAMES, NAMES, seed=3, stride=16, noise=0.5, env="cards")
    arguments = [(recipe, str(folder), index, range(index * 2, index * 2 + 2)) for index in (0, 1)]
    scene = ("cards", pictures(), "sawyer_cards", 32)
    counts = list(collect._run(arguments, workers, scene))
    assert sum(each["episodes"] for each in counts) == 4
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def test_episodes_do_not_depend_on_the_workers(tmp_path):
    assert chunks(tmp_path, 0) == chunks(tmp_path, 1)


@pytest.mark.slow
def test_collected_episodes_read_back(tmp_path):
    out = tmp_path / "two_views"
    done = collect.collect(
        str(out), names="ab", others="cdef", pictures=pictures(), episodes=4, seed=1, workers=0,
        embodiment="sawyer_cards_xyz", image_size=48, progress=False,
    )  # fmt: skip
    assert done["episodes"] == 4 and done["frames"] < done["steps"] and not done["redrawn"]
    body = plugin.module("embodiments", "sawyer_cards_xyz").EMBODIMENT
    context = SourceContext(
        name="cards",
        stream="robot",
        image_sizes={"primary": (48, 48), "secondary": (48, 48)},
        action_size=3,
        embodiments=(body,),
        action_spaces=body.action_spaces,
        train=True,
    )
    source = rlds_source.make(context, path=str(out), holdout=0.0, language="optional")
    assert len(source) == done["frames"] // 2  # samples start where there are pictures
    episodes = source.episodes
    assert episodes.ids == tuple(f"cards-1-{i:06d}" for i in range(4))
    assert set(episodes.language) <= {"touch the a", "touch the b"}
    assert np.all(np.abs(episodes.action) <= 1.0)
    env = cards.make(pictures=pictures(), embodiment="sawyer_cards_xyz", image_size=48)
    scene = collect.SCENES * 2  # episode 0 of seed 1
    target, names = cards.draw_task(scene, "ab", "cdef")
    env.reset(scene, target, names, render=False)
    np.testing.assert_array_equal(episodes.proprio["hand"][0], env.hand.astype(np.float32))
    np.testing.assert_array_equal(episodes.cameras["primary"][0], env.camera_matrix("primary"))
    last = episodes.proprio["hand"][episodes.start[1] - 1]  # the clean episode ends on the card
    assert np.linalg.norm(last[:2] - env.goal) < 0.02 and last[2] < cards.TOUCH_HEIGHT
    env.close()


def test_every_second_episode_is_shaken_and_labels_stay_clean():
    env = cards.make(pictures=pictures(), image_size=32)
    recipe = collect.Recipe(NAMES, NAMES, seed=0, stride=1000, noise=0.5, env="cards")
    made = [collect._episode(env, recipe, i)[0] for i in range(4)]
    assert [e["metadata"]["noise"] > 0 for e in made] == [False, True, False, True]
    for episode in made:
        hands, labels = episode["proprio"]["hand"], episode["action"]
        assert sum(picture is not None for picture in episode["images"]["primary"]) == 1
        scene, target = episode["metadata"]["seed"], episode["metadata"]["target"]
        env.reset(scene, target, episode["metadata"]["cards"].split(","), render=False)
        expected = [cards._expert.expert_action(hand, env.goal) for hand in hands]
        np.testing.assert_allclose(labels[:, :3], expected, atol=1e-4)
        np.testing.assert_array_equal(labels[:, 3], 1.0)
    env.close()


def test_bad_arguments(tmp_path):
    arguments = dict(names="abc", pictures=pictures(), progress=False, workers=0)
    cases = {
        "no pictures of \\['z'\\]": dict(others="abz"),
        "episodes=0": dict(episodes=0),
        "2 distractor names": dict(episodes=1),
    }
    for message, changes in cases.items():
        with pytest.raises(UserError, match=message):
            collect.collect(str(tmp_path / "out"), **{**arguments, **changes})
        assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_collected_as_lerobot(tmp_path):
    out = tmp_path / "videos"
    done = collect.collect(
        str(out), names="ab", others="cdef", pictures=pictures(), episodes=2, seed=1, workers=0,
        image_size=48, format="lerobot", progress=False,
    )  # fmt: skip
    assert done["episodes"] == 2 and done["frames"] == done["steps"]
    table, read = lerobot_source.recorded(str(out))
    assert table.ids == tuple(f"cards-1-{i:06d}" for i in range(2))
    assert len(table.action) == done["steps"] and np.isfinite(table.cameras["primary"]).all()
    (picture,) = read("primary", 1, [len(table.action) - 1])
    assert picture.shape == (48, 48, 3) and picture.std() > 10
