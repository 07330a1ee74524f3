"""Checks of `vla data doctor`: silent on healthy data; each finds the defect that is planted."""

import dataclasses

import numpy as np
import pytest

from tests.data import recorded
from vla_jax import plugin
from vla_jax.data import doctor


def found(data, **settings):
    """Findings by check: {check: [(severity, message)]}."""
    report = doctor.examine(data.case(**settings))
    by_check = {}
    for finding in report["findings"]:
        remedy = finding["remedy"]  # says what to do: a sentence of its own
        assert remedy.endswith(".") and len(remedy.split()) >= 4 and remedy[0].isupper(), finding
        assert remedy not in finding["message"] and finding["severity"] in doctor.SEVERITIES
        by_check.setdefault(finding["check"], []).append((finding["severity"], finding["message"]))
    return by_check


def only(data, check, severity, *words, **settings):
    """The one finding, of this check and severity, with these words in it."""
    by_check = found(data, **settings)
    assert list(by_check) == [check], by_check
    ((got, message),) = by_check[check]
    assert got == severity and all(word in message for word in words), (got, message)


def with_group(name, **changes):
    """The body with another description of one group of its action."""
    space = recorded.SPACE
    groups = tuple(dataclasses.replace(g, **changes) if g.name == name else g for g in space.groups)
    space = dataclasses.replace(space, groups=groups)
    return dataclasses.replace(recorded.BODY, action_spaces=(space,))


@pytest.mark.parametrize("seed", range(3))
def test_healthy_data_have_no_finding(seed):
    data = recorded.healthy(seed=seed)
    report = doctor.examine(data.case(clip=5.0, image_sizes={"primary": (16, 16)}))
    assert report["findings"] == []
    assert set(report["numbers"]) == set(plugin.names("data.checks"))
    fit = report["numbers"]["reference"]["xyz"]
    assert fit["verdict"] == "commanded_delta" and fit["lag"] == 1 and fit["reading"] == "ee[0:3]"
    assert fit["gain"] == pytest.approx(0.8, abs=0.05)
    assert report["numbers"]["reference"]["rpy"]["reading"] == "ee[3:6]"
    assert report["numbers"]["time"]["timestamps"]["hz"] == pytest.approx(10, rel=1e-3)
    assert report["numbers"]["gripper"]["gripper"]["reading"] == "ee.6"


def test_what_the_actions_are_measured_from():
    data = recorded.healthy()
    data.action[:, :-1, :3] = np.diff(data.ee[..., :3], axis=1) / 0.01
    only(data, "reference", "warning", "xyz", "next-state deltas", "reached_delta 1.00")
    assert "reference" not in found(
        dataclasses.replace(data, body=with_group("xyz", label="reached"))
    )

    data = recorded.healthy()
    data.action[..., :3] = (data.ee[..., :3] + data.action[..., :3] * 0.01) / 0.01
    assert ("error", True) in [
        (severity, "absolute targets" in message and "says delta" in message)
        for severity, message in found(data)["reference"]
    ]
    absolute = with_group("xyz", representation="absolute", reference=None, limits=None)
    assert "reference" not in found(dataclasses.replace(data, body=absolute))

    said = dataclasses.replace(recorded.healthy(), body=absolute)
    only(said, "reference", "error", "commanded deltas", "says absolute")


def test_reached_is_not_commanded():
    data = dataclasses.replace(recorded.healthy(), body=with_group("rpy", label="reached"))
    only(data, "reference", "warning", "rpy", "says reached")


def test_a_wrong_unit_and_a_flipped_axis():
    data = dataclasses.replace(recorded.healthy(), body=with_group("xyz", scale=1.0))
    only(data, "reference", "error", "times as far", "0.00")
    data = recorded.healthy()
    data.action[..., 1] *= -1
    only(data, "reference", "error", "dims [1] move against")


def test_what_a_data_set_does_not_state_is_judged_more_mildly():
    unstated = dict(unit="unstated", frame="unstated", scale=1.0)
    data = dataclasses.replace(recorded.healthy(), body=with_group("xyz", **unstated))
    only(data, "reference", "note", "0.0079", "times as far")
    data.action[..., 1] *= -1
    only(data, "reference", "warning", "dims [1] move against")
    tool = dataclasses.replace(recorded.healthy(), body=with_group("xyz", frame="tool"))
    numbers = doctor.examine(tool.case())["numbers"]["reference"]["xyz"]
    assert numbers == {"not_judged": "deltas in the frame 'tool' are not compared"}


def test_actions_of_another_episode():
    data = recorded.healthy()
    data.action[..., :6] = data.action[::-1, :, :6]
    messages = found(data)["reference"]
    assert len(messages) == 2 and all("no measured motion" in m for _, m in messages)


def test_rotations_over_the_turn_of_the_circle():
    data = recorded.healthy()
    data.ee[..., 3:6] = (data.ee[..., 3:6] + 2 * np.pi) % (2 * np.pi) - np.pi
    data.ee[..., 3] = (data.ee[..., 3] + 2 * np.pi) % (2 * np.pi) - np.pi
    assert doctor.examine(data.case())["numbers"]["reference"]["rpy"]["commanded_delta"] > 0.8


def test_gripper():
    data = recorded.healthy()
    data.action[..., 6] = 1 - data.action[..., 6]
    only(data, "gripper", "warning", "only 0% of the episodes begin", "falls when")
    data = recorded.healthy()
    data.ee[..., 6] *= -1
    only(data, "gripper", "note", "ee.6 falls")
    data = recorded.healthy()
    data.action[..., 6] *= 255
    only(data, "gripper", "error", "0 to 255")


def test_zero_first_actions():
    data = recorded.healthy()
    data.action[:6, 0, :6] = 1e-7
    only(data, "actions", "warning", "the first action is zero in 75%")
    only(dataclasses.replace(data, kept=slice(1, None)), "actions", "note", "begins at step 1")


def test_dead_and_idle_dims_and_limits():
    data = recorded.healthy()
    data.action[..., 4] = 0.25
    messages = found(data)["actions"]
    assert messages == [("warning", "action: 1 of 7 dims never change: rpy.1 is always 0.25")]
    data = recorded.healthy()
    data.ee[..., 2] = 0
    assert ("warning", "proprio/ee: 1 of 7 dims never change: ee.2 is always 0") in found(data)[
        "actions"
    ]
    data = recorded.healthy()
    data.action[:, 4:18, :6] = 0
    assert any("of the steps ask for nothing" in m for _, m in found(data)["actions"])
    data = recorded.healthy()
    data.action[2, 3:6, 0] = 6.0
    assert any(
        s == "warning" and "outside its limits -5 to 5" in m for s, m in found(data)["actions"]
    )


def test_statistics():
    data = recorded.healthy()
    data.action[1, 7, 5] = 5.0
    assert any("rpy.2: outliers" in m for _, m in found(data)["statistics"])
    data = recorded.healthy()
    data.action[..., 3] = 0
    data.action[1, 7, 3] = 0.04
    assert any("rpy.0: 98% of the values are 0" in m for _, m in found(data)["statistics"])
    clipped = found(recorded.healthy(), clip=0.5)
    assert list(clipped) == ["statistics"] and len(clipped["statistics"]) == 2
    assert all(s == "error" and "clip=0.5 changes" in m for s, m in clipped["statistics"])


def test_statistics_of_other_data():
    data, other = recorded.healthy(), recorded.healthy()
    other.action[..., 1] = 3 * other.action[..., 1] + 0.5
    foreign = other.case().own
    only(data, "statistics", "warning", "1 of 7 dims", "xyz.1", normalizer=foreign)
    other.ee[..., 0] -= 1.0
    severities = [s for s, _ in found(data, normalizer=other.case().own)["statistics"]]
    assert severities == ["error", "warning"]
    assert found(data, normalizer=recorded.healthy(seed=5).case().own) == {}
    # A dim that never moved in the other data cannot scale one that does.
    other = recorded.healthy()
    other.action[..., 4] = 0.0
    only(data, "statistics", "error", "rpy.1", normalizer=other.case().own)


def test_masks():
    only(recorded.healthy(), "masks", "warning", "chunks of 30", chunk=30)
    only(recorded.healthy(), "masks", "error", "100% of the episodes are shorter", chunk=400)
    # A half of a chunk of 3 at both last steps of 4: 1 - (3 + 3 + 2 + 1) / 12.
    data = recorded.healthy(steps=4)
    report = doctor.examine(data.case(chunk=3))
    assert report["numbers"]["masks"]["masked_share"] == pytest.approx(0.25)


def test_language():
    data = recorded.healthy()
    data.language[2] = ""
    only(data, "language", "error", "12.5% of the steps, in 1 of 8", "e2")
    only(data, "language", "warning", "language='optional'", language="optional")
    data = recorded.healthy()
    data.language[0], data.language[1] = "b'put the cup'", "None"
    only(data, "language", "warning", "2 of 5 instructions", "25% of the steps")


def test_time():
    data = recorded.healthy()
    data.time[3, 20:] += 0.7
    only(data, "time", "warning", "1 gaps", "in 1 of 8 episodes", "0.8 s")
    data = recorded.healthy()
    data.time[3, 20] = data.time[3, 18]
    assert found(data)["time"][0][0] == "error"
    data = recorded.healthy()
    data.frame[5, 9:] += 2
    only(data, "time", "warning", "frame_index: 1 numbers")
    data = recorded.healthy()
    data.time *= 500  # ms, and half the rate
    only(data, "time", "warning", "recorded at 20 Hz", "says 10 Hz")
    kept = dataclasses.replace(recorded.healthy(), kept=np.r_[0:20, 25:40])
    only(kept, "time", "note", "followed by another")
    half = dataclasses.replace(recorded.healthy(steps=80), kept=slice(None, None, 2))
    only(half, "time", "warning", "recorded at 10 Hz and taken at 5 Hz")


def test_cameras():
    data = recorded.healthy()
    data.pictures["wrist"][:] = 0
    only(data, "cameras", "error", "view wrist", "100% of 40", "black")
    only(data, "cameras", "error", "wrist (cam_hand)", cameras={"wrist": "cam_hand"})
    assert found(data, image_sizes={"primary": (16, 16)}) == {}, "the run does not read it"
    data = recorded.healthy()
    data.pictures["primary"][1] = 3
    only(data, "cameras", "warning", "12.5% of 40")
    data = recorded.healthy()
    data.pictures["primary"][:2] = data.pictures["primary"][:2, :1]
    only(data, "cameras", "warning", "never changes in 25% of 8")
    data = recorded.healthy()
    data.pictures["wrist"] = data.pictures["primary"].copy()
    only(data, "cameras", "warning", "views primary and wrist show the same picture")


def test_picture_sizes():
    data = recorded.healthy()
    sizes = {"primary": (16, 32)}
    only(data, "cameras", "warning", "squeezed by 2.00", image_sizes=sizes)
    only(data, "cameras", "warning", "enlarged 4.00", image_sizes={"primary": (64, 64)})


def test_flags_that_lie():
    data = recorded.healthy()
    data.flags["has_primary"] = np.array([True] * 8)
    assert found(data) == {}
    data.flags["has_primary"][:2] = False
    only(data, "cameras", "warning", "has_primary", "25%")


def test_a_broken_picture_is_a_finding():
    data = recorded.healthy()
    case = data.case()
    case.source.read = lambda view, episode, rows: [b"no picture"] * len(rows)
    report = doctor.examine(case)
    assert {f["check"] for f in report["findings"] if f["severity"] == "error"} == {"cameras"}


@pytest.mark.parametrize("many", [1, 8])
def test_broken_episodes_are_left_out_and_counted_where_the_run_does(many):
    data = recorded.healthy()
    data.kept = slice(1, None)  # then the first recorded actions are looked at, too
    data.flags["has_primary"] = np.array([True] * 8)
    read = data.episode

    def hindered(index, *arguments):
        if index < many:
            raise plugin.UserError(f"record {index}: cut off")
        return read(index, *arguments)

    data.episode = hindered
    with pytest.raises(plugin.UserError, match="record 0: cut off"):
        doctor.examine(data.case())
    told = f"{many} of 8 episodes looked at cannot be read and are left out here as in the run"
    by_check = found(data, bad_samples="skip")
    assert sorted(by_check) == ["actions", "cameras", "time"]
    for ((severity, message),) in by_check.values():
        assert told in message and message.endswith("the first: record 0: cut off")
        assert severity == ("error" if many == 8 else "warning")


def test_pictures_that_cannot_be_read_are_left_out_and_counted_where_the_run_does():
    data = recorded.healthy()

    def case(bad):
        made = data.case(bad_samples=bad)
        read = made.source.read

        def hindered(view, episode, rows):
            if (view, episode) == ("wrist", 2):
                raise plugin.UserError("cut off")
            return read(view, episode, rows)

        made.source.read = hindered
        return made

    with pytest.raises(plugin.UserError, match="cut off"):
        doctor.examine(case("error"))
    findings = doctor.examine(case("skip"))["findings"]
    assert [(f["severity"], f["check"]) for f in findings] == [
        ("warning", "cameras"),
        ("warning", "duplicates"),
    ]
    assert all("1 of 8 episodes looked at" in f["message"] for f in findings)
    assert all(f["message"].endswith("the first: episode e2: cut off") for f in findings)


def test_duplicates():
    data = recorded.healthy()
    for values in (data.action, data.ee, data.pictures["primary"], data.pictures["wrist"]):
        values[5] = values[2]
    only(data, "duplicates", "warning", "1 of 8 episodes repeat", "['e2', 'e5']")
    data.pictures["wrist"][5] = data.pictures["wrist"][6]
    assert found(data) == {}, "the same numbers before another scene"
    val = {"val": recorded.healthy().table()}
    only(recorded.healthy(), "duplicates", "warning", "'val': 8 of 8", others=val)
    assert found(recorded.healthy(), others={"val": recorded.healthy(seed=9).table()}) == {}


def test_what_a_filter_leaves_out_is_not_examined():
    data = recorded.healthy()
    data.language[2] = ""
    data.pictures["wrist"][2] = 0
    data.time[2, 20:] += 0.7  # of the recording: it is said all the same
    case = data.case(filter="labelled")
    assert len(case.table) == 7 and "e2" not in case.table.ids
    assert (case.picture("primary", 2, 80) == data.pictures["primary"][3, 0]).all()
    only(data, "time", "warning", "1 gaps", filter="labelled")
    idle = recorded.healthy()
    idle.action[:, 4:18, :6] = 0
    settings = dict(noop_threshold=1e-4, filter="length > 5")
    assert [c for c in found(idle, **settings)] == ["time"], "steps are left out, and that is said"
