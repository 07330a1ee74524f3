"""`vla data rows` lists the standardizer rows and says what one of them means."""

import json

import pytest

from tests.data.standardizers.test_rows import FILE
from vla_jax.cli import main as cli
from vla_jax.data import catalogue
from vla_jax.data.standardizers import oxe


def printed(capsys, *argv):
    assert cli.main(["data", "rows", *argv]) == 0
    *text, last = capsys.readouterr().out.strip().splitlines()
    return "\n".join(text), json.loads(last)


def test_list(capsys):
    text, found = printed(capsys)
    assert found["rows"] == list(oxe.ROWS) and "oxe_magic_soup" in found["mixtures"]
    assert "mixture oxe_magic_soup: 25 data sets" in text
    assert any(line.startswith("viola ") and "no instructions" in line for line in text.split("\n"))


def test_one_row_says_what_its_numbers_mean(capsys):
    text, found = printed(capsys, "viola")
    assert found["views"]["wrist"] == "observation/eye_in_hand_rgb" and found["control_hz"] == 20
    assert found["action_groups"]["xyz"] == (
        "3 x delta position, from measured_now, times 0.05 in SI, frame base, commanded"
    )
    assert found["action_groups"]["gripper"].startswith("1 x absolute gripper, 1=open,0=closed")
    assert "gripper_closedness_action | clip01 | invert" in text


@pytest.mark.parametrize("name", oxe.ROWS)
def test_every_row_fits_its_body(name):
    row = oxe.ROWS[name]
    found = catalogue.described(name, row, catalogue.body(row.embodiment))
    assert found["action_groups"] and set(found["proprio_groups"]) == set(row.proprio)


def test_rows_of_ones_own(capsys, tmp_path):
    file = tmp_path / "my_rows.py"
    file.write_text(FILE.replace('"plain": dict(embodiment="my_arm"),', ""))
    _, found = printed(capsys, "kitchen", "--file", str(file))
    assert found["derived"] == {"twice": ["action"]} and found["control_hz"] == 5
    file.write_text(FILE)
    assert cli.main(["data", "rows", "kitchen", "--file", str(file)]) == 2
    assert "row 'plain': missing" in capsys.readouterr().err
    assert cli.main(["data", "rows", "voila"]) == 2
    assert "did you mean 'viola'" in capsys.readouterr().err
    file.write_text(FILE.replace('{"hand": "obs', '{"hnad": "obs').replace('"plain"', '# "plain"'))
    assert cli.main(["data", "rows", "kitchen", "--file", str(file)]) == 2
    assert "proprio group: unknown 'hnad', did you mean 'hand'" in capsys.readouterr().err
