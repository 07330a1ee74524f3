"""An imported Octo checkpoint fine-tuned: to its own robot, to one of other joints and views."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import simplejpeg

from vla_jax.parallel import fake_devices

PROJECT = pathlib.Path(__file__).resolve().parents[2]
MAIN = "import sys; from vla_jax.cli.main import main; sys.exit(main())"
TOKENIZER = "hf/t5-tiny-golden/tokenizer.json"
# A robot of other joints, before the checkpoint's first camera and a new one.
BODY = """
from vla_jax.types import ActionGroup, ActionSpace, Embodiment, ProprioGroup

JOINTS = ActionGroup(
    name="joints", size=SIZE, quantity="position", representation="absolute", unit="rad"
)
EMBODIMENT = Embodiment(
    name="robot",
    joints=(),
    joint_limits=(),
    control_hz=20.0,
    views=("primary", "secondary"),
    proprio=(ProprioGroup(name="joints", size=SIZE, unit="rad", meaning="joint angles"),),
    action_spaces=(ActionSpace(name="joints", groups=(JOINTS,), control_hz=20.0),),
)
"""
# The robot that Octo's seven numbers are taken for, without readings of the body.
SAME = """
import dataclasses
from vla_jax.embodiments import widowx

EMBODIMENT = dataclasses.replace(widowx.EMBODIMENT, views=("primary", "wrist"), proprio=())
"""


@pytest.fixture(scope="module")
def imported(fixtures_dir, tmp_path_factory) -> pathlib.Path:
    from vla_jax.cli import main as cli

    golden, out = fixtures_dir / "octo_golden", tmp_path_factory.mktemp("import") / "octo"
    words = ["import", "octo", str(golden / "tiny" / "ckpt"), "--out", str(out)]
    assert cli.main([*words, "--text-tokenizer", str(golden / TOKENIZER)]) == 0
    return out


@pytest.fixture(scope="module")
def bodies(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("bodies")
    for size in (3, 14):
        (folder / f"joints_{size}.py").write_text(BODY.replace("SIZE", str(size)))
    (folder / "same.py").write_text(SAME)
    return folder


def episode(number: int, size: int, length: int = 12) -> dict:
    """Joints that turn by a rule; the pictures show a bright bar at the angle of two of them."""
    t = np.arange(length + 1)
    angles = np.sin(0.4 * t[:, None] + number + np.arange(size)[None] / size).astype(np.float32)

    def frames(view: int) -> list[bytes]:
        made = []
        for step in range(length):
            image = np.full((32, 32, 3), 40, np.uint8)
            place = int((angles[step, -view] + 1) * 15)
            image[:, place : place + 2] = 255
            made.append(simplejpeg.encode_jpeg(image, quality=95, colorsubsampling="444"))
        return made

    text = "turn the joints as the bar says, and do so for as long as there are words to be read"
    return {
        "steps/action": angles[1:],
        "steps/language_instruction": [text.encode()] * length,
        "steps/observation/images/primary": frames(0),
        "steps/observation/images/secondary": frames(1),
        "steps/observation/proprio/joints": angles[:-1],
        "episode_metadata/episode_id": [f"e{number}".encode()],
        "episode_metadata/embodiment": [b"robot"],
        "episode_metadata/action_space": [b"joints"],
        "episode_metadata/camera/primary": np.zeros((3, 4), np.float32),
    }


def asked(imported, embodiment, **changes):
    from vla_jax.train import finetune

    given = (
        dict(checkpoint=str(imported), data="d", source="rlds", stats="recompute", holdout=0.0)
        | changes
    )
    return finetune.prepare(finetune.Request(embodiment=str(embodiment), **given))


def organs(paths) -> set[str]:
    return {path.split("/")[1] for path in paths}


def test_the_same_robot_loads_everything(imported, bodies):
    from vla_jax.train import checkpoint

    prepared = asked(imported, bodies / "same.py", stats="checkpoint")
    report, before = prepared.report, checkpoint.load(str(imported)).config
    assert len(report.mapped) == 102 and report.missing == report.unused == ()
    assert "0 fresh" in str(report)
    now = prepared.config
    (old,), (new,) = before.model.heads.values(), now.model.heads.values()
    assert new == old | {"action_space": "ee_delta_gripper"}
    same = {
        field.name: getattr(before.model, field.name) == getattr(now.model, field.name)
        for field in dataclasses.fields(now.model)
    }
    assert [name for name, equal in same.items() if not equal] == ["heads"]
    assert now.freeze == before.freeze == (("params/tokenizers_language/encoder/.*", True),)
    assert now.normalizer.modes == before.normalizer.modes == (("*", "zscore"),)
    assert now.streams["robot"].resize == "tensorflow"


@pytest.mark.parametrize("head", [None, "regression"])
def test_other_joints_and_views_begin_fresh_and_nothing_else(imported, bodies, head):
    prepared = asked(imported, bodies / "joints_14.py", action_head=head)
    report, config = prepared.report, prepared.config
    assert organs(report.missing) == {
        "tokenizers_secondary",
        "positions_secondary",
        "tokenizers_proprio_joints",
        "positions_proprio_joints",
        "heads_action_joints",
    }
    assert organs(report.unused) == {"tokenizers_wrist", "positions_wrist", "heads_action"}
    made = config.model.heads["action_joints"]
    assert made["type"] == (head or "diffusion") and made["readout"] == "action"
    assert config.model.tokenizers["secondary"]["image_size"] == (64, 64)
    only = asked(imported, bodies / "joints_14.py", action_head=head, views=("primary",))
    assert list(only.config.streams["robot"].image_sizes) == ["primary"]


def test_the_frozen_encoder_is_not_trained(imported, bodies):
    from vla_jax.train import checkpoint
    from vla_jax.train import state as states

    for mode in ("full", "head_only"):
        config = asked(imported, bodies / "same.py", mode=mode).config
        trained, frozen = states.split(checkpoint.load(str(imported)).variables, config.freeze)
        assert "encoder" not in trained["params"].get("tokenizers_language", {})
        assert "encoder" in frozen["params"]["tokenizers_language"]
        whole = set(trained["params"]) == {"heads_action", "positions_readout_action"}
        assert whole == (mode == "head_only")


@pytest.mark.slow
@pytest.mark.parametrize(
    "size, words",
    [
        (3, ("--steps", 150)),  # a diffusion head, as the checkpoint has
        (14, ("--steps", 60, "--action-head", "regression", "--views", "primary")),
    ],
)
def test_it_trains_saves_and_acts(imported, bodies, tmp_path, size, words):
    from tests.data import conftest as data_lib

    out, folder = tmp_path / "run", tmp_path / "arm_data" / "1.0.0"
    data_lib.write_folder(folder, [episode(i, size) for i in range(6)])
    given = ["finetune", "--checkpoint", imported, "--data", folder, "--stats", "recompute"]
    given += ["--embodiment", bodies / f"joints_{size}.py", "--batch-size", 16, "--lr", 3e-3]
    given += ["--holdout", 0, "--workdir", out, *words, "--config.log_every=5"]
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, given)],
        cwd=PROJECT,
        env={**os.environ, "XLA_FLAGS": fake_devices.flags(1)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    print(done.stdout)  # the report and the table of errors, for whoever looks
    assert "  fresh   params/heads_action_joints/" in done.stdout
    assert "  unused  params/tokenizers_wrist/" in done.stdout
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-3:]) < 0.5 * losses[0], losses
    found = json.loads(done.stdout.strip().splitlines()[-1])["train"]
    assert found["episodes"] == 6 and len(found["dims"]) == size

    from vla_jax import trees
    from vla_jax.policy import policy as policy_lib
    from vla_jax.train import checkpoint

    before, after = checkpoint.load(str(imported)), checkpoint.load(str(out))
    old, new = (dict(trees.items(loaded.variables)) for loaded in (before, after))
    encoder = [path for path in old if path.startswith("params/tokenizers_language/encoder/")]
    assert encoder and all(np.array_equal(old[path], new[path]) for path in encoder)
    moved = "params/trunk/layers/trunk/query/kernel"
    assert not np.array_equal(old[moved], new[moved])
    policy = policy_lib.Policy(after)
    contract = json.loads((out / "contract.json").read_text())
    assert contract == json.loads(json.dumps(policy.contract))
    views = {view: np.zeros((48, 64, 3), np.uint8) for view in contract["images"]}
    policy.observe(0, {"images": views, "proprio": {"joints": np.zeros(size, np.float32)}})
    actions, _ = policy.act(["pick up the spoon"])
    assert actions.shape == (1, 4, size) and np.isfinite(actions).all()
