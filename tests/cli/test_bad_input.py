"""What users get wrong: one clear message, exit code 2, no traceback, nothing half-written."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from tests.data import conftest as tiny
from tests.train import toy
from vla_jax.cli import main as cli

BODY = """
import dataclasses
from vla_jax.embodiments import widowx
EMBODIMENT = dataclasses.replace(widowx.EMBODIMENT, {changes})
"""
ARM = """
from tests.data.conftest import ARM as EMBODIMENT
"""
NATIVE = """
from vla_jax import config

def get_config(arg=""):
    a = config.parse_args(arg, data="", body="")
    c = config.new()
    c.steps = 1
    c.embodiments = (a.body,)
    c.model.trunk = dict(width=16, depth=1, heads=2, mlp=16)
    c.model.tokenizers.hand = dict(type="proprio", group="hand", size=3)
    c.model.readouts = dict(action=1)
    c.model.heads.action = dict(type="regression", readout="action", hidden=(8,))
    c.model.rules = (("*", "*", "past_or_now"),)
    source = dict(type="rlds", path=a.data, language="optional")
    c.streams.robot = dict(
        batch_size=8, groups=("hand",), readouts=("action",), heads=("action",),
        objectives=dict(action=dict(type="action", head="action")),
        mixture=dict(arm=dict(source=source, weight=1.0)),
    )
    return c
"""


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs `vla train` and returns its one message; nothing may be left in the workdir."""

    def run(*words, config="configs/debug.py", workdir=None):
        folder = pathlib.Path(workdir or tmp_path / "run")
        before = listing(folder)
        capsys.readouterr()
        code = cli.main(["train", "--config", config, "--workdir", str(folder), *words])
        error = capsys.readouterr().err
        assert code == 2, error
        assert "Traceback" not in error
        messages = [line for line in error.splitlines() if line.startswith("vla train: ")]
        assert len(messages) == 1, error
        assert listing(folder) == before
        return error[error.index("vla train: ") :]

    return run


def listing(folder: pathlib.Path) -> dict:
    """Every file with its size and time, and every folder, itself included; {} without one."""
    found = {}
    for path in sorted((folder, *folder.rglob("*"))) if folder.is_dir() else ():
        about = path.stat()
        found[str(path)] = (about.st_size, about.st_mtime_ns) if path.is_file() else None
    return found


@pytest.fixture
def bridge(fixtures_dir, tmp_path):
    """A copy of the Bridge fixture that may be broken."""
    return pathlib.Path(
        shutil.copytree(fixtures_dir / "bridge_dataset" / "1.0.0", tmp_path / "bridge" / "1.0.0")
    )


def test_unknown_config_key(refused):
    message = refused("--config.optimizer.learning_rate=3", "--config.stepz=5")
    assert "unknown 'config.stepz', did you mean 'config.steps'?" in message
    assert "config.optimizer.warmup" in refused("--config.optimizer.warmpu=3")


def test_unknown_config_argument_and_verb(refused, capsys):
    assert "did you mean 'data'?" in refused(config="configs/debug.py:dta=x")
    assert "configs/debg.py: no such file" in refused(config="configs/debg.py")
    assert cli.main(["tarin"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_unknown_plugin(fixtures_dir, refused):
    config = f"configs/debug.py:data={fixtures_dir / 'bridge_dataset' / '1.0.0'}"
    message = refused("--config.model.heads.action.type=flwo", config=config)
    assert "heads: unknown 'flwo', did you mean 'flow'?" in message
    message = refused("--config.model.heads.action.hiden=(8,)", config=config)
    assert "unknown 'hiden', did you mean 'hidden'?" in message
    message = refused("--config.streams.robot.mixture.bridge.source.type=rlsd", config=config)
    assert "data.sources: unknown 'rlsd', did you mean 'rlds'?" in message


def test_missing_dataset(refused, bridge):
    config = f"configs/debug.py:data={bridge.parent.parent}/bridge_data"
    message = refused(config=config)
    assert "bridge_data: no such data set folder" in message and "'bridge'" in message
    (bridge / "bridge_dataset-train.tfrecord-00000-of-00001").unlink()
    assert "no such shard" in refused(config=f"configs/debug.py:data={bridge}")


def test_corrupt_record(refused, bridge):
    shard = bridge / "bridge_dataset-train.tfrecord-00000-of-00001"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    message = refused(config=f"configs/debug.py:data={bridge}")
    assert shard.name in message and "record " in message and "byte " in message


@pytest.mark.parametrize(
    "changes, expected",
    [
        (
            "proprio=(dataclasses.replace(widowx.EMBODIMENT.proprio[0], size=6),)",
            ["proprio 'ee' has 7 numbers, expected 6", "embodiment 'widowx'"],
        ),
        ("views=('wrist',)", ["view of widowx", "'primary'", "Known: wrist"]),
    ],
)
def test_data_that_do_not_fit_the_body(refused, fixtures_dir, tmp_path, changes, expected):
    (tmp_path / "body.py").write_text(BODY.format(changes=changes))
    config = f"configs/debug.py:data={fixtures_dir / 'bridge_dataset' / '1.0.0'}"
    message = refused(f"--config.embodiments=('{tmp_path / 'body.py'}',)", config=config)
    assert all(part in message for part in expected), message


@pytest.mark.parametrize(
    "flag, expected",
    [
        (
            "streams.robot.image_sizes.primary=(32,32)",
            "32, 32, 3), expected it to end with (64, 64, 3)",
        ),
        ("model.tokenizers.proprio.size=6", "expected it to end with (6,)"),
        ("streams.robot.batch_size=7", "batch_size: 7 is not divisible by 8"),
    ],
)
def test_shapes_that_do_not_fit_the_network(refused, fixtures_dir, flag, expected):
    config = f"configs/debug.py:data={fixtures_dir / 'bridge_dataset' / '1.0.0'}"
    assert expected in refused(f"--config.{flag}", config=config).replace("\n", " ")


def test_an_action_that_is_not_finite(refused, tmp_path):
    broken = tiny.episode(3)
    broken["steps/action"][4, 1] = np.nan
    episodes = [tiny.episode(i) for i in range(3)] + [broken]
    folder = tiny.write_folder(tmp_path / "arm_data" / "1.0.0", episodes)
    (tmp_path / "arm.py").write_text(ARM)
    (tmp_path / "native.py").write_text(NATIVE)
    config = f"{tmp_path / 'native.py'}:data={folder},body={tmp_path / 'arm.py'}"
    message = refused(config=config)
    assert "action" in message and "finite" in message and "4" in message


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of another network."""
    folder = tmp_path_factory.mktemp("toy") / "run"
    toy.run(toy.config(steps=1, checkpoint=dict(every=1)), folder)
    return folder


@pytest.mark.mesh
def test_a_checkpoint_of_another_architecture(refused, trained, fixtures_dir):
    config = f"configs/debug.py:data={fixtures_dir / 'bridge_dataset' / '1.0.0'}"
    message = refused(config=config, workdir=trained)
    assert "its params are of another architecture" in message
    assert "missing     params/heads_action" in message and "config.init_from" in message


@pytest.mark.mesh
def test_a_checkpoint_of_another_format(refused, trained, fixtures_dir, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "other")
    meta = folder / "checkpoints" / "1" / "meta" / "metadata"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "format_version": 99}))
    config = f"configs/debug.py:data={fixtures_dir / 'bridge_dataset' / '1.0.0'}"
    message = refused(config=config, workdir=folder)
    assert "format_version 99, this code reads 1 to 2" in message
    message = refused(f"--config.init_from.checkpoint={folder}", config=config)
    assert "format_version 99" in message


@pytest.mark.mesh
def test_a_start_from_another_architecture(refused, trained, fixtures_dir):
    config = f"configs/debug.py:data={fixtures_dir / 'bridge_dataset' / '1.0.0'}"
    path = "params/heads_action/mlp/hidden_0/kernel"  # as if the toy had it, in another shape
    rename = f"--config.init_from.rename=(('{path}', 'params/kernel'),)"
    message = refused(f"--config.init_from.checkpoint={trained}", rename, config=config)
    assert "the checkpoint is of another architecture" in message and "init_from.fresh" in message
    listed = dict(line.strip().split(": ") for line in message.splitlines()[1:])
    assert listed.pop(path).startswith("checkpoint has shape (2, 16, 16), this network needs (")
    assert all(what.startswith("checkpoint has nothing, this") for what in listed.values())
    assert any(name.startswith("params/trunk/") for name in listed)


def test_a_start_from_a_missing_folder(refused, fixtures_dir, tmp_path):
    config = f"configs/debug.py:data={fixtures_dir / 'bridge_dataset' / '1.0.0'}"
    message = refused(f"--config.init_from.checkpoint={tmp_path / 'none'}", config=config)
    assert "does not exist" in message and f"{tmp_path / 'none'}" in message
    (tmp_path / "empty").mkdir()
    message = refused(f"--config.init_from.checkpoint={tmp_path / 'empty'}", config=config)
    assert "holds no complete checkpoint" in message and "checkpoints/STEP/params" in message


def test_unknown_writer(refused, fixtures_dir):
    config = f"configs/debug.py:data={fixtures_dir / 'bridge_dataset' / '1.0.0'}"
    message = refused("--config.writers=('jsnol',)", config=config)
    assert "train.writers: unknown 'jsnol', did you mean 'jsonl'? Known: jsonl" in message
