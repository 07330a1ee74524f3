"""Recorded actions in another action space of their body: values, statistics, fingerprints."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax import plugin
from vla_jax.data import action_space, robot, statistics, statistics_file
from vla_jax.data import episodes as episodes_lib
from vla_jax.data.sources import rlds
from vla_jax.embodiments import widowx
from vla_jax.types import ActionSpace, SourceContext

(RECORDED,) = widowx.EMBODIMENT.action_spaces
XYZ, RPY, GRIP = RECORDED.groups
SPACES = {
    name: ActionSpace(name=name, control_hz=5.0, groups=(xyz, turn, grip))
    for name, xyz, turn, grip in (
        (
            "pose_cm",
            dataclasses.replace(XYZ, representation="absolute", reference=None, scale=0.01),
            dataclasses.replace(RPY, size=4, rotation="quat_wxyz", representation="absolute"),
            dataclasses.replace(GRIP, gripper="1=closed,-1=open"),
        ),
        (
            "stepwise",
            dataclasses.replace(XYZ, reference="previous_command"),
            dataclasses.replace(
                RPY, size=6, rotation="6d", reference="previous_command", composition="right"
            ),
            GRIP,
        ),
        (
            "in_the_tool",
            dataclasses.replace(XYZ, frame="tool"),
            dataclasses.replace(RPY, rotation="rotvec", composition="right"),
            dataclasses.replace(GRIP, gripper="0.08=open,0=closed", unit="m"),
        ),
    )
}
BODY = dataclasses.replace(widowx.EMBODIMENT, action_spaces=(RECORDED, *SPACES.values()))
ALL = {space.name: space for space in BODY.action_spaces}


def table(lengths, seed=0):
    """Episodes of a hand that moves at random, commanded by deltas."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, length in enumerate(lengths):
        action = np.concatenate(
            [rng.uniform(-0.05, 0.05, (length, 6)), rng.integers(0, 2, (length, 1))], 1
        )
        episode = episodes_lib.Episode(
            id=f"e{i}",
            steps=np.arange(length),
            action=action.astype(np.float32),
            proprio={"ee": rng.uniform(-0.5, 0.5, (length, 7)).astype(np.float32)},
            language=["go"] * length,
            embodiment="widowx",
            action_space=RECORDED.name,
        )
        rows.append((episode, {}, 0, i, 0))
    return episodes_lib.collect("here", "data", rows, ())


def context(**changes):
    values = dict(
        name="arm", stream="robot", action_horizon=3, action_size=10, embodiments=(BODY,),
        action_spaces=BODY.action_spaces,
    )  # fmt: skip
    return SourceContext(**{**values, **changes})


def source(table_, **reading):
    made = robot.Reading(holdout=0, language="optional", **reading)
    return robot.RobotRows(context(), table_, lambda *_: [], made)


def turned(angles):
    """[N, 3, 3]: Rz(yaw) Ry(pitch) Rx(roll), written out."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(angles).T, np.sin(angles).T
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.moveaxis(np.asarray(rows), 2, 0)


def of_quaternion(q):
    """[N, 3, 3] of w, x, y, z: q v q*, written as 1 + 2 w [v] + 2 [v]²."""
    w, x, y, z = q.T
    zero = np.zeros_like(w)
    cross = np.moveaxis(np.asarray([[zero, -z, y], [z, zero, -x], [-y, x, zero]]), 2, 0)
    return np.eye(3) + 2 * w[:, None, None] * cross + 2 * cross @ cross


def test_bridge_against_plain_numpy(fixtures_dir):
    given = dict(
        path=str(fixtures_dir / "bridge_dataset"), standardizer=dict(type="oxe", row="bridge")
    )
    plain, pose, steps = (
        rlds.make(context(), **given, language="optional", convert=name)
        for name in (None, "pose_cm", "stepwise")
    )
    action, hand = plain.episodes.action.astype(float), plain.episodes.proprio["ee"].astype(float)
    place, turn = hand[:, :3] + action[:, :3], turned(action[:, 3:6]) @ turned(hand[:, 3:6])
    assert len(action) == 25 * 9 and np.abs(action[:, 3:6]).max() > 0.1

    got = pose.episodes.action
    np.testing.assert_allclose(got[:, :3], 100 * place, atol=1e-4)
    np.testing.assert_allclose(of_quaternion(got[:, 3:7]), turn, atol=1e-5)
    np.testing.assert_allclose(got[:, 7], 1 - 2 * action[:, 6], atol=1e-6)

    got = steps.episodes.action
    for first, last in itertools.pairwise(plain.episodes.start.tolist()):
        before = np.concatenate([hand[first : first + 1, :3], place[first : last - 1]])
        np.testing.assert_allclose(got[first:last, :3], place[first:last] - before, atol=1e-6)
        base = np.concatenate([turned(hand[first : first + 1, 3:6]), turn[first : last - 1]])
        change = np.swapaxes(base, 1, 2) @ turn[first:last]
        columns = np.concatenate([change[:, :, 0], change[:, :, 1]], 1)
        np.testing.assert_allclose(got[first:last, 3:9], columns, atol=1e-5)

    # What a sample says: its own action space, absolutes held past the end, deltas not.
    last = int(np.flatnonzero(pose._samples[:, 1] == pose._samples[:, 1].max())[0])
    rows = {s: s.sample(last, np.random.default_rng(0)) for s in (plain, pose)}
    kept = {s: r["targets"]["action"][0, :, : s.action_space.size] for s, r in rows.items()}
    assert (kept[pose][1:] == kept[pose][:1]).all() and not kept[plain][1:, :6].any()
    assert [int(r["action_space"]) for r in rows.values()] == [0, 1]
    assert rows[pose]["target_masks"]["action"].sum() == pose.action_space.size


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    names=st.permutations(list(ALL)),
    seed=st.integers(0, 2**16),
)
def test_there_and_back(lengths, names, seed):
    recorded = table(lengths, seed)
    now, space = recorded, RECORDED
    for name in [*names, RECORDED.name]:
        now, space = action_space.converted("here", now, BODY, space, name)
        assert (now.action_space, now.action.shape[1]) == (name, ALL[name].size)
    np.testing.assert_allclose(now.action, recorded.action, atol=2e-5)


@pytest.mark.parametrize("name", SPACES)
def test_blocks_are_episodes(name, monkeypatch):
    """However many are converted at a time, and with steps that no episode has."""
    recorded = table([3, 1, 5, 2, 4])
    empty = dataclasses.replace(recorded, start=np.array([0, 3, 4, 4, 11, 15]))
    for data in (recorded, empty):
        whole, _ = action_space.converted("here", data, BODY, RECORDED, name)
        monkeypatch.setattr(action_space, "BLOCK", 4)
        parts, _ = action_space.converted("here", data, BODY, RECORDED, name)
        np.testing.assert_array_equal(whole.action, parts.action)
        monkeypatch.undo()


def test_statistics_and_fingerprints_are_of_the_converted(tmp_path):
    recorded = table([4, 6])
    plain, same = source(recorded), source(recorded, convert=RECORDED.name)
    pose = source(recorded, convert="pose_cm", dataset_key="pose")
    assert plain.fingerprint == same.fingerprint != pose.fingerprint
    assert plain.data_fingerprint == same.data_fingerprint != pose.data_fingerprint
    scaled = dataclasses.replace(
        SPACES["pose_cm"], groups=(XYZ, *SPACES["pose_cm"].groups[1:]), name="pose_cm"
    )
    body = dataclasses.replace(BODY, action_spaces=(RECORDED, scaled))
    other = robot.RobotRows(
        context(embodiments=(body,), action_spaces=body.action_spaces), recorded,
        lambda *_: [], pose.reading,
    )  # fmt: skip
    assert other.data_fingerprint != pose.data_fingerprint, "by the same name, meant otherwise"

    tables = statistics.gather([plain, pose])
    found = statistics.measure(tables)
    action = pose.episodes.action
    counts = np.concatenate([np.minimum(np.arange(n) + 1, 3) for n in (4, 6)])
    mean = (counts @ action.astype(float)) / counts.sum()
    np.testing.assert_allclose(found["pose"]["action"].mean, mean, rtol=1e-12)
    assert found["pose"]["action"].min == tuple(action.min(axis=0).astype(float))
    path = tmp_path / "stats.json"
    statistics_file.write(path, tables, found)
    assert statistics_file.fitting([path], tables) == found
    moved = source(recorded, convert="in_the_tool", dataset_key="data")
    with pytest.raises(plugin.UserError, match="measured on data with fingerprint"):
        statistics_file.fitting([path], statistics.gather([moved]))
    with pytest.raises(plugin.UserError, match="'ee_delta_gripper' and 'in_the_tool'; give each"):
        statistics.gather([plain, moved])


def test_idle_steps_are_those_that_were_recorded_idle():
    recorded = table([6, 6])
    recorded.action[[2, 3, 8], :6] = 0
    recorded.action[:, 6] = 1
    whole, _ = action_space.converted("here", recorded, BODY, RECORDED, "stepwise")
    some = source(recorded, convert="stepwise", noop_threshold=1e-4)
    assert some.idle == 3
    kept = np.setdiff1d(np.arange(12), [2, 3, 8])
    np.testing.assert_array_equal(some.episodes.action, whole.action[kept])


def test_mistakes():
    recorded = table([3, 4, 2])
    with pytest.raises(
        plugin.UserError, match="convert: unknown 'pose_mm', did you mean 'pose_cm'"
    ):
        source(recorded, convert="pose_mm")
    blind = dataclasses.replace(recorded, proprio={})
    with pytest.raises(plugin.UserError, match=r"convert='pose_cm': episode e0: .*poses of widowx"):
        source(blind, convert="pose_cm")
    quaternions, _ = action_space.converted("here", recorded, BODY, RECORDED, "pose_cm")
    quaternions.action[4, 3:7] = 0
    with pytest.raises(plugin.UserError, match="='stepwise': episode e1: .*length zero"):
        source(quaternions, convert="stepwise")
