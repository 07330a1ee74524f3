"""HDF5 of LIBERO, robomimic and ALOHA: what h5py finds there, through the seams of every format."""

import errno
import json
import pathlib
import pickle

import h5py
import numpy as np
import pytest

from tests.data.sources.hdf5_files import T, actions, picture, write_aloha, write_libero
from vla_jax import plugin
from vla_jax.cli import main as cli
from vla_jax.data import convert, images, recordings
from vla_jax.data.sources import _hdf5_folder, hdf5

LIBERO = dict(type="oxe", row="libero_hdf5")
ALOHA = dict(type="oxe", row="aloha_hdf5")


def test_libero_is_found_and_read_as_it_is_stored(tmp_path):
    for task in ("open", "close"):
        write_libero(tmp_path / "libero_goal" / f"{task}_demo.hdf5", said=f"{task} the Tür")
    path = tmp_path / "libero_goal"
    assert recordings.source_type(path) == "hdf5"
    raw = recordings.raw(path)
    assert raw.kind == "HDF5" and raw.name == "libero_goal" and raw.splits == {"train": 6}
    assert raw.ids()[:4] == [f"close_demo/demo_{i}" for i in range(3)] + ["open_demo/demo_0"]
    found = raw.episode(4)
    assert set(found) == set(raw.fields)
    np.testing.assert_array_equal(found["steps/actions"], actions(1))
    assert found["steps/language_instruction"].tolist() == ["open the Tür"] * T
    np.testing.assert_array_equal(
        found["steps/obs/agentview_rgb"], [picture(1, t) for t in range(T)]
    )
    assert found["steps/dones"].tolist() == [0] * 6 + [1]
    assert str(found["episode_metadata/model_file"]) == "<mujoco/>"
    assert found["episode_metadata/init_state"].tolist() == [0, 1, 2, 3, 4]
    two = raw.episode(4, ["steps/obs/eye_in_hand_rgb"], [2, 5])["steps/obs/eye_in_hand_rgb"]
    np.testing.assert_array_equal(two, [picture(1, 2, 5), picture(1, 5, 5)])
    assert recordings.pictures(raw) == ["steps/obs/agentview_rgb", "steps/obs/eye_in_hand_rgb"]
    assert recordings.length(raw, 0) == T


def test_libero_in_our_nouns(tmp_path):
    path = write_libero(tmp_path / "a_demo.hdf5")
    table, read = hdf5.recorded(path, standardizer=LIBERO)
    assert (len(table), table.name, table.embodiment) == (3, "a_demo", "franka")
    assert list(table.ids) == [f"a_demo/demo_{i}" for i in range(3)]
    grip = np.where(np.arange(T) % 2, 0.0, 1.0)  # -1 opens: 1
    np.testing.assert_array_equal(table.action[T : 2 * T, 6], grip)
    np.testing.assert_array_equal(table.action[T : 2 * T, :3], actions(1)[:, :3])
    np.testing.assert_allclose(table.proprio["ee_fingers"][3], [0.3] * 3 + [0] * 3 + [0.04] * 2)
    assert list(table.language) == ["put the bowl on the möbel"]
    reader = pickle.loads(pickle.dumps(read))
    shown = reader("wrist", 2, [2 * T + 4])[0]
    np.testing.assert_array_equal(shown, picture(2, 4, 5)[::-1, ::-1])  # it is stored upside down
    again, _ = hdf5.recorded(path, standardizer=LIBERO)
    assert again.fingerprint() == table.fingerprint()


def test_robomimic_says_its_splits_and_has_no_words(tmp_path):
    def split(file):
        file["mask/train"] = np.array([b"demo_0", b"demo_2"])
        file["mask/valid"] = np.array([b"demo_1"])
        del file["data"].attrs["problem_info"]

    path = write_libero(tmp_path / "image.hdf5", change=split)
    assert recordings.raw(path).splits == {"train": 2, "valid": 1, "all": 3}
    assert recordings.raw(path, "valid").ids() == ["image/demo_1"]
    assert recordings.raw(path).episode(1)["steps/actions"][0, 0] == 2
    assert recordings.texts(recordings.raw(path)) == []
    with pytest.raises(plugin.UserError, match="did you mean 'valid'"):
        recordings.raw(path, "val")


@pytest.mark.parametrize("compress", [False, True])
def test_aloha(tmp_path, compress):
    for e in (0, 1, 10, 2):
        write_aloha(tmp_path / "aloha" / f"episode_{e}.hdf5", e, compress)
    raw = recordings.raw(tmp_path / "aloha")
    assert raw.ids() == [f"episode_{e}" for e in (0, 1, 2, 10)]
    high = raw.episode(1, ["steps/observations/images/cam_high"])
    high = high["steps/observations/images/cam_high"]
    assert high.shape == (10, 16, 16, 3)
    row = ALOHA | (dict(bgr=True) if compress else {})
    table, read = hdf5.recorded(tmp_path / "aloha", standardizer=row)
    assert table.step.tolist() == [0, 5] * 4 and not table.language
    np.testing.assert_allclose(table.proprio["arms"][2:4, 0], [1.0, 1.5])
    np.testing.assert_allclose(table.action[2:4, 13], [-1.0, -0.5])
    shown = read("right_wrist", 1, [3])[0].astype(int)
    assert np.abs(shown[8:] - picture(1, 5, 3)[8:]).max() <= (4 if compress else 0)
    straight = hdf5.recorded(tmp_path / "aloha", standardizer=ALOHA)[1]("right_wrist", 1, [3])[0]
    if compress:  # bytes as they are: OpenCV's blue was our red
        assert straight[:2] == b"\xff\xd8" and straight[-2:] == b"\xff\xd9"
        swapped = images.decode(straight).astype(int)
        assert np.abs(swapped[8:] - picture(1, 5, 3)[8:, :, ::-1]).max() <= 4


def test_conversion_to_rlds_keeps_the_row(tmp_path):
    path = write_libero(tmp_path / "a_demo.hdf5")
    out = tmp_path / "new"
    convert.convert(path, out, to="rlds", pictures="png", workers=0, progress=False)
    old, _ = recordings.recorded(path, standardizer=LIBERO)
    new, read = recordings.recorded(out, standardizer=LIBERO)
    np.testing.assert_array_equal(new.action, old.action)
    assert list(new.language) == list(old.language)
    np.testing.assert_array_equal(read("primary", 1, [T + 3])[0], picture(1, 3)[::-1, ::-1])


def broken(file):
    del file["data/demo_1/obs/ee_states"]


def short(file):
    del file["data/demo_1/obs/ee_states"]
    file["data/demo_1/obs/ee_states"] = np.zeros((T - 1, 6))


def wide(file):
    del file["data/demo_1/obs/ee_states"]
    file["data/demo_1/obs/ee_states"] = np.zeros((T, 7))


def no_number(file):
    file["data/demo_1/actions"][3, 2] = np.nan


def without_actions(file):
    del file["data/demo_1/actions"]


@pytest.mark.parametrize(
    "change, message",
    [
        (broken, "data/demo_1: data set: unknown 'obs/ee_states', did you mean"),
        (short, "data/demo_1: obs/ee_states has 6 rows, the actions have 7"),
        (wide, r"demo_1: obs/ee_states is float64 \[7\].*float64 \[6\] as in .*data/demo_0"),
        (no_number, "demo_1, step 3: action dim 2 is nan"),
        (without_actions, "data/demo_1: no actions"),
    ],
)
def test_what_is_wrong_is_named_or_left_out(tmp_path, change, message):
    path = write_libero(tmp_path / "a_demo.hdf5", change=change)
    with pytest.raises(plugin.UserError, match=message):
        hdf5.recorded(path, standardizer=LIBERO)
    table, _ = hdf5.recorded(path, standardizer=LIBERO, bad_samples="skip")
    assert list(table.ids) == ["a_demo/demo_0", "a_demo/demo_2"] and len(table.skipped) == 1


@pytest.mark.parametrize("change", [broken, short, wide])
def test_the_first_may_be_the_faulty_one(tmp_path, change):
    path = write_libero(tmp_path / "a_demo.hdf5", episodes=4)
    with h5py.File(path, "a") as file:
        file.move("data/demo_1", "data/kept")
        file.move("data/demo_0", "data/demo_1")
        change(file)
        file.move("data/demo_1", "data/demo_0")
        file.move("data/kept", "data/demo_1")
    table, _ = hdf5.recorded(path, standardizer=LIBERO, bad_samples="skip")
    assert [i.rpartition("_")[2] for i in table.ids] == ["1", "2", "3"] and len(table.skipped) == 1
    assert "demo_0" in table.skipped[0] and (change is not wide or "demo_1" in table.skipped[0])


def test_files_that_are_no_such_thing(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["images"] = np.zeros(3)
    with pytest.raises(plugin.UserError, match=r"holds \['images'\], expected data/demo_0"):
        recordings.raw(tmp_path / "x.hdf5")
    whole = pathlib.Path(write_libero(tmp_path / "y.hdf5")).read_bytes()
    (tmp_path / "y.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(plugin.UserError, match="y.hdf5: not a whole HDF5 file"):
        recordings.raw(tmp_path / "y.hdf5")
    assert not hdf5.is_at(tmp_path / "no.hdf5") and not hdf5.is_at(tmp_path / "nowhere")


def test_a_file_that_cannot_be_opened_is_left_out_of_the_recorded_too(tmp_path):
    folder = tmp_path / "set"
    for name in "abc":
        write_libero(folder / f"{name}.hdf5", episodes=2)
    (folder / "b.hdf5").write_bytes((folder / "b.hdf5").read_bytes()[:900])
    with pytest.raises(plugin.UserError, match="b.hdf5: not a whole HDF5 file"):
        recordings.raw(folder)
    raw = recordings.raw(folder, None, "skip")
    assert list(raw.ids()) == ["a/demo_0", "a/demo_1", "c/demo_0", "c/demo_1"]
    assert len(raw.skipped) == 1 and "b.hdf5" in raw.skipped[0]
    how = dict(to="rlds", workers=0, progress=False, bad_episodes="skip")
    done = convert.convert(folder, tmp_path / "out", **how)
    assert done["episodes"] == 4 and list(done["skipped"]) == list(raw.skipped)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_table_is_of_the_files_that_were_read(tmp_path, monkeypatch, capsys, number):
    folder = tmp_path / "set"
    for name in "abc":
        write_libero(folder / f"{name}.hdf5", episodes=2)
    look = _hdf5_folder._places

    def ids(hidden):
        def hindered(file, opened):
            if file.endswith(f"{hidden}.hdf5"):
                raise OSError(number, "hidden")
            return look(file, opened)

        monkeypatch.setattr(_hdf5_folder, "_places", hindered)
        table, _ = hdf5.recorded(
            str(folder), standardizer=LIBERO, bad_samples="skip", index_dir=str(tmp_path / "i")
        )
        assert len(table.skipped) == (hidden in "abc")
        return sorted({i[0] for i in table.ids})

    kept = number == errno.EACCES
    for hidden, left in (("b", "ac"), ("c", "ab"), ("none", "abc")):
        assert ids(hidden) == list(left)
        said = "is not kept" in capsys.readouterr().err
        assert said == (hidden != "none" and not kept)
    assert len(list((tmp_path / "i").rglob("*.safetensors"))) == (3 if kept else 1)


def test_a_fault_of_the_system_that_h5py_only_tells_in_words_may_pass(
    tmp_path, monkeypatch, capsys
):
    path, read = write_libero(tmp_path / "a_demo.hdf5"), _hdf5_folder.Opened.value

    def hindered(opened, name, length):
        if opened._place.group.endswith("demo_1"):  # as h5py 3.14 says it
            raise KeyError("Unable to synchronously open object (file read failed: errno = 5, …)")
        return read(opened, name, length)

    monkeypatch.setattr(_hdf5_folder.Opened, "value", hindered)
    assert len(hdf5.recorded(path, standardizer=LIBERO, bad_samples="skip")[0]) == 2
    assert "is not kept" in capsys.readouterr().err
    monkeypatch.undo()
    assert len(hdf5.recorded(path, standardizer=LIBERO, bad_samples="skip")[0]) == 3


def test_a_file_behind_a_url(tmp_path):
    import fsspec

    path = write_libero(tmp_path / "a_demo.hdf5")
    system = fsspec.filesystem("memory")
    system.put(path, "/hdf5_far/a_demo.hdf5")
    try:
        far, read = hdf5.recorded("memory://hdf5_far/a_demo.hdf5", standardizer=LIBERO)
        near, _ = hdf5.recorded(path, standardizer=LIBERO)
        np.testing.assert_array_equal(far.action, near.action)
        np.testing.assert_array_equal(read("primary", 1, [T + 2])[0], picture(1, 2)[::-1, ::-1])
    finally:
        system.rm("/hdf5_far", recursive=True)


def test_of_splits_that_share_episodes_train_is_converted_and_that_is_said(tmp_path, capsys):
    def masks(file):
        file["mask/train"] = np.asarray([b"demo_0", b"demo_2"])
        file["mask/valid"] = np.asarray([b"demo_1"])

    path, out = write_libero(tmp_path / "a_demo.hdf5", change=masks), str(tmp_path / "new")
    command = ["data", "convert", path, "--to", "rlds", "--workers", "0", "--out"]
    assert cli.main([*command, out]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["splits"] == {"train": 2}
    assert "train alone was written; --split names another: valid, all" in told.err
    assert recordings.recorded(out, standardizer=LIBERO)[0].action[T, 0] == 2
    assert cli.main([*command, f"{out}_all", "--split", "all"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["splits"] == {"all": 3} and "alone" not in told.err


def test_overlapping_splits_without_train_are_named(tmp_path):
    def masks(file):
        file["mask/good"] = np.asarray([b"demo_0", b"demo_2"])
        file["mask/better"] = np.asarray([b"demo_2"])
        file["mask/train"] = np.asarray([], "S6")

    path = write_libero(tmp_path / "a_demo.hdf5", change=masks)
    with pytest.raises(plugin.UserError, match="both hold a_demo/demo_2.*--split"):
        convert.convert(path, tmp_path / "new", to="rlds", workers=0, progress=False)


def test_instructions_of_each_step_stay_those_of_each_step(tmp_path):
    texts = ["a"] * 3 + ["b"] * (T - 3)

    def told(file):
        for demo in file["data"].values():
            demo["language_instruction"] = np.asarray([t.encode() for t in texts])

    path = write_libero(tmp_path / "a_demo.hdf5", change=told)
    name = "steps/language_instruction"
    assert recordings.raw(path).episode(1, [name])[name].tolist() == texts
    table, _ = recordings.recorded(path, standardizer=LIBERO)
    rows = table.language_index[table.start[1] : table.start[2]]
    assert [table.language[i] for i in rows] == texts
