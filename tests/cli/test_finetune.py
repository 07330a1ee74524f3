"""A new embodiment, by its verbs: collect, fine-tune, reload, replay. Processes of one device."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from vla_jax.parallel import fake_devices

PROJECT = pathlib.Path(__file__).resolve().parents[2]
MAIN = "import sys; from vla_jax.cli.main import main; sys.exit(main())"
SMALL = (
    "--config.model.trunk.width=48",
    "--config.model.trunk.depth=1",
    "--config.model.trunk.mlp=96",
    "--config.model.shared.grounding.dim=32",
    "--config.model.tokenizers.primary.widths=(16,16,32)",
    "--config.model.tokenizers.primary.grid_stride=24",
    "--config.streams.vl.batch_size=4",
    "--config.validation.every=None",
)
# A user's file: the card table's Sawyer with a second camera and no gripper.
BODY = """
import dataclasses

from vla_jax.embodiments import sawyer_cards
from vla_jax.types import ActionSpace

EMBODIMENT = dataclasses.replace(
    sawyer_cards.EMBODIMENT,
    name="my_arm",
    views=("primary", "secondary"),
    action_spaces=(ActionSpace(name="my_xyz", groups=(sawyer_cards.XYZ,), control_hz=80.0),),
)
"""


def vla(*words, path: str = "") -> subprocess.CompletedProcess:
    """`vla words…` in a process of its own (PYTHONPATH `path`); fails unless it exits with 0."""
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, words)],
        cwd=PROJECT,
        env={**os.environ, "XLA_FLAGS": fake_devices.flags(1), "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    """The Python file of the new embodiment; its folder's package is `my_lab`."""
    file = tmp_path_factory.mktemp("body") / "my_lab" / "my_arm.py"
    file.parent.mkdir()
    file.write_text(BODY)
    return file


@pytest.fixture(scope="module")
def demos(body, tmp_path_factory):
    """20 episodes of the scripted expert: two views, 3 numbers."""
    out = tmp_path_factory.mktemp("data") / "xyz_demos"
    robot = ("--embodiment", "my_lab.my_arm", "--episodes", 20, "--workers", 0)
    vla("data", "collect", "--out", out, *robot, path=body.parent.parent)
    return out


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run of the demo's first stage, small and short: no robot was ever seen."""
    out = tmp_path_factory.mktemp("demo")
    texts = out / "texts.txt"
    names = (PROJECT / "vla_jax/assets/emoji/card_names.txt").read_text().split("\n")
    asked = [f"{verb} the {name}" for name in names if name for verb in ("touch", "point to")]
    texts.write_text("\n".join(asked))
    model = out / "text_tokenizer.model"
    vla("data", "text-tokenizer", "--texts", texts, "--vocabulary-size", 250, "--out", model)
    config = f"configs/demo_pretrain.py:steps=1,out={out}"
    vla("train", "--config", config, "--workdir", out / "run", *SMALL)
    return out / "run"


@pytest.mark.sim
@pytest.mark.slow
def test_overfits_an_episode_of_a_new_embodiment(pretrained, demos, body, tmp_path):
    overfit = ("--episodes", 1, "--steps", 100, "--batch-size", 8, "--lr", 3e-3)
    words = ("--embodiment", body, "--action-horizon", 8, *overfit)
    given = ("--checkpoint", pretrained, "--data", demos, "--stats", "recompute")
    printed = vla("finetune", *given, *words, "--workdir", tmp_path).stdout
    print(printed)  # the report of parameters and the table of errors, for whoever looks
    assert "fresh   params/tokenizers_secondary/conv_0/kernel" in printed
    assert "fresh   params/heads_action_my_xyz/mlp/" in printed
    assert "unused  params/positions_readout_point/table" in printed
    assert "fresh   params/tokenizers_primary" not in printed
    assert "xyz.2" in printed and "% of range" in printed
    found = json.loads(printed.strip().splitlines()[-1])
    assert found["train"]["dims"] == ["xyz.0", "xyz.1", "xyz.2"]
    assert found["train"]["episodes"] == 1 and found["held_out"]["episodes"] == 2
    assert found["train"]["worst"] == max(found["train"]["percent"])
    assert all(percent <= 5.0 for percent in found["train"]["percent"])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint of a small robot, and `.words`: a fine-tuning to other episodes of it."""
    from tests.data import conftest as data_lib  # not above: jax comes after tests/conftest.py
    from tests.policy import recorded

    root = tmp_path_factory.mktemp("small")
    run = recorded.run(root / "before")
    others = [data_lib.episode(i) for i in range(10, 14)]
    data = data_lib.write_folder(root / "arm_data" / "1.0.0", others)
    (root / "my_arm.py").write_text(recorded.ROBOT)
    words = ["finetune", "--checkpoint", run.workdir, "--data", str(data), "--holdout", "0"]
    run.words = [*words, "--embodiment", str(root / "my_arm.py"), "--steps", "2"]
    run.words += ["--views", "primary"]  # the body has a wrist, the data do not
    return run


@pytest.mark.slow
def test_statistics_of_a_file_are_those_of_the_data(small, tmp_path):
    """A file measured on these very data gives their statistics; of others it is refused."""
    from vla_jax import plugin
    from vla_jax.cli import main as cli
    from vla_jax.data import statistics, statistics_file
    from vla_jax.train import assemble, finetune

    words = [*small.words[1:], "--stats", "recompute"]
    given = vars(cli.parser_of("finetune").parse_args(words))
    names = [field.name for field in dataclasses.fields(finetune.Request)]
    asked = finetune.Request(**{n: given[n] for n in names if n in given} | {"views": ("primary",)})
    assembly = assemble.assemble(finetune.prepare(asked).config)
    tables = statistics.gather(assembly.mixtures["robot"].sources.values())
    path = str(tmp_path / "stats.json")
    statistics_file.write(path, tables, statistics.measure(tables))
    by_file = dataclasses.replace(asked, stats=path)
    read = assemble.assemble(finetune.prepare(by_file).config)
    assert read.normalizer.to_json() == assembly.normalizer.to_json()
    other = dataclasses.replace(by_file, episodes=2)
    with pytest.raises(plugin.UserError, match="other episodes, standardizer or holdout"):
        assemble.assemble(finetune.prepare(other).config)


@pytest.mark.mesh
@pytest.mark.slow
def test_head_only_by_the_checkpoints_statistics(small, tmp_path, capsys):
    from vla_jax import trees
    from vla_jax.cli import main as cli
    from vla_jax.train import checkpoint

    how = ["--stats", "checkpoint", "--mode", "head_only", "--batch-size", "8", "--lr", "0.01"]
    assert cli.main([*small.words, *how, "--workdir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed.strip().splitlines()[-1])
    assert found["train"]["episodes"] == 4 and found["held_out"] is None
    assert found["train"]["dims"] == ["xyz.0", "xyz.1", "xyz.2", "grip"]
    assert "fresh   " not in printed

    before, after = (checkpoint.load(folder) for folder in (small.workdir, str(tmp_path)))
    assert after.normalizer == before.normalizer == small.assembly.normalizer.to_json()
    old, new = (dict(trees.items(loaded.variables)) for loaded in (before, after))
    assert list(old) == list(new)
    moved = {path for path in old if not np.array_equal(old[path], new[path])}
    head = {path for path in old if path.startswith("params/heads_action/")}
    assert head <= moved <= head | {"params/positions_readout_action/table"}


@pytest.mark.slow
def test_two_processes_finetune_and_replay(small, tmp_path):
    launcher = [sys.executable, str(PROJECT / "launch" / "local.py"), "--processes", "2", "--"]
    verb = [sys.executable, "-c", MAIN, *small.words, "--stats", "recompute", "--batch-size", "8"]
    done = subprocess.run(
        [*launcher, *verb, "--workdir", str(tmp_path)],
        cwd=PROJECT,
        env={**os.environ, "XLA_FLAGS": fake_devices.flags(1)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    (last,) = [line for line in done.stdout.splitlines() if '"workdir"' in line]
    assert json.loads(last.removeprefix("[0] "))["train"]["episodes"] == 4


def test_a_dry_run_says_what_becomes_of_parameters(small, tmp_path, capsys):
    from vla_jax.cli import main as cli

    how = ["--stats", "recompute", "--action-head", "flow", "--config.optimizer.ema=0.5"]
    out = tmp_path / "out"
    assert cli.main([*small.words, *how, "--dry-run", "--workdir", str(out)]) == 0
    printed = capsys.readouterr().out
    tree, end = json.JSONDecoder().raw_decode(printed)
    assert (tree["steps"], tree["optimizer"]["ema"]) == (2, 0.5)
    assert tree["normalizer"]["stats"] == "recompute"
    assert tree["model"]["heads"]["action_xyz_gripper"]["type"] == "flow"
    assert "fresh   params/heads_action_xyz_gripper/" in printed[end:]
    assert "unused  params/heads_action/" in printed[end:] and list(tmp_path.iterdir()) == []


@pytest.mark.sim
def test_mistakes_exit_with_2_and_write_nothing(pretrained, tmp_path, capsys):
    from vla_jax.cli import main as cli

    robot, out = tmp_path / "robot.py", tmp_path / "out"
    robot.write_text("BODY = 1\n")
    fixed = ["--checkpoint", str(pretrained), "--stats", "recompute", "--workdir", str(out)]
    nowhere = str(tmp_path / "nowhere")
    cases = (
        (["--embodiment", str(robot)], "unknown 'EMBODIMENT'"),
        (["--embodiment", "sawyer_cards_xyz", "--views", "primry"], "did you mean 'primary'"),
        (["--embodiment", "sawyer_cards_xyz"], nowhere),
    )
    for words, message in cases:
        assert cli.main(["finetune", *fixed, "--data", nowhere, *words]) == 2
        assert message in capsys.readouterr().err and not out.exists()
