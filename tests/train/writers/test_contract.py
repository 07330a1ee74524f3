"""Every file of train/writers/ keeps the contract; the files are found by listing the folder."""

import inspect
import json
import math
import pathlib
import struct
import sys
import time
import types

import jax
import numpy as np
import pytest

from tests.train import toy
from vla_jax import plugin
from vla_jax.train import log

NAMES = plugin.names("train.writers")
# writer -> the package, an extra of that name, that it needs beyond the core's
PACKAGES = {"wandb": "wandb"}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    """Weights & Biases writes to disk alone, and keeps nothing of its own in the home."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path_factory.mktemp(name)))


def usable(name: str):
    """The writer's module; skips where its package is not installed."""
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name], reason=f"needs {name}: pip install -e .[{name}]")
    return plugin.module("train.writers", name)


def written(folder: pathlib.Path) -> dict[str, bytes]:
    """What the files below a folder hold, by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files}


def holds(data: bytes, value: float) -> bool:
    """Whether a number stands in a file, as text or as float32."""
    return str(value).encode() in data or struct.pack("<f", value) in data


@pytest.mark.parametrize("name", NAMES)
def test_plugin_form(name):
    module = plugin.module("train.writers", name)
    assert list(inspect.signature(module.make).parameters) == ["workdir"]
    assert module.__doc__ and module.make.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_there_after_close(name, tmp_path):
    workdir = tmp_path / "new" / "run"
    writer = usable(name).make(str(workdir))
    writer.write(3, {"robot/action": np.float32(0.15625), "loss": 0.40625})
    writer.write(4, {"loss": math.nan, "gradient_norm": math.inf})  # what breaks must be seen
    writer.close()
    data = b"".join(written(workdir).values())
    assert b"robot/action" in data and b"gradient_norm" in data
    assert holds(data, 0.15625) and holds(data, 0.40625) and not holds(data, 0.65625)
    assert set(written(tmp_path)) == set(written(workdir))


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_keeps_what_was_written(name, tmp_path, monkeypatch):
    module, clock = usable(name), time.time
    for step, value in ((1, 0.15625), (2, 0.40625)):
        before = written(tmp_path)
        # A run begins minutes after the one before; TensorBoard's files are named by the second.
        monkeypatch.setattr(time, "time", lambda step=step: clock() + 60 * step)
        writer = module.make(str(tmp_path))
        writer.write(step, {"loss": value})
        writer.close()
        after = written(tmp_path)
        assert all(after[path].startswith(data) for path, data in before.items())
    data = b"".join(after.values())
    assert holds(data, 0.15625) and holds(data, 0.40625)


def test_weights_and_biases_goes_on_as_the_same_run(tmp_path, monkeypatch):
    module, clock = usable("wandb"), time.time
    (tmp_path / "config.json").write_text('{"optimizer": {"lr": 0.015625}}')
    for step in (1, 2):
        monkeypatch.setattr(time, "time", lambda step=step: clock() + 60 * step)
        writer = module.make(str(tmp_path))
        writer.write(step, {"loss": 0.5})
        writer.close()
    (run,) = json.loads((tmp_path / "wandb.json").read_text()).values()
    logs = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert [log.name for log in logs] == [f"run-{run}.wandb"] * 2
    assert all(holds(log.read_bytes(), 0.015625) for log in logs)


def test_without_its_package_a_writer_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(plugin.UserError, match=r"pip install -e .\[wandb\]"):
        plugin.module("train.writers", "wandb").make(str(tmp_path))
    with pytest.raises(plugin.UserError, match=r"pip install -e .\[wandb\]"):
        log.check_writers(("jsonl", "wandb"), str(tmp_path))
    config = toy.config(writers=("jsonl", "wandb"))
    with pytest.raises(plugin.UserError, match=r"pip install -e .\[wandb\]"):
        toy.run(config, tmp_path / "run", devices=jax.devices()[:1], ready=pytest.fail)
    assert not list(tmp_path.iterdir())


def test_offline_files_cannot_lie_in_a_bucket(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace())
    with pytest.raises(plugin.UserError, match="WANDB_MODE=offline: .* local --workdir"):
        log.check_writers(("wandb",), "gs://bucket/run")


def test_who_has_not_logged_in_is_told_how(tmp_path, monkeypatch):
    class Refused(Exception):
        pass

    def init(**_):
        raise Refused("No API key configured")

    errors = types.SimpleNamespace(Error=Refused)
    stand_in = dict(init=init, errors=errors, teardown=None, Settings=lambda **_: None)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(**stand_in))
    with pytest.raises(plugin.UserError, match="No API key.*`wandb login`"):
        plugin.module("train.writers", "wandb").make(str(tmp_path))
