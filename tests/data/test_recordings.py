"""The one door to recorded episodes: formats are found by asking, and answer alike."""

import pathlib

import numpy as np
import pytest

from tests.data.conftest import episode, write_folder
from vla_jax import plugin
from vla_jax.data import recordings

LEROBOT = dict(
    type="rows",
    row=dict(
        embodiment="widowx",
        action_space="ee_delta_gripper",
        views={"primary": "observation.images.top", "wrist": "observation.images.wrist"},
        action="action",
        proprio={"ee": "observation.state"},
        language="task",
    ),
)
SETS = {  # folder below the fixtures -> (source, standardizer, episodes, steps)
    "bridge_dataset": ("rlds", dict(type="oxe", row="bridge"), 25, 225),
    "lerobot/lerobot_v21_sample": ("lerobot", LEROBOT, 3, 48),
    "lerobot/lerobot_v3_sample": ("lerobot", LEROBOT, 3, 48),
}


@pytest.fixture(params=SETS)
def recorded(request, fixtures_dir):
    """(folder, source, standardizer, episodes, steps) of each fixture."""
    return fixtures_dir / request.param, *SETS[request.param]


def test_every_format_is_found_and_read(recorded):
    folder, source, standardizer, episodes, steps = recorded
    assert recordings.source_type(folder) == source
    table, read = recordings.recorded(folder, standardizer=standardizer)
    assert (len(table), len(table.step)) == (episodes, steps)
    assert len(read("primary", 1, [int(table.start[1])])[0]) > 0


def test_every_raw_answers_alike(recorded):
    raw = recordings.raw(recorded[0])
    assert len(raw) == raw.splits["train"] == len(set(raw.ids())) == recorded[3]
    whole = raw.episode(1)
    assert set(whole) == set(raw.fields)
    length = recordings.length(raw, 1)
    for name in recordings.step_fields(raw):
        assert len(whole[name]) == length, name
    cameras = recordings.pictures(raw)
    for name in cameras:
        assert whole[name].dtype == np.uint8 and whole[name].shape == (length, 64, 64, 3)
    for name in recordings.texts(raw):
        assert whole[name].dtype.kind == "U"
    numbers = recordings.numbers(raw)
    assert numbers and not set(numbers) & set(cameras)
    some = raw.episode(1, [*numbers, *cameras], [0, 3])
    assert set(some) == {*numbers, *cameras}
    for name in numbers:
        np.testing.assert_array_equal(some[name], whole[name])
    for name in cameras:
        np.testing.assert_array_equal(some[name], whole[name][[0, 3]], err_msg=name)
    with pytest.raises(plugin.UserError, match="field"):
        raw.episode(1, ["no_such_field"])
    with pytest.raises(plugin.UserError, match="trian"):
        recordings.raw(recorded[0], "trian")


def test_each_source_of_episodes_can_be_asked():
    found = {
        name
        for name in plugin.names("data.sources")
        if hasattr(plugin.module("data.sources", name), "recorded")
    }
    assert found >= {"rlds", "lerobot"}
    for name in found:
        module = plugin.module("data.sources", name)
        assert module.is_at("/no/such/folder") is False and callable(module.raw)


def test_what_nobody_reads_is_an_error(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("x")
    with pytest.raises(plugin.UserError, match=r"holds \['todo.txt'\], expected a data set folder"):
        recordings.source_type(tmp_path / "notes")
    with pytest.raises(plugin.UserError, match="did you mean 'notes'"):
        recordings.raw(tmp_path / "note")
    with pytest.raises(plugin.UserError, match="one file"):
        recordings.recorded(tmp_path / "notes" / "todo.txt")


def test_two_formats_in_one_folder_are_ambiguous(tmp_path):
    folder = write_folder(tmp_path / "arm", [episode(i) for i in range(2)])
    (folder / "meta").mkdir()
    (folder / "meta" / "info.json").write_text("{}")
    with pytest.raises(plugin.UserError, match="looks like lerobot and rlds"):
        recordings.source_type(folder)


def test_numbers_and_ids_of_episodes(tmp_path):
    raw = recordings.raw(write_folder(tmp_path / "arm", [episode(i) for i in (7, 0, 3)], shards=1))
    asked = ("0", 2, "e0", raw.ids()[2], "e7")
    assert [recordings.number(raw, which) for which in asked] == [0, 2, 1, 2, 0]
    assert recordings.title(raw, 2) == "e3"
    for which in ("3", "-1", "e33", ""):
        with pytest.raises(plugin.UserError, match="a number, 0 to 2, or an id"):
            recordings.number(raw, which)


@pytest.mark.parametrize(
    "text, spec",
    [
        ("native", "native"),
        ("oxe:bridge", dict(type="oxe", row="bridge")),
        ("my_lab.rows:kitchen", dict(type="my_lab.rows", row="kitchen")),
    ],
)
def test_how_a_standardizer_is_written(text, spec):
    assert recordings.standardizer(text) == spec


def test_a_file_of_rows():
    spec = recordings.standardizer("rows.py:kitchen")
    assert spec == dict(type="rows", file=str(pathlib.Path("rows.py").resolve()), row="kitchen")


def test_evenly_spaced():
    assert recordings.evenly(0, 3) == [] and recordings.evenly(2, 5) == [0, 1]
    assert recordings.evenly(10, 1) == [0] and recordings.evenly(9, 3) == [0, 4, 8]
    assert len(recordings.evenly(1000, 48)) == 48
