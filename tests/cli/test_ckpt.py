"""`vla ckpt`: what it says of good checkpoints and of damaged ones, and what it exports."""

import dataclasses
import json
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from safetensors import numpy as safe_numpy

from tests.train import toy
from vla_jax import plugin, trees
from vla_jax.cli import main as cli
from vla_jax.train import checkpoint, checksums, examine, export

KEPT = dict(checksums=True, best_metric="m", best_keep=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(a run's folder with steps 1 and 2 and their checksums, its state)."""
    folder = tmp_path_factory.mktemp("ckpt") / "run"
    _, _, state = toy.saved(folder, checkpoint=KEPT)
    return folder, state


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "run")


def vla(capsys, *words):
    """(exit code, text, the JSON of the last line) of `vla ckpt …`."""
    code = cli.main(["ckpt", *map(str, words)])
    said = capsys.readouterr().out
    return code, said, json.loads(said.splitlines()[-1]) if said else None


def test_ls(run, capsys):
    shutil.copytree(run / "checkpoints/2", run / "checkpoints/3.orbax-checkpoint-tmp")
    shutil.copytree(run / "checkpoints/2", run / "checkpoints/4")
    (run / "checkpoints/4/meta/metadata").unlink()
    code, said, found = vla(capsys, "ls", run)
    rows = {row["folder"]: row for row in found["steps"]}
    complete = {name for name, row in rows.items() if row["complete"]}
    assert complete == {"best/1", "best/2", "checkpoints/1", "checkpoints/2"} and code == 0
    assert rows["checkpoints/3.orbax-checkpoint-tmp"]["wrong"] == "interrupted save"
    assert "metadata is missing" in rows["checkpoints/4"]["wrong"]
    assert rows["best/2"]["metric"] == 0.5 and rows["checkpoints/2"]["metric"] is None
    assert rows["checkpoints/2"]["n"] == {"robot": 32, "vl": 16}
    files = [path for path in (run / "checkpoints/2").rglob("*") if path.is_file()]
    assert rows["checkpoints/2"]["bytes"] == sum(path.stat().st_size for path in files)
    assert "robot=32 vl=16" in said


def test_ls_of_nothing(tmp_path, capsys):
    assert cli.main(["ckpt", "ls", str(tmp_path)]) == 2
    assert "holds no checkpoints" in capsys.readouterr().err


def test_show(made, capsys):
    folder, state = made
    _, said, found = vla(capsys, "show", folder)
    assert found["train_step"] == 2 and found["config"]["steps"] == 4
    assert found["provenance"]["versions"]["jax"] == jax.__version__
    rows = {row["path"]: row for row in found["arrays"]}
    expected = trees.flatten(state.variables)
    assert set(rows) == set(expected)
    for path, leaf in expected.items():
        assert (rows[path]["shape"], rows[path]["dtype"]) == (list(leaf.shape), "float32")
        np.testing.assert_allclose(rows[path]["norm"], jnp.sqrt(jnp.sum(leaf**2)), rtol=1e-5)
    _, _, found = vla(capsys, "show", folder, "--step", 1, "--item", "optimizer")
    assert "1/mu/params/kernel" in {row["path"] for row in found["arrays"]}
    assert cli.main(["ckpt", "show", str(folder), "--item", "parameters"]) == 2
    assert "did you mean 'params'" in capsys.readouterr().err


def test_diff(made, tmp_path, capsys):
    folder, state = made
    kernel = state.trained["params"]["kernel"]
    other = kernel.at[1, 2, 3].add(0.5)
    toy.saved(tmp_path / "other", steps=(2,), kernel=other, optimizer=dict(lr=0.5))
    code, said, found = vla(capsys, "diff", folder, tmp_path / "other")
    assert code == 0 and found["config"]["optimizer.lr"] == [0.01, 0.5]
    assert set(found["arrays"]) == {"params/kernel"} and found["equal"] == 6
    assert found["max_abs"] == pytest.approx(0.5, rel=1e-6)
    norm = max(float(jnp.linalg.norm(k)) for k in (kernel.ravel(), other.ravel()))
    assert found["max_relative"] == pytest.approx(0.5 / norm, rel=1e-5)
    assert "config.optimizer.lr: 0.01 -> 0.5" in said
    _, _, found = vla(capsys, "diff", folder, folder / "checkpoints/1")
    assert (found["arrays"], found["config"], found["equal"]) == ({}, {}, 7)


def test_diff_of_other_shapes(made, tmp_path):
    other = jnp.zeros((2, 16, 8))
    toy.saved(tmp_path / "other", steps=(2,), kernel=other)
    found = examine.diff(made[0] / "checkpoints/2", tmp_path / "other/checkpoints/2")
    assert found["shapes"] == {"params/kernel": ["float32[2, 16, 16]", "float32[2, 16, 8]"]}
    assert "params/kernel" not in found["arrays"]


def test_verify_of_a_good_one(made, capsys):
    for folder in (made[0], made[0] / "best/1"):
        code, _, found = vla(capsys, "verify", folder)
        assert (code, found["wrong"], found["hashed"]) == (0, [], True)
    arrays = len(jax.tree.leaves((made[1].variables, made[1].ema, made[1].opt_state)))
    assert vla(capsys, "verify", made[0])[2]["arrays"] == arrays


def test_verify_names_file_and_array(run, capsys):
    """One bit of each file in turn: every one is named; of params also the arrays it spoils."""
    step = run / "checkpoints/2"
    files = sorted(path for path in step.rglob("*") if path.is_file())
    for path in (path for path in files if path.name != checksums.FILE):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        wrong = checksums.check(step)
        assert wrong == [f"{path.relative_to(step).as_posix()}: its content has changed"]
        path.write_bytes(content)
    largest = max((step / "params/ocdbt.process_0/d").iterdir(), key=lambda p: p.stat().st_size)
    largest.unlink()
    code, said, found = vla(capsys, "verify", run)
    assert code == 1
    assert any(largest.name in line and "is missing" in line for line in found["wrong"])
    assert any(line.startswith("array params params/kernel: ") for line in found["wrong"])


def test_verify_without_checksums_reads_the_arrays(tmp_path, capsys):
    kernel = jnp.ones((2, 16, 16)).at[0, 0, :3].set(jnp.asarray([jnp.nan, jnp.inf, 1.0]))
    toy.saved(tmp_path / "run", steps=(2,), kernel=kernel)
    code, said, found = vla(capsys, "verify", tmp_path / "run")
    assert code == 1 and not found["hashed"] and "no checksums.json" in said
    line = "array params params/kernel: 2 of 512 numbers are not finite"
    assert found["wrong"] == [line]


def test_checksums_of_a_save_that_was_killed(run):
    (run / "checkpoints/2" / checksums.FILE).unlink()
    assert checksums.check(run / "checkpoints/2") is None
    assert examine.verify(run / "checkpoints/2")["wrong"] == []
    checksums.write(run / "checkpoints/2")
    assert checksums.check(run / "checkpoints/2") == []


@pytest.mark.parametrize("shard_bytes, files", [(10**9, 1), (1100, 2), (1, 7)])
@pytest.mark.parametrize("averaged", [True, False])
def test_export_there_and_back(made, tmp_path, shard_bytes, files, averaged):
    folder = made[0] / "checkpoints/2"
    found = export.write(folder, tmp_path / "x", averaged=averaged, shard_bytes=shard_bytes)
    assert len(found["files"]) == files == len(list((tmp_path / "x").glob("*.safetensors")))
    expected = trees.flatten(checkpoint.load(str(folder), averaged=averaged).variables)
    got = {}
    for name in found["files"]:
        with safetensors.safe_open(tmp_path / "x" / name, "numpy") as file:
            stored = json.loads(file.metadata()["config"])
            got |= {path: file.get_tensor(path) for path in file.keys()}
    assert stored == json.loads((folder / "meta/metadata").read_text())["config"]
    assert set(got) == set(expected)
    for path, leaf in expected.items():
        assert got[path].dtype == leaf.dtype
        np.testing.assert_array_equal(got[path], leaf)
    if files > 1:
        index = json.loads((tmp_path / "x/model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(expected)
        for path, name in index["weight_map"].items():
            assert path in safe_numpy.load_file(tmp_path / "x" / name)
        assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in expected.values())


def test_export_of_half_precision(tmp_path):
    kernel = jnp.linspace(-3, 3, 512).reshape(2, 16, 16).astype(jnp.bfloat16)
    toy.saved(tmp_path / "run", steps=(2,), kernel=kernel)
    export.write(tmp_path / "run/checkpoints/2", tmp_path / "x", averaged=False)
    got = safe_numpy.load_file(tmp_path / "x/model.safetensors")["params/kernel"]
    assert got.dtype == jnp.bfloat16 and np.array_equal(got, kernel)


def test_export_takes_the_average_where_there_is_one(made, tmp_path):
    folder, state = made
    moved = dataclasses.replace(state, ema=jax.tree.map(lambda leaf: leaf + 1, state.ema))
    config = toy.config()
    saver = checkpoint.Checkpoints(str(tmp_path / "run"), config, checkpoint.Assets())
    saver.save(1, moved, {"robot": 1, "vl": 1})
    saver.close()
    for averaged, shift in ((True, 1.0), (False, 0.0)):
        out = tmp_path / f"x{averaged}"
        export.write(tmp_path / "run/checkpoints/1", out, averaged=averaged)
        got = safe_numpy.load_file(out / "model.safetensors")["params/kernel"]
        np.testing.assert_array_equal(got, np.asarray(state.trained["params"]["kernel"]) + shift)


def test_a_refused_export_leaves_nothing(run, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("kept")
    with pytest.raises(plugin.UserError, match="give a new folder"):
        export.write(run / "checkpoints/2", tmp_path / "full")
    shutil.rmtree(run / "checkpoints/2/ema/ocdbt.process_0/d")
    assert cli.main(["ckpt", "export", str(run), "--out", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert "checkpoints/2 is damaged" in said and "train_step 1" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "run"]


def test_checksums_of_a_save_that_is_dropped_meanwhile(run, monkeypatch):
    """The retention moves it away after its last file is hashed: no step of that name returns."""
    step, of = run / "checkpoints/2", checksums._of
    left = [path for path in step.rglob("*") if path.is_file() and path.name != checksums.FILE]

    def last_then_dropped(path):
        found = of(path)
        left.pop()
        if not left:
            step.rename(run / "dropped")
        return found

    monkeypatch.setattr(checksums, "_of", last_then_dropped)
    with pytest.raises(FileNotFoundError):
        checksums.write(step)
    assert not step.exists() and (run / "dropped/params").is_dir()


def test_checksums_do_not_wait_for_a_save_that_was_dropped(run):
    file = run / "checkpoints/2" / checksums.FILE
    file.unlink()
    (run / "checkpoints/1").rename(run / "dropped")
    writer = checksums.Writer()
    for name in ("checkpoints/1", "best/9", "checkpoints/2"):  # best/9 is still being written
        writer.add(run / name)
    limit = time.monotonic() + 20
    while not file.exists() and time.monotonic() < limit:
        time.sleep(0.02)
    assert file.exists(), "before the run has ended"
    writer.finish()
    assert not (run / "checkpoints/1").exists() and not (run / "best/9").exists()
