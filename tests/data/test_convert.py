"""`vla data convert`: what comes out is what went in, read by TFDS, pyarrow and our own readers."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.data.conftest import episode, write_folder
from tests.data.sources import lerobot_sets
from vla_jax import plugin
from vla_jax.cli import main as cli
from vla_jax.data import convert, images, recordings
from vla_jax.data.sources import _files

ARM_ROW = lerobot_sets.STANDARDIZER


def run(path, out, **settings):
    settings = {"workers": 0, "progress": False} | settings
    return convert.convert(path, out, **settings)


def same_table(a, b):
    assert list(a.language) == list(b.language)
    for name in ("action", "start", "language_index"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert list(a.proprio) == list(b.proprio)
    for group, values in a.proprio.items():
        np.testing.assert_array_equal(values, b.proprio[group])


def left(folder: pathlib.Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_rlds_to_lerobot_and_every_field_is_equal(fixtures_dir, tmp_path):
    path = fixtures_dir / "bridge_dataset" / "1.0.0"
    done = run(
        path, tmp_path / "new", to="lerobot", control_hz=5, pictures="png", split="train[:8]"
    )
    assert done["episodes"] == 8 and done["splits"] == {"train": 8} and not done["skipped"]
    old, new = recordings.raw(path, "train"), recordings.raw(tmp_path / "new")
    assert new.kind == "LeRobot v3.0" and len(new) == 8 and new.fps == 5
    for number in (0, 7):
        was, now = old.episode(number), new.episode(number)
        compared = set()
        for name, value in was.items():
            key = name.removeprefix("steps/").replace("/", ".")
            if name == "steps/language_instruction":
                key = "task"
                value = np.char.strip(value)
            elif "image_" in name and name.startswith("steps/"):
                key = key.replace("observation.", "observation.images.")
            if name.startswith("steps/"):
                np.testing.assert_array_equal(now[key], value, err_msg=name)
                assert now[key].dtype.kind == value.dtype.kind
                compared.add(key)
        counted = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
        assert set(now) - compared == counted
        np.testing.assert_array_equal(now["timestamp"], np.arange(10, dtype=np.float32) / 5)
    import pyarrow.parquet as pq

    said = pq.read_table(tmp_path / "new/meta/vla_jax.parquet").to_pylist()
    assert said[7]["file_path"] == str(old.episode(7)["episode_metadata/file_path"])


def test_lerobot_to_rlds_and_every_field_is_equal(fixtures_dir, tmp_path):
    path = fixtures_dir / "lerobot" / "lerobot_v3_sample"
    run(path, tmp_path / "new", to="rlds", pictures="png")
    old, new = recordings.raw(path), recordings.raw(tmp_path / "new")
    assert new.file_format == "array_record" and len(new) == len(old) == 3
    for number in range(3):
        was, now = old.episode(number), new.episode(number)
        assert now["steps/is_first"].tolist() == [True] + [False] * (len(was["action"]) - 1)
        assert now["steps/is_last"].sum() == 1 and now["steps/is_last"][-1]
        assert str(now["episode_metadata/episode_id"]) == f"episode_{number:06d}"
        assert len(now) == len(was) + 3
        for name, value in was.items():
            np.testing.assert_array_equal(now[f"steps/{name}"], value, err_msg=name)


DATA_SOURCE = """
import sys, numpy as np, tensorflow_datasets as tfds
out = {}
def put(prefix, tree):
    if isinstance(tree, dict):
        for name, value in tree.items():
            put(f"{prefix}/{name}", value)
    else:
        out.setdefault(prefix, []).append(tree)
for folder in sys.argv[2:]:
    source = tfds.builder_from_directory(folder).as_data_source("train")
    for number in (0, 3):
        record = source[number]
        for step in record.pop("steps"):
            put(f"{folder}:{number}:/steps", step)
        put(f"{folder}:{number}:", record)
np.savez(sys.argv[1], **{name: np.stack(value) for name, value in out.items()})
"""


def test_tfds_reads_what_was_written_and_finds_the_same(fixtures_dir, tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="TFDS reads what was written")
    path, folders = fixtures_dir / "bridge_dataset" / "1.0.0", {}
    for kind, given in (("kept", {}), ("png", {"pictures": "png"})):
        folders[kind] = str(tmp_path / kind)
        run(path, folders[kind], to="rlds", split="train[:4]", **given)
    command = [sys.executable, "-c", DATA_SOURCE, tmp_path / "tfds.npz", *folders.values()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(tmp_path / "tfds.npz") as file:
        read = dict(file)
    raw = recordings.raw(path)
    for kind, folder in folders.items():
        for number in (0, 3):
            for name, value in raw.episode(number).items():
                found = read[f"{folder}:{number}:/{name}"]
                if found.dtype.kind in "SO":
                    found = np.char.decode(found.astype(bytes), "utf-8")
                if kind == "kept" and value.ndim == 4:  # their decoder without TensorFlow differs
                    assert np.abs(found.astype(int) - value).mean() < 4
                else:
                    np.testing.assert_array_equal(found.reshape(value.shape), value, err_msg=name)
    kept = recordings.raw(folders["kept"])
    for name in recordings.pictures(raw):
        assert kept.encoded(3, name) == raw.encoded(3, name)


def test_a_row_for_the_source_reads_the_converted(tmp_path):
    path = lerobot_sets.write_v21(tmp_path / "old", kind="image")
    run(path, tmp_path / "new", to="rlds", pictures="png")
    old, frames = recordings.recorded(path, standardizer=ARM_ROW)
    new, again = recordings.recorded(tmp_path / "new", standardizer=ARM_ROW)
    same_table(old, new)
    for row in (0, 9, 27):
        index = int(np.searchsorted(old.start, row, side="right")) - 1
        pair = [images.decode(read("primary", index, [row])[0]) for read in (frames, again)]
        np.testing.assert_array_equal(*pair)


@pytest.mark.parametrize("to", ["rlds", "lerobot"])
def test_our_own_data_stay_our_own(tmp_path, to):
    path = write_folder(tmp_path / "old", [episode(i, 5 + i) for i in range(4)])
    run(path, tmp_path / "new", to=to, control_hz=10, pictures="png")
    old, _ = recordings.recorded(path)
    new, read = recordings.recorded(tmp_path / "new")
    same_table(old, new)
    assert (new.embodiment, new.action_space) == ("arm", "xyz_gripper")
    assert list(new.ids) == list(old.ids) == ["e0", "e2", "e1", "e3"]
    np.testing.assert_array_equal(new.cameras["primary"], old.cameras["primary"])
    shown = read("primary", 2, [int(new.start[2]) + 4])[0]
    shown = images.decode(shown) if isinstance(shown, bytes) else shown
    assert abs(int(shown[8, 8, 0]) - 41) <= 1  # 10 * step + number


def test_standardized_and_resized(fixtures_dir, tmp_path):
    path = fixtures_dir / "bridge_dataset" / "1.0.0"
    spec = dict(type="oxe", row="bridge")
    given = dict(standardizer="oxe:bridge", split="train[:3]", resize=(32, 48), pictures="png")
    run(path, tmp_path / "new", to="rlds", **given)
    old, frames = recordings.recorded(path, standardizer=spec, split="train[:3]")
    new, read = recordings.recorded(tmp_path / "new")
    same_table(old, new)
    assert list(new.ids) == list(old.ids) and new.embodiment == old.embodiment
    for view in old.frames:
        was, now = frames(view, 1, [12])[0], images.decode(read(view, 1, [12])[0])
        np.testing.assert_array_equal(now, images.resize(images.decode(was), (32, 48)))
    found = recordings.raw(tmp_path / "new").episode(1)
    assert found["steps/is_terminal"].dtype == bool and found["steps/discount"].all()


def test_films_of_several_parts_are_found_by_time(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "PARTS", 2)
    lengths = (3, 4, 5, 6)
    path = lerobot_sets.write_v21(tmp_path / "old", lengths)
    run(path, tmp_path / "new", to="lerobot")
    files = sorted((tmp_path / "new/videos").rglob("*.mp4"))
    assert [f.name for f in files] == ["file-000.mp4", "file-001.mp4"]
    old, new = recordings.raw(path), recordings.raw(tmp_path / "new")
    for number, length in enumerate(lengths):
        was, now = old.episode(number), new.episode(number)
        assert now["index"].tolist() == list(
            range(sum(lengths[:number]), sum(lengths[: number + 1]))
        )
        assert now["task"].tolist() == [lerobot_sets.TASKS[number % 2]] * length
        films = [x[lerobot_sets.CAMERA].astype(int) for x in (was, now)]
        assert np.abs(films[0] - films[1]).max() <= 4  # encoded twice
        np.testing.assert_array_equal(now["observation.state"], was["observation.state"])
    stats = json.loads((tmp_path / "new/meta/stats.json").read_text())
    everything = np.concatenate([old.episode(i)["action"] for i in range(4)]).astype(np.float64)
    np.testing.assert_allclose(stats["action"]["mean"], everything.mean(0), rtol=1e-6)
    np.testing.assert_allclose(stats["action"]["q99"], np.quantile(everything, 0.99, 0), rtol=1e-6)
    assert stats["index"]["max"] == [17] and stats["task_index"]["max"] == [1]
    level = np.concatenate(
        [lerobot_sets.picture(e, t)[:1, :1, 0] for e in range(4) for t in range(lengths[e])]
    )
    assert abs(stats[lerobot_sets.CAMERA]["mean"][0][0][0] * 255 - level.mean()) < 12


def test_data_without_pictures_have_statistics_of_their_numbers(tmp_path):
    path = write_folder(tmp_path / "old", [episode(i) for i in range(3)])
    without = ["steps/observation/images/primary"]
    run(path, tmp_path / "new", to="lerobot", control_hz=10, without=without)
    stats = json.loads((tmp_path / "new/meta/stats.json").read_text())
    assert stats["action"]["max"] == [2, 6, 0, 1] and stats["action"]["count"] == [21]
    assert stats["observation.state"]["max"][1] == pytest.approx(0.6)


def test_several_splits_keep_their_names(fixtures_dir, tmp_path):
    path = fixtures_dir / "bridge_dataset" / "1.0.0"
    without = [f"steps/observation/image_{i}" for i in range(4)]
    for to in ("rlds", "lerobot"):
        done = run(path, tmp_path / to, to=to, control_hz=5, without=without)
        assert done["splits"] == {"train": 25, "val": 25}
        for split in done["splits"]:
            old, new = recordings.raw(path, split), recordings.raw(tmp_path / to, split)
            key = "steps/action" if to == "rlds" else "action"
            assert not recordings.pictures(new)
            np.testing.assert_array_equal(
                new.episode(24)[key], old.episode(24, ["steps/action"])["steps/action"]
            )


def test_what_cannot_be_read_is_an_error_or_left_out_and_counted(tmp_path):
    episodes = [episode(i) for i in range(5)]
    episodes[2]["steps/observation/images/primary"][3] = b"\xff\xd8 no picture"
    path = write_folder(tmp_path / "old", episodes, shards=1)
    with pytest.raises(plugin.UserError, match="record 2.*images/primary, picture 3"):
        run(path, tmp_path / "new", to="lerobot", control_hz=10)
    assert left(tmp_path) == ["old"]
    for to in ("lerobot", "rlds"):
        out = tmp_path / to
        done = run(path, out, to=to, control_hz=10, bad_episodes="skip", resize=(16, 16))
        assert done["episodes"] == 4 and "record 2" in done["skipped"][0]
        table, read = recordings.recorded(out)
        assert table.action[table.start[:-1], 0].tolist() == [0, 1, 3, 4]
        shown = read("primary", 2, [int(table.start[2]) + 5])[0]
        shown = images.decode(shown) if isinstance(shown, bytes) else shown
        assert abs(int(shown[8, 8, 0]) - 53) <= 2


def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path):
    path = write_folder(tmp_path / "old", [episode(i) for i in range(2)])

    def refused(match, where=path, **settings):
        with pytest.raises(plugin.UserError, match=match):
            run(where, tmp_path / "new", **({"to": "rlds"} | settings))
        assert not any(name.startswith((".", "new")) for name in left(tmp_path))

    refused("--to: unknown 'zarr'", to="zarr")
    refused("--pictures.*unknown 'h264'.*jpeg", pictures="h264")
    refused("steps per second.*--hz", to="lerobot")
    refused("did you mean 'steps/action'", without=("steps/actions",))
    refused("unknown 'steps/say'", to="lerobot", task="steps/say", control_hz=5)
    refused("unknown 'trains'", split="trains")
    refused("expected a number above 0", control_hz=-1.0)
    odd = [episode(0), episode(1)]
    odd[1]["steps/observation/proprio/hand"] = np.zeros((7, 4), np.float32)
    uneven = write_folder(tmp_path / "uneven", odd)
    refused("proprio/hand", uneven)
    sparse = [
        episode(i, **{"steps/observation/image_masks/primary": np.arange(7) % 2 == 0})
        for i in range(2)
    ]
    refused(
        r"no picture at steps \[1, 3, 5\]",
        write_folder(tmp_path / "sparse", sparse),
        to="lerobot",
        control_hz=5,
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(plugin.UserError, match="not empty"):
        run(path, tmp_path / "full", to="rlds")
    assert left(tmp_path / "full") == ["mine"]


def test_the_verb(tmp_path, capsys):
    path = str(write_folder(tmp_path / "old", [episode(i) for i in range(2)]))
    out = str(tmp_path / "new")
    command = ["data", "convert", path, "--out", out, "--to", "rlds", "--workers", "0"]
    assert cli.main([*command, "--resize", "8"]) == 2
    assert "expected HEIGHTxWIDTH" in capsys.readouterr().err
    assert cli.main([*command, "--resize", "8x12"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["episodes"] == 2 and last["steps"] == 14 and last["out"] == out
    shown = recordings.raw(out).episode(0)["steps/observation/images/primary"]
    assert shown.shape == (7, 8, 12, 3)
    assert cli.main(command) == 2
    assert "not empty" in capsys.readouterr().err
    done = run(path, f"file://{tmp_path}/url", to="rlds")
    assert done["out"] == str(tmp_path / "url") and len(recordings.raw(tmp_path / "url")) == 2


def test_a_source_of_another_place_is_read_through_fsspec(tmp_path):
    import fsspec

    path = write_folder(tmp_path / "old", [episode(i) for i in range(2)])
    system = fsspec.filesystem("memory")
    system.put(str(path), "/convert_old", recursive=True)
    try:
        assert _files.is_url("memory://convert_old")
        run("memory://convert_old", tmp_path / "new", to="rlds")
    finally:
        system.rm("/convert_old", recursive=True)
    same_table(recordings.recorded(path)[0], recordings.recorded(tmp_path / "new")[0])


def test_steps_per_second_are_the_source_s_or_the_action_space_s(tmp_path):
    path, out = lerobot_sets.write_v21(tmp_path / "old", kind="image"), tmp_path / "new"
    with pytest.raises(plugin.UserError, match="--hz: got 5.*says 10"):
        run(path, out, to="lerobot", control_hz=5.0)
    droid = {
        "episode_metadata/embodiment": [b"franka"],
        "episode_metadata/action_space": [b"franka_droid"],
    }
    ours = write_folder(tmp_path / "ours", [episode(i, **droid) for i in range(2)])
    run(ours, out, to="lerobot", pictures="png")
    assert recordings.raw(out).fps == 15  # the robot's own are 20
    droid["episode_metadata/action_space"] = [b"franka_of_nobody"]
    ours = write_folder(tmp_path / "odd", [episode(i, **droid) for i in range(2)])
    with pytest.raises(plugin.UserError, match="does not say.*give --hz"):
        run(ours, tmp_path / "none", to="lerobot")


def test_a_standardizer_s_bad_episodes_are_left_out_and_counted(tmp_path):
    episodes = [episode(i) for i in range(4)]
    episodes[2]["steps/action"][3, 1] = np.nan
    path = write_folder(tmp_path / "old", episodes, shards=1)
    given = dict(to="rlds", standardizer="native")
    with pytest.raises(plugin.UserError, match="record 2.*dim 1 is nan"):
        run(path, tmp_path / "new", **given)
    done = run(path, tmp_path / "new", bad_episodes="skip", **given)
    assert done["episodes"] == 3 and len(done["skipped"]) == 1 and "record 2" in done["skipped"][0]
    assert list(recordings.recorded(tmp_path / "new")[0].ids) == ["e0", "e1", "e3"]


def test_our_lerobot_data_keep_what_stands_beside_them(tmp_path):
    path = write_folder(tmp_path / "old", [episode(i) for i in range(2)])
    run(path, tmp_path / "ours", to="lerobot", control_hz=10, pictures="png")
    with pytest.raises(plugin.UserError, match="action_space.*--standardizer native"):
        run(tmp_path / "ours", tmp_path / "new", to="rlds")
    run(tmp_path / "ours", tmp_path / "new", to="rlds", standardizer="native", pictures="png")
    old, new = (recordings.recorded(tmp_path / name)[0] for name in ("ours", "new"))
    same_table(old, new)
    assert (new.embodiment, new.action_space) == ("arm", "xyz_gripper")
    np.testing.assert_array_equal(new.cameras["primary"], old.cameras["primary"])


@pytest.mark.parametrize("name", ["images/primary", "proprio/hand"])
def test_an_episode_that_lacks_a_field_is_named_or_left_out(tmp_path, name):
    field, episodes = f"steps/observation/{name}", [episode(i) for i in range(3)]
    del episodes[1][field]
    path = write_folder(tmp_path / "old", episodes, shards=1)
    for to in ("rlds", "lerobot"):
        given = dict(to=to, control_hz=10, pictures="png")
        for split in ("train", "train[1:]"):  # the first of the latter lacks it
            with pytest.raises(plugin.UserError, match=f"lacks {field}.*--without {field}"):
                run(path, tmp_path / to, split=split, **given)
            done = run(path, tmp_path / f"{to}{split}", split=split, bad_episodes="skip", **given)
            assert len(done["skipped"]) == 1 and f"lacks {field}" in done["skipped"][0]
    with pytest.raises(plugin.UserError, match=f"lacks {field}"):
        run(path, tmp_path / "kept", to="rlds")
