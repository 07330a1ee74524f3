import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from tests.train import toy
from vla_jax import config as config_lib
from vla_jax import plugin, trees, types
from vla_jax.parallel import mesh as meshes
from vla_jax.train import checkpoint, examine, start, trash

SPACE = types.ActionSpace(
    name="arm",
    control_hz=10.0,
    groups=(
        types.ActionGroup(
            name="xyz",
            size=3,
            quantity="position",
            representation="delta",
            reference="previous_command",
            limits=(-1.0, 1.0),
        ),
    ),
)
ASSETS = checkpoint.Assets(
    normalizer='{"entries": {"z": 1, "a": 2}}',
    text_tokenizer=bytes(range(256)),
    action_spaces=(SPACE,),
    mixtures={"robot": {"fingerprint": "f", "table": "t"}},
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder with resume points 1 and 2, config, the state's plan, the state)."""
    config, folder = toy.config(), tmp_path_factory.mktemp("run")
    mesh = meshes.make(devices=jax.devices()[:1])
    plan = start.plan(config, toy.Model(), toy.batches(config), mesh)
    state, saver = start.fresh(plan), checkpoint.Checkpoints(str(folder), config, ASSETS)
    for step in (1, 2):
        saver.save(step, state, {"robot": 16 * step, "vl": 8 * step})
    saver.close()
    return folder, config, plan, state


def test_the_folder_alone_is_enough(made):
    folder, config, plan, state = made
    loaded = checkpoint.load(str(folder))
    assert loaded.config == config and loaded.meta.step == 2
    assert loaded.meta.n == {"robot": 32, "vl": 16}
    assert loaded.meta.assets == ASSETS
    assert (loaded.normalizer, loaded.text_tokenizer) == (ASSETS.normalizer, bytes(range(256)))
    assert loaded.action_spaces == (SPACE,)
    assert loaded.meta.provenance["versions"]["jax"] == jax.__version__
    assert trees.diff(plan.variables, loaded.variables) == ""
    leaves = zip(jax.tree.leaves(loaded.variables), jax.tree.leaves(state.averaged))
    assert all(isinstance(a, np.ndarray) and np.array_equal(a, b) for a, b in leaves)
    assert checkpoint.load(str(folder), step=1).meta.step == 1
    assert checkpoint.find(str(loaded.folder)) == loaded.folder
    with pytest.raises(plugin.UserError, match="unknown '7'"):
        checkpoint.find(str(folder), step=7)


def test_no_checkpoint_is_a_clear_error(tmp_path):
    with pytest.raises(plugin.UserError, match="does not exist"):
        checkpoint.load(str(tmp_path / "nowhere"))
    with pytest.raises(plugin.UserError, match="holds no complete checkpoint"):
        checkpoint.load(str(tmp_path))


def test_another_architecture_is_refused_readably(made):
    folder, config, _, _ = made
    mesh = meshes.make(devices=jax.devices()[:1])
    plan = start.plan(config, toy.Model(width=24), toy.batches(config), mesh)
    saver = checkpoint.Checkpoints(str(folder), config, ASSETS)
    message = r"another architecture(?s:.*)params/kernel  expected float32\[2, 24, 24\], got"
    with pytest.raises(plugin.UserError, match=message):
        saver.restore(plan.abstract)
    frozen = toy.config(freeze=(("params/stem/.*", True),))
    plan = start.plan(frozen, toy.Model(), toy.batches(config), mesh)
    with pytest.raises(plugin.UserError, match="(?s)its optimizer.*unexpected .*mu.*stem"):
        saver.restore(plan.abstract)
    saver.close()


def test_another_format_version_is_refused(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "run")
    path = tmp_path / "run/checkpoints/2/meta/metadata"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"format_version": 0}))
    with pytest.raises(plugin.UserError, match="format_version 0, this code reads 1 to 2"):
        checkpoint.load(str(tmp_path / "run"))


def test_an_interrupted_save_is_never_read(made, tmp_path):
    """What a kill leaves: a folder under another name, holding part of the arrays."""
    folder = tmp_path / "run"
    shutil.copytree(made[0], folder)
    shutil.copytree(folder / "checkpoints/2", folder / "checkpoints/3.orbax-checkpoint-tmp")
    shutil.rmtree(folder / "checkpoints/3.orbax-checkpoint-tmp/params/d", ignore_errors=True)
    (folder / "checkpoints/4").mkdir()  # and one without a single item
    assert checkpoint.load(str(folder)).meta.step == 2
    shutil.rmtree(folder / "checkpoints/4")
    saver = checkpoint.Checkpoints(str(folder), made[1], ASSETS)
    assert saver.latest() == 2
    saver.save(3, made[3], {"robot": 48, "vl": 24})  # over what the kill left
    saver.close()
    assert checkpoint.load(str(folder)).meta.step == 3


KILLED = """
import os, sys, signal, threading, jax, numpy as np
from vla_jax import config as config_lib
from vla_jax.train import checkpoint, state
sys.path.insert(0, ".")
from tests.train import toy
config, folder, delay = toy.config(), sys.argv[1], float(sys.argv[2])
kernel = {"params": {"kernel": jax.random.normal(jax.random.key(0), (64, 64, 1024))}}
step = jax.numpy.int32(1)
made = state.TrainState(step=step, trained=kernel, frozen={}, opt_state={"n": step}, ema=None)
saver = checkpoint.Checkpoints(folder, config, checkpoint.Assets())
saver.save(1, made, {"robot": 1, "vl": 1})
saver.wait()
print("saved", flush=True)
threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
saver.save(2, made, {"robot": 2, "vl": 2})
saver.wait()
signal.pause()
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.02, 0.1, 0.3])
def test_kill_9_during_a_save_leaves_a_readable_checkpoint(tmp_path, delay):
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(delay)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == -9 and "saved" in done.stdout, done.stderr[-2000:]
    loaded = checkpoint.load(str(tmp_path))
    assert loaded.meta.step in (1, 2)
    expected = jax.random.normal(jax.random.key(0), (64, 64, 1024))
    np.testing.assert_array_equal(loaded.variables["params"]["kernel"], expected)


def test_a_save_returns_before_it_is_on_disk(made, tmp_path, monkeypatch):
    """The last thing of a save is a rename, in another thread: training goes on meanwhile."""
    _, config, _, state = made
    go, asked, rename = threading.Event(), [], os.rename

    def held_up(source, target, **more):
        asked.append(threading.current_thread())
        if not go.wait(60):
            raise OSError("the save was waited for")
        return rename(source, target, **more)

    saver = checkpoint.Checkpoints(str(tmp_path), config, ASSETS)
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", held_up)
        saver.save(1, state, {"robot": 16, "vl": 8})
        assert not (tmp_path / checkpoint.RESUME / "1").exists()
        go.set()
        saver.wait()
    assert threading.main_thread() not in asked and asked
    assert checkpoint.load(str(tmp_path)).meta.step == 1
    saver.close()


def test_a_dropped_save_is_moved_before_it_is_deleted(made, tmp_path, monkeypatch):
    """A deletion that is interrupted must not leave half a save under a save's name."""
    _, config, _, state = made
    config = dataclasses.replace(config, checkpoint=config_lib.CheckpointConfig(keep=1))
    place = tmp_path / checkpoint.RESUME
    with monkeypatch.context() as patched:
        patched.setattr(trash.Trash, "_work", lambda self: None)  # killed before it deletes
        saver = checkpoint.Checkpoints(str(tmp_path), config, ASSETS)
        for step in (1, 2, 3):
            saver.save(step, state, {"robot": 16, "vl": 8})
        saver.close()
    assert sorted(path.name for path in place.iterdir()) == [trash.FOLDER, "3"]
    assert {path.name for path in (place / trash.FOLDER).iterdir()} == {"1", "2"}
    assert examine.verify(place / trash.FOLDER / "2")["wrong"] == []  # whole: it was one rename
    assert checkpoint.find(str(tmp_path)).name == "3"
    saver = checkpoint.Checkpoints(str(tmp_path), config, ASSETS)  # the next run
    assert list((place / trash.FOLDER).iterdir()) == [] and saver.latest() == 3
    saver.save(4, state, {"robot": 16, "vl": 8})
    saver.close()
    assert [path.name for path in place.iterdir()] == ["4"]


def test_a_full_disk_is_said_before_anything_is_written(made, tmp_path, monkeypatch):
    _, config, _, state = made
    saver = checkpoint.Checkpoints(str(tmp_path / "run"), config, ASSETS)
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size - 1))
    for ask in (lambda: saver.check_space(state), lambda: saver.save(1, state, {"robot": 1})):
        with pytest.raises(plugin.UserError, match="a checkpoint takes .* free are"):
            ask()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size))
    saver.check_space(state)
    saver.close()
    assert list(tmp_path.iterdir()) == []


def test_a_dropped_save_counts_as_room(made, tmp_path, monkeypatch):
    """keep=1 on a disk for two saves: what retention has dropped is deleted before it is full."""
    _, config, _, state = made
    config = dataclasses.replace(config, checkpoint=config_lib.CheckpointConfig(keep=1))
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state))
    usage, place = shutil.disk_usage(tmp_path), tmp_path / checkpoint.RESUME

    def faked(path):
        saves = [*place.glob("[0-9]*"), *(place / trash.FOLDER).glob("*")]
        return usage._replace(free=size * (2 - len(saves)))

    monkeypatch.setattr(shutil, "disk_usage", faked)
    saver = checkpoint.Checkpoints(str(tmp_path), config, ASSETS)
    for step in (1, 2, 3):
        saver.save(step, state, {"robot": 16, "vl": 8})
    saver.close()
    assert [path.name for path in place.iterdir()] == ["3"]
