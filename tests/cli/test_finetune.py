"""A new embodiment, by its verbs: collect, fine-tune, reload, replay. Processes of one device."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

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
pytestmark = pytest.mark.sim


def vla(*words) -> subprocess.CompletedProcess:
    """`vla words…` in a process of its own; fails unless it exits with 0."""
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, words)],
        cwd=PROJECT,
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """20 episodes of the scripted expert: two views, 3 numbers."""
    out = tmp_path_factory.mktemp("data") / "xyz_demos"
    body = ("--embodiment", "sawyer_cards_xyz", "--episodes", 20, "--workers", 0)
    vla("data", "collect", "--out", out, *body)
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


@pytest.mark.slow
def test_overfits_an_episode_of_a_new_embodiment(pretrained, demos, tmp_path):
    overfit = ("--episodes", 1, "--steps", 100, "--batch-size", 8, "--lr", 3e-3)
    words = ("--embodiment", "sawyer_cards_xyz", "--action-horizon", 8, *overfit)
    given = ("--checkpoint", pretrained, "--data", demos, "--stats", "recompute")
    printed = vla("finetune", *given, *words, "--workdir", tmp_path).stdout
    print(printed)  # the report of parameters and the table of errors, for whoever looks
    assert "fresh   params/tokenizers_secondary/conv_0/kernel" in printed
    assert "fresh   params/heads_action_sawyer_xyz/mlp/" in printed
    assert "unused  params/positions_readout_point/table" in printed
    assert "fresh   params/tokenizers_primary" not in printed
    assert "xyz.2" in printed and "% of range" in printed
    found = json.loads(printed.strip().splitlines()[-1])
    assert found["train"]["dims"] == ["xyz.0", "xyz.1", "xyz.2"]
    assert found["train"]["episodes"] == 1 and found["held_out"]["episodes"] == 2
    assert found["train"]["worst"] == max(found["train"]["percent"])
    assert all(percent <= 5.0 for percent in found["train"]["percent"])


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
