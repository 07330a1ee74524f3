"""Closed-loop episodes: the expert over processes, a policy that moves at random, failures."""

import dataclasses
import json
import types

import numpy as np
import pytest

pytest.importorskip("mujoco")

from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.data.sources import _emoji, lerobot
from vla_jax.envs import cards
from vla_jax.evals import _worker, rollouts

pytestmark = pytest.mark.sim


def parse(arms, **settings):
    tree = dict(split=0, sets=rollouts.SETS, arms=arms, seed_base=rollouts.DEV_SEEDS, **settings)
    return config_lib.parse(rollouts.EvalConfig, tree)


def names():
    return _emoji.split_names(_emoji.card_names(rollouts.ASSETS), 0)


class Still:
    """Stands in for `policy.Policy`: random chunks, and an answer that points at a fixed place."""

    rows = 1
    stream = types.SimpleNamespace(
        action_horizon=8, window=1, image_sizes={"primary": (96, 96), "wrist": (96, 96)}
    )

    def __init__(self, *_):
        self.rng, self.pictures, self.asked, self.masked = np.random.default_rng(0), 0, [], []

    def reset(self, row=None, *, queries=0):
        pass

    def observe(self, row, observation):
        assert observation["images"]["primary"].shape == (96, 96, 3)
        self.pictures += 1

    def act(self, instructions, *, masked_views=()):
        self.asked += instructions
        self.masked.append(masked_views)
        probs = np.zeros((1, 8, 8), np.float32)
        probs[0, 3, 4] = 1
        answers = {"point": {"point": np.full((1, 2), 0.5, np.float32), "probs": probs}}
        return self.rng.uniform(-1, 1, (1, 8, 4)).astype(np.float32), answers


@pytest.fixture(scope="module")
def player():
    """A player in this process whose checkpoints are Still."""
    arms = parse(dict(still=dict(checkpoint=".", sets=dict(A=1), masked_views=("primary",)))).arms
    scene = _worker.Scene(
        arms=arms,
        pictures=rollouts.card_pictures(rollouts.ASSETS, "google"),
        names_a=names().a,
        names_b=names().b,
        env=rollouts.CARDS,
        view="primary",
        execute_steps=4,
    )
    return _worker.Player(scene, load=Still)


@pytest.fixture
def policy(player):
    """A fresh Still in the player's hands, whatever ran before: its random numbers begin anew."""
    player._policies[(".", "robot")] = still = Still()
    return still


def job(kind, seed):
    target, laid = cards.draw_task(seed, names().a, names().a)
    return _worker.Job(kind, "A", "still", seed, target, laid)


def test_expert_over_two_processes(tmp_path):
    config = parse(
        dict(
            expert=dict(policy="expert", sets=dict(B=1, A=3)),
            random=dict(policy="random", sets=dict(A=1)),
        ),
        record=2,
        record_arm="expert",
        record_set="A",
    )
    summary = rollouts.evaluate(config, tmp_path / "run", progress=False)
    assert summary["sets"]["A"]["expert"] == {"successes": 3, "first_touch": 3, "episodes": 3}
    assert summary["episodes"] == 5
    records = [
        json.loads(x) for x in (tmp_path / "run" / "episodes.jsonl").read_text().splitlines()
    ]
    assert [(r["arm"], r["set"]) for r in records] == [
        *(("expert", "B"), ("expert", "A"), ("expert", "A"), ("expert", "A")),
        ("random", "A"),
    ]
    assert set(records[0]) == {
        *("set", "arm", "seed", "target", "cards", "first_card_touched", "first_touch"),
        *("success", "steps"),
    }
    # The same seed is the same scene in every arm.
    scene = ("seed", "target", "cards")
    assert [records[1][key] for key in scene] == [records[4][key] for key in scene]
    assert records[0]["target"] in names().b and records[1]["target"] in names().a
    with np.load(tmp_path / "run" / "rollouts.npz") as films:
        about = json.loads(str(films["about"]))
        assert films["0/frames"].shape[1:] == (288, 288, 3) and len(about) == 2
        assert len(films["0/frames"]) == len(films["0/probs"]) == len(films["0/points"])
    assert about[0] == records[1]  # run again, the episode is the same
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        *("episodes.jsonl", "eval.json", "pointing.json", "rollouts.npz")
    ]


def test_episodes_are_kept_as_a_data_set(tmp_path):
    arms = dict(expert=dict(policy="expert", sets=dict(A=2)))
    rollouts.evaluate(parse(arms, workers=1, keep="lerobot"), tmp_path / "out", progress=False)
    lines = (tmp_path / "out/episodes.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    table, read = lerobot.recorded(str(tmp_path / "out/episodes"))
    assert table.lengths.tolist() == [record["steps"] for record in records]
    assert table.ids == tuple(f"expert-A-{record['seed']}" for record in records)
    assert set(table.language) == {f"touch the {record['target']}" for record in records}
    assert np.abs(table.action).max() <= 1 and len(np.unique(table.proprio["hand"], axis=0)) > 30
    assert read("primary", 1, [int(table.start[1])])[0].shape == (96, 96, 3)
    with pytest.raises(plugin.UserError, match="exists and is not empty"):
        rollouts.evaluate(parse(arms, workers=1, keep="lerobot"), tmp_path / "out")


def test_a_random_policy_is_queried_every_fourth_tick(player, policy):
    answer = player.do(job("act", 3))
    record = answer["record"]
    assert not record["success"] and record["steps"] >= 1
    assert policy.pictures == -(-record["steps"] // 4)  # rendered for queries only
    assert set(policy.asked) == {f"touch the {record['target']}"}
    assert set(policy.masked) == {("primary",)}


def test_a_policy_whose_cameras_are_masked_costs_no_pictures(player, policy, monkeypatch):
    seen = []
    monkeypatch.setattr(policy.stream, "image_sizes", {"primary": (96, 96)})
    monkeypatch.setattr(policy, "observe", lambda row, observation: seen.append(observation))
    monkeypatch.setattr(player.env, "_render", lambda view: pytest.fail("a picture was rendered"))
    assert player.do(job("act", 3))["record"]["steps"] >= 1
    assert {len(each["proprio"]["hand"]) for each in seen} == {3}
    assert all(each["images"] == {"primary": None} for each in seen)


def test_pointing_is_judged_by_the_nearest_card(player):
    wanted = job("act", 5)
    ((kind, arm, name, right, n),) = player.do(wanted)["pointing"]
    assert (kind, arm, name, n) == ("scenes", "still", "A", 1)
    positions = player.env.layout.positions
    centres = _worker.project(player.env.camera_matrix("primary"), positions)
    nearest = wanted.cards[int(np.argmin(np.linalg.norm(centres - 0.5, axis=1)))]
    assert right == (nearest == wanted.target)
    for name, centre in zip(wanted.cards, centres):
        assert player.nearest(centre) == name


def test_a_film_shows_the_episode(player):
    player._policies.clear()
    first = player.do(job("act", 7))["record"]
    player._policies.clear()  # Still's random numbers begin anew
    filmed = player.do(job("film", 7))
    assert filmed["record"] == first
    assert filmed["film"]["probs"].shape[1:] == (8, 8)
    assert np.all(filmed["film"]["points"] == 0.5)
    # The picture for people is the policy's own picture, only larger.
    small = player.env.observe()["images"]["primary"].astype(float)
    large = filmed["film"]["frames"][-1].reshape(96, 3, 96, 3, 3).mean((1, 3))
    assert np.abs(small - large).mean() < 4


def test_shown_episodes_are_half_failures_where_there_are_some():
    config = parse(
        dict(one=dict(policy="random", sets=dict(A=9))), record=6, record_arm="one", record_set="A"
    )
    rows = [
        dict(arm="one", set="A", seed=i, target="ab"[i % 2], cards=["a"], success=i > 3)
        for i in range(9)
    ]
    assert [job.seed for job in rollouts.choose(rows, config)] == [4, 5, 6, 0, 1, 2]
    good = [row | {"success": True} for row in rows]
    assert [job.seed for job in rollouts.choose(good, config)] == [0, 1, 2, 3, 4, 5]
    assert all(job.kind == "film" for job in rollouts.choose(good, config))


@pytest.mark.parametrize(
    "arms, settings, message",
    [
        (dict(x=dict(sets=dict(A=1))), {}, "either checkpoint"),
        (dict(x=dict(policy="expert", sets=dict(Q=1))), {}, "unknown 'Q'"),
        (dict(x=dict(policy="expert", sets=dict(A=0))), {}, "expected 1 to"),
        (dict(x=dict(checkpoint="/nowhere", sets=dict(A=1))), {}, "no folder /nowhere"),
        (dict(x=dict(policy="expert", sets=dict(A=1))), dict(record=1), "unknown 'cofinetuned'"),
        (dict(x=dict(policy="expert", sets=dict(A=1))), dict(workers=0), "1 or more"),
        (dict(x=dict(policy="expert", sets=dict(A=1))), dict(archive="picasso"), "picasso"),
    ],
)
def test_bad_configs_are_refused(arms, settings, message, tmp_path):
    with pytest.raises(plugin.UserError, match=message):
        rollouts.evaluate(parse(arms, **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_seeds_never_meet_the_demonstrations():
    config = parse(dict(x=dict(policy="expert", sets=dict(A=1))))
    for base in (rollouts.DEV_SEEDS, rollouts.REPORT_SEEDS):
        object.__setattr__(config, "seed_base", base)
        rollouts.check(config)
        assert max(rollouts.first_seeds(config).values()) < rollouts.SEEDS_END
    object.__setattr__(config, "seed_base", rollouts.SEEDS_END)
    with pytest.raises(plugin.UserError, match="belong to demonstrations"):
        rollouts.check(config)


def test_a_worker_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "empty").mkdir()  # a folder without a checkpoint
    config = parse(dict(x=dict(checkpoint=str(tmp_path / "empty"), sets=dict(A=2))), workers=1)
    with pytest.raises(plugin.UserError, match="empty"):
        rollouts.evaluate(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_an_environment_from_outside_the_repository(tmp_path, monkeypatch, player):
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "world.py").write_text(
        "from vla_jax.envs import cards\n"
        "from vla_jax.envs.cards import draw_task\n"
        "def make(context, *, gravity=1.0, **arguments):\n"
        "    env = cards.make(context, **arguments)\n"
        "    env.gravity = gravity\n"
        "    return env\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    env = {**rollouts.CARDS, "type": "my_lab.world", "gravity": 0.5}
    theirs = _worker.Player(dataclasses.replace(player.scene, env=env), load=Still)
    assert theirs.env.gravity == 0.5
    assert theirs.do(job("act", 5))["record"]["steps"] > 0
    theirs.close()


def test_an_unknown_environment_is_refused():
    arms = dict(x=dict(policy="expert", sets=dict(A=1)))
    with pytest.raises(plugin.UserError, match="unknown 'crads', did you mean 'cards'"):
        rollouts.check(parse(arms, env={"type": "crads"}))
    with pytest.raises(plugin.UserError, match="eval.env: got .*, expected its type"):
        rollouts.check(parse(arms, env={"image_size": 96}))
