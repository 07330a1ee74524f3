import dataclasses
import os
import subprocess
import sys
import textwrap

import pytest

from vla_jax import config as config_lib
from vla_jax import plugin


def build():
    c = config_lib.new()
    c.steps = 4
    c.model.trunk = dict(width=8, depth=2, mlp=[16, 8])
    c.model.tokenizers.primary = dict(type="image_patch", view="primary")
    c.model.tokenizers.language = dict(type="language", max_tokens=4)
    c.model.readouts.action = 1
    c.streams.robot = dict(
        batch_size=8,
        groups=["language", "primary"],
        image_sizes=dict(wrist=(8, 8), primary=[96, 96]),
        objectives=dict(action=dict(type="action", weight=0.5)),
    )
    return c


def parsed(*flags):
    return config_lib.parse(config_lib.TrainConfig, config_lib.override(build(), flags))


def test_parse_keeps_order_and_freezes():
    config = parsed()
    assert tuple(config.model.tokenizers) == ("primary", "language")  # as written, not sorted
    assert tuple(config.streams["robot"].image_sizes) == ("wrist", "primary")
    assert config.streams["robot"].image_sizes["primary"] == (96, 96)
    assert config.model.trunk["mlp"] == (16, 8) and type(config.model.trunk) is dict
    assert config.optimizer == config_lib.OptimizerConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 5


def test_json_round_trip_is_exact():
    config = parsed("--config.optimizer.lr=3e-05", "--config.init_from.checkpoint=runs/a")
    again = config_lib.from_json(config_lib.to_json(config))
    assert again == config
    assert tuple(again.model.tokenizers) == ("primary", "language")
    assert config_lib.to_json(again) == config_lib.to_json(config)


def test_override():
    config = parsed(
        "--config.optimizer.lr=1",
        "--config.optimizer.clip=none",
        "--config.streams.robot.objectives.action.weight=2",
        "--config.streams.robot.groups=('primary',)",
        "--config.model.trunk.depth=3",
        "--config.text_tokenizer=runs/pieces.model",
        "--config.mesh.fsdp=2",
    )
    assert config.optimizer.lr == 1.0 and config.optimizer.clip is None
    assert config.streams["robot"].objectives["action"]["weight"] == 2
    assert config.streams["robot"].groups == ("primary",)
    assert config.model.trunk == dict(width=8, depth=3, mlp=(16, 8))
    assert config.text_tokenizer == "runs/pieces.model" and config.mesh.fsdp == 2


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--config.optimizer.lrr=1", r"'config.optimizer.lrr', did you mean 'config.optimizer.lr'"),
        ("--config.stepz=1", "did you mean 'config.steps'"),
        ("--config.streams.robot.batchsize=1", "did you mean 'config.streams.robot.batch_size'"),
        ("--config.steps=1.5", "config.steps: got float 1.5, expected int"),
        ("--config.steps=True", "config.steps: got bool True, expected int"),
        ("--config.optimizer.lr=fast", "config.optimizer.lr: got str 'fast', expected float"),
        ("--config.optimizer.schedule=cosin", "did you mean 'cosine'"),
        ("--config.streams.robot.groups=primary", "expected a sequence"),
        ("--config.streams.robot.image_sizes.primary=(1,)", "primary: got tuple .*2 entries"),
        ("--config.steps.x=1", "config.steps is 4, not a table"),
        ("--config.optimizer=3", "expected a table"),
        ("--confg.steps=3", "expected --config"),
        ("--config.steps", "expected --config"),
        ("--config.init_from.fresh=('a',)", "config.init_from.checkpoint is missing"),
    ],
)
def test_bad_settings_say_where(flag, message):
    with pytest.raises(plugin.UserError, match=message):
        parsed(flag)


def test_the_holes_of_a_locked_config_dict_are_closed():
    c = build()
    c.model = {"trunk": {}, "tokenizer": {}}
    with pytest.raises(plugin.UserError, match="did you mean 'config.model.tokenizers'"):
        config_lib.parse(config_lib.TrainConfig, c)
    c = build()
    c.model.trunk.activation = print
    with pytest.raises(plugin.UserError, match="never functions"):
        config_lib.parse(config_lib.TrainConfig, c)
    del c.model.trunk.activation
    del c.steps
    with pytest.raises(plugin.UserError, match="config.steps is missing"):
        config_lib.parse(config_lib.TrainConfig, c)


def test_parse_args():
    a = config_lib.parse_args("size=b,res=256,fast=true", size="s", res=96, fast=False, lr=1.0)
    assert (a.size, a.res, a.fast, a.lr) == ("b", 256, True, 1.0)
    assert config_lib.parse_args("", size="s").size == "s"
    assert config_lib.parse_args("size=7", size="s").size == "7"
    with pytest.raises(plugin.UserError, match="did you mean 'size'"):
        config_lib.parse_args("sise=b", size="s")
    with pytest.raises(plugin.UserError, match="expected int"):
        config_lib.parse_args("res=big", res=96)
    with pytest.raises(plugin.UserError, match="size=VALUE"):
        config_lib.parse_args("size", size="s")


def test_load(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(
        textwrap.dedent(
            """
            from vla_jax import config

            def get_config(arg=""):
                a = config.parse_args(arg, width=8)
                c = config.new()
                c.steps = 1
                c.model.trunk = dict(width=a.width)
                return c
            """
        )
    )
    config = config_lib.load(f"{path}:width=16", ["--config.seed=3"])
    assert config.model.trunk == {"width": 16} and config.seed == 3
    with pytest.raises(plugin.UserError, match="no such file"):
        config_lib.load(str(tmp_path / "tiney.py"))


def test_ground_loads_no_jax():
    code = "import sys, vla_jax.config, vla_jax.plugin, vla_jax.types; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "text, open_",
    [
        ("gs://<bucket>", True),
        ("gs://<bucket>/oxe", True),
        ("<folder>/oxe", True),
        ("<image>\ndescribe", False),
        ("<s>", False),
        ("gs://mine/<x>", False),
    ],
)
def test_a_placeholder_is_a_path_and_no_other_text(text, open_):
    tree = {"prompts": ({"text": text},)}
    if open_:
        with pytest.raises(
            plugin.UserError, match=r"config.prompts\[0\].text: got the placeholder"
        ):
            config_lib.check_filled("config", tree)
    else:
        config_lib.check_filled("config", tree)


def test_options_of_the_compiler_stand_by_platform():
    config = parsed("--config.compiler.cpu.xla_some_level=2", "--config.compiler.tpu.xla_tpu_a=yes")
    assert config.compiler == config_lib.CompilerConfig(
        cpu={"xla_some_level": 2}, tpu={"xla_tpu_a": "yes"}
    )
    assert config_lib.from_json(config_lib.to_json(config)) == config


@pytest.mark.parametrize(
    "flag, said",
    [
        ("compiler.xla_cpu_a=1", "Known: config.compiler.cpu, .*below the platform"),  # flat
        ("compiler.gpus={}", "did you mean 'config.compiler.gpu'"),
        ("compiler.cpu=1", "expected a table"),
        ("compiler.cpu.xla_gpu_a=1", "an option of gpu; say config.compiler.gpu.xla_gpu_a"),
    ],
)
def test_options_that_belong_to_no_platform_are_refused(flag, said):
    with pytest.raises(plugin.UserError, match=said):
        parsed(f"--config.{flag}")


def test_a_file_is_read_anew_and_nothing_is_left_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file, then = tmp_path / "mine.py", 1_700_000_000
    for value in (3, 4):  # as long, and of the same second
        file.write_text(f"VALUE = {value}\n")
        os.utime(file, (then, then))
        assert plugin.load_attribute(file, "VALUE") == value
    assert list(tmp_path.iterdir()) == [file]
