"""`vla data dump`: every field of an episode, against TFDS' own reading and known numbers."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.data.conftest import episode, write_folder
from vla_jax import plugin
from vla_jax.cli import main as cli
from vla_jax.data import dump

TFDS = """
import sys, numpy as np, tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
wanted, out = [int(i) for i in sys.argv[3:]], {}
def put(number, prefix, tree, stacked):
    if isinstance(tree, dict):
        for name, value in tree.items():
            put(number, f"{prefix}/{name}" if prefix else name, value, stacked)
    else:
        stacked.setdefault(f"{number}:{prefix}", []).append(tree)
for number, record in enumerate(tfds.as_numpy(builder.as_dataset("train"))):
    if number not in wanted:
        continue
    steps = {}
    for step in record.pop("steps"):
        put(number, "steps", step, steps)
    once = {}
    put(number, "", record, once)
    out.update({name: np.stack(value) for name, value in steps.items()})
    out.update({name: np.asarray(value[0]) for name, value in once.items()})
np.savez(sys.argv[2], **out)
"""


def test_every_field_is_what_tfds_reads(fixtures_dir, tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="TFDS reads the reference")
    path = fixtures_dir / "bridge_dataset" / "1.0.0"
    wanted = (0, 7, 24)
    command = [sys.executable, "-c", TFDS, path, tmp_path / "tfds.npz", *map(str, wanted)]
    subprocess.run(command, check=True, capture_output=True)
    with np.load(tmp_path / "tfds.npz") as file:
        reference = dict(file)
    for number in wanted:
        dump.dump(path, number, tmp_path / "episode.npz")
        with np.load(tmp_path / "episode.npz") as file:
            found = dict(file)
        names = {name.split(":")[1] for name in reference if name.startswith(f"{number}:")}
        assert set(found) == names and len(names) == 20
        for name, value in found.items():
            expected = reference[f"{number}:{name}"]
            if expected.dtype.kind in "SO":
                expected = np.char.decode(expected.astype(bytes), "utf-8")
            assert value.dtype.kind == expected.dtype.kind and value.shape == expected.shape, name
            np.testing.assert_array_equal(value, expected, err_msg=name)
        assert found["steps/observation/image_0"].shape == (10, 64, 64, 3)


def test_the_verb_takes_numbers_and_ids(tmp_path, capsys):
    folder = write_folder(tmp_path / "arm", [episode(i) for i in (5, 2, 9)], shards=1)
    for asked, action in (("0", 5), ("2", 9), ("e2", 2)):
        out = tmp_path / "episode.npz"
        assert cli.main(["data", "dump", str(folder), "--episode", asked, "--out", str(out)]) == 0
        last = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert last["id"] == f"e{action}" and last["steps"] == 7
        with np.load(out) as arrays:
            assert sorted(arrays) == sorted(last["fields"])
            assert arrays["steps/action"][:, 0].tolist() == [action] * 7
            pictures = arrays["steps/observation/images/primary"]
            assert pictures.shape == (7, 16, 16, 3) and pictures.dtype == np.uint8
            assert abs(int(pictures[4, 8, 8, 0]) - (40 + action)) <= 1
            assert str(arrays["episode_metadata/episode_id"]) == f"e{action}"
            assert arrays["steps/language_instruction"].dtype.kind == "U"


@pytest.mark.parametrize(
    "asked, out, message",
    [
        ("3", "x.npz", "a number, 0 to 2, or an id"),
        ("e7", "x.npz", "did you mean 'e"),
        ("-1", "x.npz", "unknown '-1'"),
        ("0", "x.npy", "ends in .npz"),
        ("0", "no/such/x.npz", "no folder"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, asked, out, message):
    folder = write_folder(tmp_path / "arm", [episode(i) for i in range(3)])
    with pytest.raises(plugin.UserError, match=message):
        dump.dump(folder, asked, tmp_path / out)
    assert [p.name for p in tmp_path.iterdir()] == ["arm"]


def test_a_failed_write_keeps_the_file_that_was_there(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "arm", [episode(i) for i in range(3)])
    (tmp_path / "x.npz").write_bytes(b"mine")

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(plugin.UserError, match="No space left"):
        dump.dump(folder, 0, tmp_path / "x.npz")
    assert (tmp_path / "x.npz").read_bytes() == b"mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["arm", "x.npz"]


def test_lerobot_episodes_are_what_lerobot_reads(fixtures_dir, tmp_path):
    folder = fixtures_dir / "lerobot" / "lerobot_v3_sample"
    starts, compared = (0, 12, 28), 0
    with np.load(f"{folder}_expected.npz") as file:
        expected = dict(file)
    for number, start in enumerate(starts):
        dump.dump(folder, number, tmp_path / "episode.npz")
        with np.load(tmp_path / "episode.npz") as file:
            found = dict(file)
        rows = {int(name.partition("/")[0]) for name in expected}
        for row in rows & set(range(start, start + len(found["action"]))):
            for name in ("observation.state", "timestamp", "frame_index", "episode_index", "index"):
                value = found[name][row - start].reshape(expected[f"{row}/{name}"].shape)
                np.testing.assert_array_equal(value, expected[f"{row}/{name}"], err_msg=name)
            np.testing.assert_array_equal(
                found["action"][row - start], expected[f"{row}/action"][0]
            )
            for camera in ("observation.images.top", "observation.images.wrist"):
                picture = found[camera][row - start]
                assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
                theirs = 255 * np.moveaxis(expected[f"{row}/{camera}"], 0, -1)
                assert np.abs(picture - theirs).max() < 1e-3
            compared += 1
    assert compared == 6


def test_both_versions_of_lerobot_hold_the_same(fixtures_dir, tmp_path):
    episodes = []
    for version in ("v21", "v3"):
        dump.dump(fixtures_dir / "lerobot" / f"lerobot_{version}_sample", 1, tmp_path / "x.npz")
        with np.load(tmp_path / "x.npz") as file:
            episodes.append(dict(file))
    old, new = episodes
    assert set(old) == set(new) and len(new) == 10
    for name in new:
        if name.startswith("observation.images"):  # encoded by two versions
            assert old[name].shape == new[name].shape
            assert np.abs(old[name].astype(int) - new[name]).mean() < 4, name
        else:
            np.testing.assert_array_equal(old[name], new[name], err_msg=name)
