"""`vla data inspect` says in text and in one JSON line what a dataset holds."""

import json

from tests.data.conftest import episode, write_folder
from vla_jax.cli import main as cli


def test_inspect_prints_text_and_json(tmp_path, capsys):
    folder = write_folder(tmp_path / "arm_data", [episode(i) for i in range(3)])
    assert cli.main(["data", "inspect", str(folder)]) == 0
    *text, last = capsys.readouterr().out.strip().splitlines()
    found = json.loads(last)
    assert found["splits"]["train"]["episodes"] == 3 and found["splits"]["train"]["steps"] == 21
    assert any("split train: 3 episodes, 21 steps (7 to 7 each)" in line for line in text)
    assert any("touch the dog" in line for line in text)


def test_a_missing_folder_is_the_users_mistake(tmp_path, capsys):
    assert cli.main(["data", "inspect", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
