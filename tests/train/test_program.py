"""One way to compile: the programs of a plan, a profile and a run are the same text."""

import ast
import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from jax._src import compiler

from tests.train import toy
from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.models import synthetic
from vla_jax.parallel import chips
from vla_jax.train import checkpoint, loop, plan, profiling, program, smoke

PROJECT = pathlib.Path(__file__).resolve().parents[2]
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
AXES = dict(data=2, fsdp=4)


@pytest.fixture(scope="module")
def config():
    small = smoke.shrink(config_lib.load("configs/debug.py"), AXES)
    return dataclasses.replace(small, steps=1, mesh=dataclasses.replace(small.mesh, **AXES))


@dataclasses.dataclass
class Rows:
    """Random batches as a stream of nested rows."""

    config: config_lib.TrainConfig
    stream: str
    n: int = 0

    def __next__(self):
        batch = synthetic.batch(self.config, self.stream, 0, start=self.n)
        self.n += 1
        return dataclasses.asdict(batch)

    def close(self):
        """Nothing to end."""


def run(config, folder):
    network, objectives = smoke.parts(config, None)
    loop.run(
        config,
        network,
        {name: lambda rows, n, name=name: Rows(config, name) for name in config.streams},
        objectives=objectives,
        examples=synthetic.examples(config, 0),
        workdir=str(folder),
        assets=checkpoint.Assets(),
    )


class Seen(Exception):
    """(text, options) of a train_step that XLA was about to compile."""


@pytest.fixture
def compiled(monkeypatch):
    """(work) -> (the train_step's text that `work` hands to XLA, the options with it)."""
    real = compiler.compile_or_get_cached

    def seen(backend, computation, devices, options, *rest, **named):
        if "train_step" in str(computation.operation.attributes["sym_name"]):
            raise Seen(str(computation), dict(options.env_option_overrides))
        return real(backend, computation, devices, options, *rest, **named)

    def ask(work, *arguments):
        with pytest.raises(Seen) as found:
            work(*arguments)
        return found.value.args

    monkeypatch.setattr(compiler, "compile_or_get_cached", seen)
    return ask


@pytest.mark.mesh
def test_what_is_planned_and_profiled_is_what_trains(config, compiled, tmp_path):
    text, options = compiled(run, config, tmp_path / "work")
    assert text.count("tf.aliasing_output") > 10  # the state is given away,
    assert text.count('{"data", "fsdp"}') > 10  # batches and parameters are sharded
    assert options == config.compiler.cpu
    assert compiled(profiling.capture, config, str(tmp_path / "trace")) == (text, options)
    planned, more = compiled(plan.make, config, chips.CHIPS["cpu"], jax.devices())
    assert planned == text and more == options | plan.QUICK


def test_nobody_else_compiles_a_train_step():
    """`make_train_step` is called where programs are made; the others trace it and count."""
    found = set()
    for place in ("vla_jax", "benchmarks", "tools"):
        for file in (PROJECT / place).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Attribute) and node.attr.endswith("make_train_step"):
                    found.add(file.relative_to(PROJECT).as_posix())
    tracing = {"vla_jax/train/bounds.py", "benchmarks/step.py"}
    assert found == {"vla_jax/train/program.py", *tracing}


@dataclasses.dataclass(frozen=True)
class On:
    """All that `options` asks of a place that is not there."""

    platform: str

    @property
    def device_set(self):
        return {self}


def test_options_are_those_of_the_platform(config, monkeypatch):
    monkeypatch.setattr(program, "_refused", lambda where, name, value: "")
    given = dict(cpu={"a": 1}, tpu={"b": True})
    made = dataclasses.replace(config, compiler=config_lib.CompilerConfig(**given))
    assert program.options(made, On("cpu")) == {"a": 1}
    assert program.options(made, On("tpu")) == {"b": True}
    assert program.options(made, On("gpu")) is None
    assert program.options(made, On("neuron")) is None


def test_options_that_xla_does_not_know(config):
    given = {"xla_backend_optimization_level": 0, "xla_no_such_option": 1}
    made = dataclasses.replace(config, compiler=config_lib.CompilerConfig(cpu=given))
    with pytest.raises(plugin.UserError, match="config.compiler.cpu.xla_no_such_option: got 1"):
        program.options(made, HERE)
    # A policy's config was written by another version: it acts all the same.
    kept = program.options(made, HERE, known_only=True)
    assert kept == {"xla_backend_optimization_level": 0}


def test_a_checkpoint_of_version_1_loads(tmp_path):
    """There XLA's options stood flat, whatever the platform."""
    config = toy.config()
    new, old = tmp_path / "new", tmp_path / "old"
    saver = checkpoint.Checkpoints(str(new), config, checkpoint.Assets())
    saver.save_parameters(3, {"params": {"kernel": np.ones(4, np.float32)}})
    saver.close()
    shutil.copytree(new, old)
    path = old / "checkpoints/3/meta/metadata"
    raw = json.loads(path.read_text())
    assert raw["format_version"] == 2 and raw["config"]["compiler"]["cpu"] == {}
    flat = {"xla_backend_optimization_level": 1, "xla_cpu_a": "", "xla_tpu_b": True}
    raw |= dict(format_version=1, config=raw["config"] | {"compiler": flat})
    path.write_text(json.dumps(raw))
    loaded = checkpoint.load(str(old))
    assert loaded.config.compiler == config_lib.CompilerConfig(
        cpu={"xla_backend_optimization_level": 1, "xla_cpu_a": ""}, tpu={"xla_tpu_b": True}
    )
    assert dataclasses.replace(loaded.config, compiler=config.compiler) == config
    del raw["config"]["compiler"]  # of a version before there were any
    path.write_text(json.dumps(raw))
    assert checkpoint.load(str(old)).config == config
