"""The parity tool judges: it fails on what differs, is missing, or is unknown to it."""

import json
import shutil

import numpy as np
import pytest

from tools import compare_octo
from tools.octo_golden import forward, golden


@pytest.fixture
def folder(fixtures_dir, tmp_path):
    """A copy of the tiny golden folder with few arrays, that may be changed."""
    source = fixtures_dir / "octo_golden" / "tiny"
    copy = tmp_path / "golden"
    shutil.copytree(source / "ckpt", copy / "ckpt")
    shutil.copy(source / "inputs.npz", copy)
    with np.load(source / "outputs.npz") as file:
        kept = {name: file[name] for name in file if name.startswith("schedule/cosine")}
    write(copy, kept)
    return copy


def write(folder, arrays: dict, listed: dict | None = None) -> None:
    np.savez(folder / "outputs.npz", **arrays)
    rows = [[name, list(a.shape), str(a.dtype)] for name, a in (listed or arrays).items()]
    (folder / "arrays.json").write_text(json.dumps({"outputs.npz": rows}))


def judged(folder, capsys) -> tuple[int, dict]:
    code = compare_octo.main(["--golden", str(folder)])
    return code, json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_a_changed_array_and_a_missing_one_fail(folder, capsys):
    with np.load(folder / "outputs.npz") as file:
        whole = dict(file)
    code, found = judged(folder, capsys)
    assert code == 0 and found["unaccounted"] == {}
    assert {f"outputs.npz:{name}" for name in whole} <= set(found)
    name = "schedule/cosine_beta_20"
    write(folder, whole | {name: whole[name] + np.float32(1e-3)})
    code, found = judged(folder, capsys)
    assert code == 1 and not found[f"outputs.npz:{name}"]["pass"]
    assert found[f"outputs.npz:{name}"]["max_abs"] == pytest.approx(1e-3, rel=1e-3)
    write(folder, {n: a for n, a in whole.items() if n != name}, listed=whole)
    code, found = judged(folder, capsys)
    assert code == 1 and "missing" in found["unaccounted"][f"outputs.npz:{name}"]
    write(folder, whole | {"news/of_octo": np.zeros(3, np.float32)})
    code, found = judged(folder, capsys)
    assert code == 1 and list(found["unaccounted"]) == ["outputs.npz:news/of_octo"]


def test_a_foreign_folder_is_a_mistake(tmp_path, capsys):
    assert compare_octo.main(["--golden", str(tmp_path)]) == 2
    assert "expected a folder with ckpt/" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "variant2"])
def test_every_array_of_the_goldens(fixtures_dir, capsys, name):
    code, found = judged(fixtures_dir / "octo_golden" / name, capsys)
    wrong = [n for n, v in found.items() if isinstance(v, dict) and v.get("pass") is False]
    assert code == 0 and not wrong and not found["unaccounted"]
    assert len(found) > 100 if name == "tiny" else len(found) > 70


def test_masks_that_differ_in_one_place_fail(fixtures_dir):
    found = golden.Golden(fixtures_dir / "octo_golden" / "tiny")
    native = found.native()
    layout = native.network.layout("robot")
    assert layout.length == found.outputs["attention_mask"].shape[-1]
    wrong = found.outputs["attention_mask"].copy()
    wrong[0, 0, -1, 0] ^= True
    found.compare("attention_mask", wrong)
    assert not found.verdicts["outputs.npz:attention_mask"]["pass"]
    assert forward.ours("obs_task_language") == "repeat_language"
