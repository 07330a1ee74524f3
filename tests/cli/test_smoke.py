"""`vla smoke` judges a config and a plug-in, and notices what does not agree."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.cli import main as cli
from vla_jax.cli import smoke as verb
from vla_jax.train import optimizer, smoke, smoke_plugin

HEAD = '''
"""A head of somebody's own laboratory."""
from vla_jax.heads import regression

DEBUG = dict(hidden=(4,))


def make(context, *, readout, hidden=(512,), **more):
    return regression.make(context, readout=readout, hidden=hidden, **more)
'''


def shrunk(path: str = "configs/demo_cofinetune.py") -> config_lib.TrainConfig:
    return smoke.shrink(config_lib.load(path), dict(data=1, fsdp=2, tensor=2, sequence=2))


@pytest.mark.mesh
@pytest.mark.slow
def test_debug_config_on_a_mesh(capsys):
    code = cli.main(["smoke", "--config", "configs/debug.py", "--mesh", "1,2,2,2"])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert code == 0 and found["agree"], found
    assert found["within"]["restart_bitwise"] and found["arrays_sharded"] > 0
    assert found["mesh"] == dict(data=1, fsdp=2, tensor=2, sequence=2)
    assert len(found["losses_mesh"]) == 4 and found["gradient_difference"] < 1e-5


@pytest.mark.mesh
@pytest.mark.slow
@pytest.mark.parametrize("name", ["octo_base_pretrain_web", "octo_base_cofinetune_oxe"])
def test_the_pods_job_at_debug_size(name, capsys):
    code = cli.main(["smoke", "--config", f"configs/{name}.py", "--mesh", "1,2,2,2"])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert code == 0 and found["agree"], found
    assert found["dtype"] == "float32" and "vl" in found["streams"]


@pytest.mark.slow
@pytest.mark.mesh
def test_a_strangers_head(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "mamba.py").write_text(HEAD)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert cli.main(["smoke", "--plugin", "heads=my_lab.mamba", "--mesh", "2"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["agree"] and found["of"] == "heads=my_lab.mamba"


@pytest.mark.slow
@pytest.mark.parametrize("folder", smoke_plugin.FOLDERS)
def test_every_built_in_plugin(folder):
    axes = dict(data=1, fsdp=2, tensor=2, sequence=2)
    # Bodies are tables that differ in numbers: all are built below, some are trained.
    step = 5 if folder == "embodiments" else 1
    for type_ in sorted(plugin.names(folder))[::step]:
        found = smoke.run(smoke_plugin.config(f"{folder}={type_}"), axes)
        assert found["agree"], (folder, type_, found)


@pytest.mark.parametrize("folder", smoke_plugin.FOLDERS)
def test_built_in_plugins_find_their_place(folder):
    # An objective is tried on head after head: `make test-slow` tries every one.
    for type_ in ("waypoint",) if folder == "objectives" else plugin.names(folder):
        made = smoke_plugin.config(f"{folder}={type_}")
        tokenizer, _ = smoke.text_tokenizer(made)
        smoke.parts(smoke.shrink(made, {}), tokenizer)


def test_what_shrinks_and_what_stays():
    full, small = config_lib.load("configs/demo_cofinetune.py"), shrunk()
    assert (small.model.trunk["width"], small.model.trunk["depth"]) == (32, 2)
    assert small.streams["robot"].image_sizes == {"primary": (24, 24)}
    assert small.model.heads["action"]["hidden"] == (8,)
    assert {s.batch_size for s in small.streams.values()} == {4}
    assert small.model.rules == full.model.rules
    assert small.model.heads["action"]["reads"] == full.model.heads["action"]["reads"]
    assert small.streams["robot"].objectives == full.streams["robot"].objectives


def test_a_mesh_of_three_and_values_per_layer():
    config = config_lib.load("configs/debug.py")
    rows = ((r".*", {"lr": (1.0, 0.5)}),)
    trunk = {**config.model.trunk, "depth": 2, "kv_heads": 2, "unroll": 2}
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, trunk=trunk),
        optimizer=dataclasses.replace(config.optimizer, groups=rows, accumulation=4),
    )
    small = smoke.shrink(config, dict(data=3, tensor=3))
    assert small.model.trunk["heads"] % 3 == 0 and small.model.trunk["unroll"] == 1
    assert small.streams["robot"].batch_size == 6 and small.optimizer.accumulation == 2
    assert small.optimizer.groups == rows


@pytest.mark.parametrize("type_", ["adamw", "muon"])
def test_gradients_are_read_from_every_optimizer_with_momentum(type_):
    params = {"params": {"matrix": np.ones((4, 6), np.float32), "bias": np.ones(6, np.float32)}}
    rows = ((r".*matrix", {"inputs": (0,), "outputs": (1,)}),)
    config = config_lib.OptimizerConfig(type=type_, clip=None, muon=rows)
    chain = optimizer.make(config, 4, params)
    grads = jax.tree.map(lambda leaf: np.full_like(leaf, 2.0), params)
    _, state = chain.update(grads, chain.init(params), params)
    found = smoke.first_moment(state)
    assert set(found) == {"params/matrix", "params/bias"}
    for path, leaf in found.items():  # in the gradient's direction, at a scale of the optimizer's
        assert leaf.shape == params["params"][path.split("/")[1]].shape
        assert np.all(leaf > 0) and np.ptp(leaf) == 0


def test_an_optimizer_without_momentum_is_refused():
    params = {"w": np.ones(3, np.float32)}
    chain = optimizer.make(config_lib.OptimizerConfig(type="adafactor"), 4, params)
    with pytest.raises(plugin.UserError, match="keeps none; expected 'adamw' or 'muon'"):
        smoke.first_moment(chain.init(params))


def test_what_does_not_agree_is_noticed():
    good = smoke.Trained(
        losses=[1.0, 0.5],
        gradient_norms=[1.0, 1.0],
        gradient={"w": np.ones(3)},
        change={"w": np.ones(3)},
        restart_bitwise=True,
        sharded=1,
        parameters=3,
        seconds=0.0,
    )
    assert all(smoke.compare(good, good)["within"].values())
    for name, bad in dict(
        loss_difference=dict(losses=[1.0, 0.51]),
        gradient_difference=dict(gradient={"w": np.array([1.0, 1.0, 1.1])}),
        change_difference=dict(change={"w": np.array([1.0, 1.0, math.nan])}),
        restart_bitwise=dict(restart_bitwise=False),
    ).items():
        within = smoke.compare(good, dataclasses.replace(good, **bad))["within"]
        assert [what for what, fine in within.items() if not fine] == [name]
    still = dataclasses.replace(good, change={"w": np.zeros(3)})
    assert not smoke.compare(still, still)["within"]["parameters_moved"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--mesh", "2,0"], "--mesh: got '2,0'"),
        (["--mesh", "two"], "expected up to four sizes"),
        ([], "give either --config FILE or --plugin"),
        (["--plugin", "heads"], "Expected FOLDER=TYPE"),
        (["--plugin", "head=flow"], "did you mean 'heads'"),
        (["--plugin", "heads=flwo"], "did you mean 'flow'"),
        (["--plugin", "heads=no_lab.mamba"], "cannot import the plug-in 'no_lab.mamba'"),
        (["--config", "configs/nowhere.py"], "no such file"),
    ],
)
def test_mistakes(words, message, capsys):
    assert cli.main(["smoke", *words]) == 2
    assert message in capsys.readouterr().err


def test_another_process_is_started_where_devices_lack(monkeypatch):
    started = []

    class Done:
        returncode = 0

    def run(command, env):
        started.append((command, env))
        return Done

    monkeypatch.setattr(verb.subprocess, "run", run)
    flag = "--config.model.trunk.position=rope"
    assert cli.main(["smoke", "--config", "configs/debug.py", "--mesh", "16", flag]) == 0
    command, environment = started[0]
    assert command[-5:] == ["--config", "configs/debug.py", "--mesh", "16", flag]
    assert environment["XLA_FLAGS"].count("device_count") == 1
    assert "device_count=16" in environment["XLA_FLAGS"]
