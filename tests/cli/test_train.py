"""`vla train`, from disk to an action: the debug config on real data, and what a dry run says."""

import json
import os
import signal

import numpy as np
import pytest

from vla_jax.cli import main as cli
from vla_jax.data import engine, images
from vla_jax.data.sources import rlds

SMALL = (
    "--config.model.trunk.width=32",
    "--config.model.trunk.depth=1",
    "--config.model.trunk.mlp=32",
    "--config.model.tokenizers.primary.widths=(8,8,16)",
    "--config.validation.batches=1",
)


@pytest.fixture(scope="module")
def bridge(fixtures_dir):
    return str(fixtures_dir / "bridge_dataset" / "1.0.0")


def act(folder, data: str, *, step=None) -> np.ndarray:
    """[C, A]: what a policy of the folder does at the second tick of the first episode."""
    from vla_jax.policy import policy  # not above: jax comes after tests/conftest.py

    robot = policy.Policy.load(str(folder), step=step)
    table, read = rlds.recorded(data, standardizer=dict(type="oxe", row="bridge"))
    for tick in range(2):  # the window
        image = images.resize(images.decode(*read("primary", 0, [tick])), (64, 64))
        robot.observe(
            0, {"images": {"primary": image}, "proprio": {"ee": table.proprio["ee"][tick]}}
        )
    actions, answers = robot.act([""])
    assert answers["action"]["action"].shape == actions.shape == (1, 4, 7)
    return actions[0]


@pytest.mark.mesh
def test_debug_config_from_disk_to_an_action(bridge, tmp_path, capsys):
    out = tmp_path / "run"
    config = ["--config", f"configs/debug.py:data={bridge},steps=2", "--config.checkpoint.every=1"]
    assert cli.main(["train", *config, *SMALL, "--workdir", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "bridge" in printed
    table = [line.split() for line in printed.splitlines() if line.startswith("params/")]
    kernel = next(row for row in table if row[0] == "params/trunk/final_norm_trunk/scale")
    assert kernel[1:] == ["[32]", "replicated", "32", "128"]  # shape, sharding, numbers, bytes
    assert printed.splitlines()[-1].endswith("bytes per device")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2 and all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
    assert any("validation/robot/action" in row for row in rows)
    assert {"config.json", "batch_robot.png", "visibility_robot.png"} <= {
        path.name for path in out.iterdir()
    }

    action = act(out, bridge)
    assert action.dtype == np.float32 and np.all(np.isfinite(action))
    np.testing.assert_array_equal(action, act(out, bridge))  # the folder says it all
    assert not np.array_equal(action, act(out, bridge, step=1))  # a train_step moved it


@pytest.mark.mesh
def test_asked_to_stop_it_exits_with_75_and_then_goes_on(bridge, tmp_path, monkeypatch):
    out, draw = tmp_path / "run", engine.Stream.__next__
    # The settings of the test above, for its compiled programs.
    config = ["--config", f"configs/debug.py:data={bridge},steps=2", "--config.checkpoint.every=1"]
    words = ["train", *config, *SMALL, "--workdir", str(out)]

    def asked(stream):
        os.kill(os.getpid(), signal.SIGTERM)  # within the first train_step
        return draw(stream)

    def saved():
        return {path.name for path in (out / "checkpoints").iterdir() if path.name.isdigit()}

    with monkeypatch.context() as patched:
        patched.setattr(engine.Stream, "__next__", asked)
        assert cli.main(words) == 75
    assert saved() == {"1"}
    assert cli.main(words) == 0
    assert saved() == {"1", "2"}
    assert cli.main(words) == 0  # it is finished, and stays so


@pytest.mark.mesh
def test_the_same_twice_is_said(bridge, capsys, monkeypatch):
    words = ["--config", f"configs/debug.py:data={bridge}", *SMALL, "--verify-determinism"]
    assert cli.main(["train", *words]) == 0
    same = dict(bitwise_equal=True, train_steps=3, differ=[])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == same
    from vla_jax.train import determinism

    other = same | dict(bitwise_equal=False, differ=["trained/params/x"])
    monkeypatch.setattr(determinism, "verify", lambda assembly: other)
    assert cli.main(["train", *words]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == other


@pytest.mark.slow  # one operation after the other
@pytest.mark.mesh
def test_the_operation_that_makes_a_nan_is_found(bridge, tmp_path, capsys):
    """The decay of a parameter that is 0 by an infinite factor: in the first update."""
    import jax

    words = ["train", "--config", f"configs/debug.py:data={bridge},steps=2", *SMALL]
    words += ["--config.optimizer.weight_decay=1e999", "--workdir", str(tmp_path / "run")]
    assert cli.main(words) == 2
    assert "the parameters' norm nan" in capsys.readouterr().err
    try:
        with pytest.raises(FloatingPointError, match="nan") as found:
            cli.main([*words, "--debug-nans"])
    finally:
        jax.config.update("jax_debug_nans", False)
    assert "add_decayed_weights" in str(found.getrepr()) or "optimizer" in str(found.getrepr())
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_dry_run_says_everything_and_writes_nothing(bridge, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--config", f"configs/debug.py:data={bridge},steps=3", "--config.optimizer.lr=0.5"]
    assert cli.main(["train", "--dry-run", "--workdir", str(out), *words]) == 0
    printed = capsys.readouterr().out
    tree, end = json.JSONDecoder().raw_decode(printed)
    assert (tree["steps"], tree["optimizer"]["lr"]) == (3, 0.5)
    assert tree["streams"]["robot"]["mixture"]["bridge"]["source"]["path"] == bridge
    lines = [line.split() for line in printed[end:].splitlines()]
    (header,) = (line for line in lines if line[:1] == ["member"])
    member = next(line for line in lines if line[:1] == ["bridge"])
    row = dict(zip(header, member, strict=True))
    # 25 episodes of 10 steps, a fifth held out, the first step of each without a sample.
    assert (row["episodes"], row["samples"]) == ("20", "180")
    # What the normalizer makes of the data, and that it was measured now.
    text, key = printed[end:], row["dataset_key"]
    assert f"statistics computed from the training episodes\n{key} action: " in text
    assert f"{key} proprio/ee: " in text and text.count("q01 ") == 2
    paths = [line for line in lines if line and line[0].startswith("params/")]
    sizes = {line[0]: int(line[-2].replace(",", "")) for line in paths}
    assert sizes["params/heads_action/mlp/hidden_0/kernel"] == 64 * 64
    assert all(int(line[-1].replace(",", "")) * 8 >= sizes[line[0]] * 4 for line in paths)
    (total,) = (line[0] for line in lines if line[1:2] == ["numbers,"])
    assert int(total.replace(",", "")) == sum(sizes.values())
    assert not out.exists() and list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_mesh_that_is_not_here_says_so(bridge, capsys):
    words = ["--config", f"configs/debug.py:data={bridge}", *SMALL, "--config.mesh.fsdp=3"]
    assert cli.main(["train", "--dry-run", *words]) == 0
    *_, table, end = capsys.readouterr().out.splitlines()
    assert table.endswith("bytes per device")
    assert end.startswith("as on ONE device") and "multiple of 3 devices" in end
    assert "vla plan --topology" in end
