"""`vla data doctor` on recorded data, by flags and by config: text, JSON, exit codes."""

import json
import os
import pathlib

import pytest

from tests.data.conftest import episode, write_folder
from tests.data.sources.hdf5_files import write_libero
from vla_jax.cli import main as cli

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
ROWS = """
from vla_jax.data.standardizers._table import Row

ROWS = {"sample": Row(
    embodiment="widowx", action_space="ee_delta_gripper",
    views={"primary": "observation.images.top"}, action="action",
    proprio={"ee": "observation.state"}, language="task",
)}
"""
ARM = "from tests.data.conftest import ARM as EMBODIMENT\n"


def examine(capsys, *words):
    """(exit code, the lines of text, the JSON of the last line)."""
    code = cli.main(["data", "doctor", *map(str, words)])
    *lines, last = capsys.readouterr().out.strip().splitlines()
    return code, lines, json.loads(last)


def kinds(report):
    return sorted((f["severity"], f["check"]) for f in report["findings"])


def test_the_bridge_episodes(fixtures_dir, capsys):
    path = fixtures_dir / "bridge_dataset"
    code, lines, report = examine(
        capsys, path, "--standardizer", "oxe:bridge", "--action-horizon", 4
    )
    assert code == 0 and (report["errors"], report["warnings"], report["notes"]) == (0, 2, 1)
    assert kinds(report) == [("note", "actions"), ("warning", "cameras"), ("warning", "duplicates")]
    told = {f["check"]: f["message"] for f in report["findings"]}
    assert "steps/action is zero in 100% of the episodes" in told["actions"]
    assert "has_image_0" in told["cameras"] and "has_image_3" not in told["cameras"]
    assert "'val': 25 of 25" in told["duplicates"]
    assert lines[0].endswith("25 episodes, 225 steps")
    # BridgeData's actions are commands: they lead the measured motion by a step.
    for group in ("xyz", "rpy"):
        fit = report["numbers"]["reference"][group]
        assert fit["verdict"] == "commanded_delta" and fit["lag"] == 1
        assert 0.7 < fit["commanded_delta"] < 0.95 and fit["absolute"] < 0
    assert report["numbers"]["gripper"]["gripper"]["correlation"] > 0.8


def test_a_config_examines_what_it_would_read(fixtures_dir, capsys):
    path = fixtures_dir / "bridge_dataset" / "1.0.0"
    config = f"{ROOT}/configs/debug.py:data={path}"
    code, lines, report = examine(capsys, "--config", config)
    assert code == 0 and lines[0].startswith("robot.bridge: ")
    assert list(report["numbers"]) == ["robot.bridge"]
    assert {f["member"] for f in report["findings"]} == {"robot.bridge"}
    cameras = report["numbers"]["robot.bridge"]["cameras"]
    assert set(cameras) == {"primary", "flags"}, "secondary is not read by this run"
    words = ["--config.streams.robot.image_sizes.primary=(224, 224)", "--config.normalizer.clip=.3"]
    code, _, report = examine(capsys, path, "--config", config, *words)
    assert code == 1 and report["errors"] >= 1
    assert any("enlarged 3.50 times" in f["message"] for f in report["findings"])
    assert cli.main(["data", "doctor", "elsewhere", "--config", config]) == 2
    assert "unknown 'elsewhere'" in capsys.readouterr().err


def test_what_a_run_leaves_out_does_not_end_it(fixtures_dir, tmp_path, capsys):
    for file in (fixtures_dir / "bridge_dataset" / "1.0.0").iterdir():
        if "-val" in file.name:
            os.symlink(file, tmp_path / file.name)
        else:
            cut = -5 if "-train" in file.name else None
            (tmp_path / file.name).write_bytes(file.read_bytes()[:cut])
    config = f"{ROOT}/configs/debug.py:data={tmp_path}"
    assert cli.main(["data", "doctor", "--config", config]) == 2
    assert "record 24" in capsys.readouterr().err
    skip = "--config.streams.robot.mixture.bridge.source.bad_samples=skip"
    code, lines, report = examine(capsys, "--config", config, skip)
    assert code == 0 and "24 episodes" in lines[0]
    left = {f["check"]: f for f in report["findings"] if "cannot be read" in f["message"]}
    assert sorted(left) == ["actions", "cameras"]
    assert "1 of 25 episodes looked at" in left["actions"]["message"]
    assert "flags: 1 of 12 episodes looked at" in left["cameras"]["message"]


def test_lerobot_through_rows_of_ones_own(fixtures_dir, tmp_path, capsys):
    (tmp_path / "my_rows.py").write_text(ROWS)
    folder = fixtures_dir / "lerobot" / "lerobot_v3_sample"
    code, _, report = examine(capsys, folder, "--standardizer", f"{tmp_path}/my_rows.py:sample")
    time = report["numbers"]["time"]["timestamps"]
    assert time["hz"] == pytest.approx(10, rel=1e-3) and (time["gaps"], time["episodes"]) == (0, 0)
    told = [f["message"] for f in report["findings"]]
    assert any(
        "recorded at 10 Hz, the action space 'ee_delta_gripper' says 5 Hz" in m for m in told
    )
    assert any("4 of 7 dims never change" in m for m in told)
    assert code == 0 and report["numbers"]["reference"]["xyz"]["commanded_delta"] > 0.2


def test_hdf5(tmp_path, capsys):
    def black(file):
        file["data/demo_1/obs/agentview_rgb"][:] = 0

    path = write_libero(tmp_path / "a_demo.hdf5", change=black)
    words = [path, "--standardizer", "oxe:libero_hdf5", "--action-horizon", 2]
    code, lines, report = examine(capsys, *words)
    assert lines[0].endswith("3 episodes, 21 steps")
    (black,) = [f for f in report["findings"] if "black" in f["message"]]
    assert black["check"] == "cameras" and "view primary" in black["message"]
    assert "33.3%" in black["message"] and black["remedy"] in " ".join(lines)
    assert report["numbers"]["time"] and report["numbers"]["gripper"]


def test_an_error_ends_with_one(tmp_path, capsys):
    (tmp_path / "arm.py").write_text(ARM)
    episodes = [episode(i, length=12) for i in range(6)]
    episodes[4]["steps/language_instruction"] = [b""] * 12
    folder = write_folder(tmp_path / "arm_data", episodes)
    words = [folder, "--embodiment", tmp_path / "arm.py", "--action-horizon", "2"]
    code, lines, report = examine(capsys, *words)
    assert code == 1 and ("error", "language") in kinds(report)
    assert any("in 1 of 6 episodes" in line and "episode e4" in line for line in lines)
    assert f"{report['errors']} errors, {report['warnings']} warnings, 0 notes" in lines


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "give PATH, the dataset's folder, or --config"),
        (["nowhere"], "no such data set folder"),
        (["{bridge}"], "standardizer 'native': the data set lacks"),
        (["{bridge}", "--standardizer", "oxe:brigde"], "did you mean 'bridge'?"),
        (["{bridge}", "--standardizer", "oxe:bridge", "--action-horizon", "0"], "expected >= 1"),
        (["{bridge}", "--standardizer", "oxe:bridge", "--embodiment", "widow"], "'widowx'"),
        (["{bridge}", "--standardizer", "oxe:bridge", "--split", "vall"], "did you mean 'val'?"),
        (["{bridge}", "--standardizer", "oxe:bridge", "--checkpoint", "no"], "no"),
    ],
)
def test_a_mistake_is_one_message(fixtures_dir, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    words = [word.format(bridge=fixtures_dir / "bridge_dataset") for word in words]
    assert cli.main(["data", "doctor", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and not list(tmp_path.iterdir())
