"""`vla data inspect` says in text, in one JSON line and in a picture what a dataset holds."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import episode, write_folder
from tests.data.sources import hdf5_files
from tests.data.sources import lerobot_sets as sets
from vla_jax.cli import main as cli


@pytest.fixture
def folder(tmp_path):
    """Three episodes of 7, 8 and 9 steps; the second one has a number that is not finite."""
    episodes = [episode(i, length=7 + i) for i in range(3)]
    episodes[1]["steps/observation/proprio/hand"][2, 1] = np.nan
    return write_folder(tmp_path / "arm_data" / "1.0.0", episodes, shards=1)


def test_inspect_prints_text_and_json(folder, capsys):
    assert cli.main(["data", "inspect", str(folder)]) == 0
    *text, last = capsys.readouterr().out.strip().splitlines()
    found = json.loads(last)
    split = found["splits"]["train"]
    assert found["kind"] == "RLDS" and (split["episodes"], split["steps"]) == (3, 24)
    assert any("split train: 3 episodes, 24 steps (7 to 9 each)" in line for line in text)
    assert any("touch the dog" in line for line in text)
    action = split["ranges"]["steps/action"]
    assert action == {"min": [0, 0, -8, 0], "max": [2, 8, 0, 1], "not_finite": 0}
    hand = split["ranges"]["steps/observation/proprio/hand"]
    assert hand["not_finite"] == 1 and hand["max"][1] == pytest.approx(0.8)
    camera = split["cameras"]["steps/observation/images/primary"]
    assert camera == {"format": "image", "shape": [16, 16, 3], "black": True}


def test_json_alone_and_a_part_of_the_episodes(folder, capsys):
    assert cli.main(["data", "inspect", str(folder), "--json", "--episodes", "1"]) == 0
    (line,) = capsys.readouterr().out.strip().splitlines()
    split = json.loads(line)["splits"]["train"]
    assert (split["episodes"], split["read"], split["steps"]) == (3, 1, 7)


def test_the_contact_sheet_shows_what_was_recorded(folder, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    words = ["--sheet", str(out), "--rows", "2", "--columns", "4"]
    assert cli.main(["data", "inspect", str(folder), *words]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["sheet"] == str(out)
    picture = np.asarray(Image.open(out).convert("RGB")).astype(int)
    # Rows are the first and the last episode (7 and 9 steps), a picture of step t is 10 t + number.
    expected = [[0, 20, 40, 60], [2, 32, 52, 82]]
    rows, columns = (140, 290), (70, 202, 334, 466)
    seen = [[int(picture[y, x, 0]) for x in columns] for y in rows]
    assert np.abs(np.subtract(seen, expected)).max() <= 2, seen
    assert sorted(p.name for p in tmp_path.iterdir()) == ["arm_data", "sheet.png"]


def lerobot_video(path):
    return sets.write_v21(path)


def lerobot_images(path):
    return sets.write_v30(path)


def libero(path):
    def one_camera(file):
        for demo in file["data"].values():
            del demo["obs/eye_in_hand_rgb"]

    return hdf5_files.write_libero(path.with_suffix(".hdf5"), 4, change=one_camera)


@pytest.mark.parametrize(
    "write, level",
    [
        (lerobot_video, lambda e, t: sets.picture(e, t)[8, 8]),
        (lerobot_images, lambda e, t: sets.picture(e, t)[8, 8]),
        (libero, lambda e, t: hdf5_files.picture(e, t)[8, 8]),
    ],
)
def test_the_contact_sheet_of_other_formats(write, level, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    words = [write(tmp_path / "data"), "--sheet", str(out), "--rows", "2", "--columns", "4"]
    assert cli.main(["data", "inspect", *words]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["sheet"] == str(out) and len(found["splits"]["train"]["cameras"]) == 1
    picture = np.asarray(Image.open(out).convert("RGB")).astype(int)
    # The first and the last of 4 episodes, 4 of 7 steps; a tile's middle is the picture's.
    seen = [[picture[y, x] for x in (70, 202, 334, 466)] for y in (120, 270)]
    expected = [[level(e, t) for t in (0, 2, 4, 6)] for e in (0, 3)]
    assert np.abs(np.subtract(seen, expected)).max() <= 2, seen


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere"], "no such data set folder"),
        (["."], "expected a data set folder that one of"),
        (["arm_data", "--rows", "0", "--sheet", "x.png"], "--rows: got 0, expected at least 1"),
        (["arm_data", "--sheet", "no/such/x.png"], "--sheet: no/such/x.png"),
        (["arm_data", "--sheet", "x.png", "--split", "trian"], "did you mean 'train'?"),
    ],
)
def test_a_mistake_is_one_message(folder, monkeypatch, capsys, words, message):
    monkeypatch.chdir(folder.parent.parent)
    assert cli.main(["data", "inspect", *words]) == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in folder.parent.parent.iterdir()] == ["arm_data"]
