"""Disks, folders and files that fail: a clear error, and the last good checkpoint stays usable."""

import gc
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import pytest

from tests.train import toy
from vla_jax import plugin
from vla_jax.train import checkpoint, lock, stored

ONE = jax.devices()[:1]
# When one array of a restore fails, TensorStore's callbacks for others find Orbax's loop closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def the_past_is_frozen():
    """What the tests before left is no garbage of these: looking through it takes 2 s a time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_late_noise():
    """What such a restore leaves is collected here, not in the middle of another test."""
    yield
    time.sleep(0.2)
    gc.collect()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(a run's folder with steps 1 and 2, config, plan, state)."""
    folder = tmp_path_factory.mktemp("damage") / "run"
    return folder, *toy.saved(folder)


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "run")


def largest(folder: pathlib.Path) -> pathlib.Path:
    return max((p for p in folder.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut(step):
    file = largest(step / "params/ocdbt.process_0")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def garble(step):
    file = largest(step / "params/ocdbt.process_0")
    file.write_bytes(bytes(255 - byte for byte in file.read_bytes()))


DAMAGE = {
    "cut": cut,
    "garbled": garble,
    "deleted shard": lambda step: largest(step / "params/ocdbt.process_0").unlink(),
    "deleted shard of the optimizer": lambda step: shutil.rmtree(step / "optimizer/d"),
    "no list of arrays": lambda step: (step / "params/_METADATA").write_text("{"),
    "no manifest": lambda step: (step / "optimizer/manifest.ocdbt").write_bytes(b"\0" * 40),
    "no meta": lambda step: (step / "meta/metadata").unlink(),
    "torn meta": lambda step: (step / "meta/metadata").write_text('{"step": 2,'),
    "empty": lambda step: [shutil.rmtree(p) for p in step.iterdir() if p.is_dir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(made, run, damage):
    _, config, plan, state = made
    step = run / "checkpoints/2"
    DAMAGE[damage](step)
    saver = checkpoint.Checkpoints(str(run), config, checkpoint.Assets())
    advice = rf"checkpoint .*/checkpoints/2 is damaged(?s:.)*train_step 1.*mv {step} {step}.damaged"
    with pytest.raises(plugin.UserError, match=advice):
        saver.restore(plan.abstract)
    saver.close()
    # What the message says: move it away, and the same command goes on from the one before.
    step.rename(f"{step}.damaged")
    saver = checkpoint.Checkpoints(str(run), config, checkpoint.Assets())
    restored, meta = saver.restore(plan.abstract)
    assert meta.step == 1 and int(restored.step) == 1
    for a, b in zip(jax.tree.leaves(restored.variables), jax.tree.leaves(state.variables)):
        np.testing.assert_array_equal(a, b)
    saver.save(2, restored, {"robot": 32, "vl": 16})
    saver.close()
    assert checkpoint.load(str(run)).meta.step == 2
    assert pathlib.Path(f"{step}.damaged").is_dir()


@pytest.mark.parametrize("damage", ["cut", "garbled", "deleted shard", "no list of arrays"])
def test_a_policy_says_so_too(run, damage):
    DAMAGE[damage](run / "checkpoints/2")
    with pytest.raises(plugin.UserError, match="checkpoints/2 is damaged: params"):
        checkpoint.load(str(run))
    assert checkpoint.load(str(run), step=1).meta.step == 1


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from tests.train import toy
from vla_jax import plugin
from vla_jax.train import checkpoint
import numpy as np
kernel = np.random.default_rng(0).normal(size=(64, 64, 64)).astype("float32")
config, plan, state = toy.saved(sys.argv[1], steps=(1,), kernel=kernel)
saver = checkpoint.Checkpoints(sys.argv[1], config, checkpoint.Assets())
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    saver.save(2, state, {"robot": 32, "vl": 16})
    saver.wait()
except plugin.UserError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print("said", error)
loaded = checkpoint.load(sys.argv[1], averaged=False)
assert np.array_equal(loaded.variables["params"]["kernel"], kernel)
print("step", loaded.meta.step)
saver = checkpoint.Checkpoints(sys.argv[1], config, checkpoint.Assets())
saver.save(2, state, {"robot": 32, "vl": 16})  # over what the failed save left
saver.close()
print("then", checkpoint.load(sys.argv[1]).meta.step)
sys.stdout.flush()
import os; os._exit(0)
"""


def test_a_disk_that_fills_up_during_a_save(tmp_path):
    """A limit on the size of files stands for the disk: writes fail in the middle, in threads."""
    words = [sys.executable, "-c", FULL, str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=pathlib.Path().absolute())
    said = done.stdout
    assert (
        "could not be written" in said
        and "File too large" in said
        and "the last whole one is train_step 1" in said
    ), done.stdout + done.stderr[-3000:]
    assert "step 1" in said and "then 2" in said, done.stdout + done.stderr[-3000:]


@pytest.fixture
def somebody():
    """A folder that others may look into; the test goes on as somebody who may not write there."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="vla_readonly_"))
    yield folder
    os.seteuid(os.getuid())
    subprocess.run(["chmod", "-R", "u+w", str(folder)])
    shutil.rmtree(folder)


def close(folder: pathlib.Path) -> None:
    subprocess.run(["chmod", "-R", "a+rX,a-w", str(folder)], check=True)
    if os.getuid() == 0:  # root may write wherever it likes
        os.seteuid(65534)


def test_a_folder_that_cannot_be_written(somebody, made):
    run = shutil.copytree(made[0], somebody / "run")
    before = sorted(path for path in run.rglob("*"))
    close(somebody)
    with pytest.raises(plugin.UserError, match=f"--workdir {run}: nothing can be written there"):
        toy.run(toy.config(), run, devices=ONE)
    with pytest.raises(plugin.UserError, match="nothing can be written there"):
        toy.run(toy.config(), somebody / "new" / "run", devices=ONE)
    assert sorted(run.rglob("*")) == before and not (somebody / "new").exists()
    assert checkpoint.load(str(run)).meta.step == 2
    with pytest.raises(plugin.UserError, match="checkpoints cannot be written there"):
        checkpoint.Checkpoints(str(somebody / "new"), made[1], checkpoint.Assets())


HOLDER = """
import sys, time
from vla_jax.train import lock
with lock.hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(100)
"""


def test_two_runs_in_one_folder(made, tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(plugin.UserError, match=rf"process {holder.pid} on .* trains there"):
            toy.run(toy.config(), folder, devices=ONE, ready=pytest.fail)
        assert [path.name for path in folder.iterdir()] == [lock.FILE]
        holder.kill()
    assert (folder / lock.FILE).exists()  # the file of the dead run is no lock
    with lock.hold(str(folder)):
        with pytest.raises(plugin.UserError, match=f"process {os.getpid()} on"):
            with lock.hold(str(folder)):
                pass
    with lock.hold(str(tmp_path / "a/b")):
        assert (tmp_path / "a/b" / lock.FILE).exists()
    assert sorted(tmp_path.rglob("*")) == [folder]


@pytest.mark.parametrize(
    "said, expected",
    [
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 80 bytes", "fsdp"),
        ("RESOURCE_EXHAUSTED: Error opening file: Too many open files", "damaged|unreadable"),
    ],
)
def test_what_is_full_is_told(said, expected, tmp_path):
    error = stored.refused(tmp_path, "params/kernel: ", RuntimeError(said))
    assert re.search(expected, str(error)) and said in str(error), str(error)
