"""What `vla import octo` refuses: one clear message, exit code 2, nothing written."""

import collections
import json
import os
import pathlib
import shutil

import flax.serialization
import numpy as np
import pytest

from vla_jax.cli import main as cli
from vla_jax.codecs import text_tokenizer

STEP = "7/default/checkpoint"
LAYER = "octo_transformer/BlockTransformer_0/Transformer_0/encoderblock_"
SCORE = "heads_action/diffusion_model/reverse_network/Dense_1/kernel"


@pytest.fixture(scope="module")
def golden(fixtures_dir):
    return fixtures_dir / "octo_golden"


@pytest.fixture
def ckpt(golden, tmp_path) -> pathlib.Path:
    """A copy of the tiny checkpoint that may be broken."""
    folder = shutil.copytree(golden / "tiny" / "ckpt", tmp_path / "ckpt")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.fixture
def refused(golden, tmp_path, capsys):
    """Runs `vla import octo WORDS` and returns its one message; nothing may be left behind."""
    words_of = golden / "hf" / "t5-tiny-golden" / "tokenizer.json"

    def run(checkpoint, *words, out=None) -> str:
        out = pathlib.Path(out or tmp_path / "out")
        before = sorted(out.iterdir()) if out.is_dir() else out.exists()
        given = [] if "--text-tokenizer" in words else ["--text-tokenizer", str(words_of)]
        given += ["--out", str(out), *map(str, words)]
        code = cli.main(["import", "octo", str(checkpoint), *given])
        error = capsys.readouterr().err
        assert code == 2 and error.startswith("vla import: ") and "Traceback" not in error, error
        assert (sorted(out.iterdir()) if out.is_dir() else out.exists()) == before
        return error

    return run


def edit(path: pathlib.Path, change) -> None:
    """Rewrites a JSON or msgpack file by `change(tree)`."""
    if path.suffix == ".json":
        tree = json.loads(path.read_text())
        change(tree)
        path.write_text(json.dumps(tree))
        return
    tree = flax.serialization.msgpack_restore(path.read_bytes())
    change(tree)
    path.write_bytes(flax.serialization.msgpack_serialize(tree))


def put(path: str, value=None):
    """A change that sets (None: deletes) what stands at a path of nested tables."""

    def change(tree):
        *above, last = path.split("/")
        for name in above:
            tree = tree[name]
        if value is None:
            del tree[last]
        else:
            tree[last] = value

    return change


def test_files_that_are_cut_off(ckpt, refused):
    for name in (STEP, "example_batch.msgpack", "config.json", "dataset_statistics.json"):
        whole = (ckpt / name).read_bytes()
        (ckpt / name).write_bytes(whole[: len(whole) // 2])
        error = refused(ckpt)
        assert name in error and "is cut off" in error
        (ckpt / name).write_bytes(whole)


def test_what_is_no_octo_checkpoint(golden, ckpt, refused, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("hello")
    ours = tmp_path / "ours"
    (ours / "checkpoints" / "3" / "meta").mkdir(parents=True)
    for folder, message in (
        (tmp_path / "nowhere", "no such folder"),
        (file, "is a file; expected a folder"),
        (golden / "tiny", "config.json is missing (there: arrays.json"),
        (ours, "a checkpoint of vla_jax already"),
        (ours / "checkpoints" / "3", "a checkpoint of vla_jax already"),
    ):
        assert message in refused(folder)
    edit(ckpt / STEP, lambda tree: (tree.clear(), tree.update(params={"a": np.zeros(3)})))
    assert "holds params/a, expected Octo's parameters" in refused(ckpt)
    (ckpt / STEP).unlink()
    assert f"{STEP} is missing" in refused(ckpt)
    shutil.rmtree(ckpt / "7")
    assert "no step at all; no folder is a number" in refused(ckpt)


@pytest.mark.parametrize(
    "name, change, message",
    [
        (
            "config.json",
            put("model"),
            "model/observation_tokenizers is missing (there: ",
        ),
        (
            "config.json",
            put("model/heads"),
            "model/heads is missing (there: observation_",
        ),
        ("config.json", put("model/transformer_kwargs/mlp_dim"), "transformer_kwargs/mlp_dim"),
        ("config.json", put("model/heads/action/name"), "not as Octo writes it: KeyError 'name'"),
        ("config.json", put("model/heads/action/name", "UNetDDPMActionHead"), "did you mean"),
        ("example_batch.msgpack", put("action"), "example_batch.msgpack: action is missing"),
    ],
)
def test_a_config_that_is_not_octos(ckpt, refused, name, change, message):
    edit(ckpt / name, change)
    assert message in refused(ckpt)


def at(dim: int, value: float, *names: str):
    """A change of number `dim` of some statistics of the action."""

    def change(tree):
        for name in names:
            tree["bridge_dataset"]["action"][name][dim] = value

    return change


def shorter(*names: str):
    """A change that drops the last number of some statistics of the action."""

    def change(tree):
        action = tree["bridge_dataset"]["action"]
        for name in names or tuple(action):
            action[name].pop()

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (put("bridge_dataset/action/std"), "std is missing (there: mask, mean, p01, p99)"),
        (put("bridge_dataset/action"), "bridge_dataset has no action statistics"),
        (put("bridge_dataset/action/mean", "many"), "mean: got many, expected a list of numbers"),
        (lambda tree: tree.clear(), "expected {DATASET: {action: {mean, std"),
        (shorter("std"), "mean 7, std 6"),
        (shorter(), "bridge_dataset.action has 6 numbers, the checkpoint's actions have 7"),
        (at(2, 5.0, "p01"), "number 2 has 5.0 > 1.06"),
        (at(4, -5.0, "std"), "number 4 has -5.0 < 0"),
        (at(3, float("nan"), "mean"), "number 3 is nan, expected finite numbers"),
    ],
)
def test_wrong_statistics(ckpt, refused, change, message):
    edit(ckpt / "dataset_statistics.json", change)
    error = refused(ckpt)
    assert "dataset_statistics.json: " in error and message in error


def test_text_tokenizers_that_do_not_fit(golden, ckpt, refused, tmp_path, capsys):
    words = ["import", "octo", str(ckpt), "--out", str(tmp_path / "out")]
    assert cli.main(words) == 2 and not (tmp_path / "out").exists()
    error = capsys.readouterr().err
    assert "by a text encoder (t5-tiny-golden); give --text-tokenizer the spiece.model" in error
    broken, ours = tmp_path / "broken.model", tmp_path / "ours.model"
    broken.write_bytes(b"\x0a\x0b\x00\x01")
    text_tokenizer.TextTokenizer.train(["touch the cat"]).save(ours)
    for file, message in (
        (tmp_path / "spiece.model", "no file "),
        (broken, "4 bytes that are no SentencePiece model"),
        (ours, "the text tokenizer given is none of T5's"),
    ):
        assert message in refused(ckpt, "--text-tokenizer", file)


def test_parameters_that_do_not_fit(ckpt, refused):
    """Found before the network is made: a layer apart, a text encoder that is not whole, NaN."""
    whole = (ckpt / STEP).read_bytes()
    kernel = f"{LAYER}1/MlpBlock_0/Dense_0/kernel"
    for change, *messages in (
        (put(kernel, np.zeros((64, 99), np.float32)), kernel, "is (64, 99), expected (64, 128)"),
        (put(f"{LAYER}1/LayerNorm_0/scale"), f"{LAYER}1/LayerNorm_0/scale is missing"),
        (
            put("octo_transformer/task_tokenizers_language"),
            "config.json names the text encoder 't5-tiny-golden'",
        ),
        (
            put("octo_transformer/task_tokenizers_language/hf_model/shared"),
            "missing: unknown 'shared/embedding'",
        ),
        (
            put("octo_transformer/obs_primary_projection/bias", np.full(64, np.nan, np.float32)),
            "octo_transformer/obs_primary_projection/bias is not finite",
        ),
    ):
        edit(ckpt / STEP, change)
        error = refused(ckpt)
        assert all(message in error for message in messages), error
        (ckpt / STEP).write_bytes(whole)


def test_every_parameter_that_does_not_fit_the_config_is_named(ckpt, refused):
    def change(tree):
        put(SCORE, np.zeros((64, 14), np.float32))(tree)
        put("octo_transformer/obs_primary_projection/bias")(tree)
        put("octo_transformer/extra", np.zeros(3, np.float32))(tree)
        put("heads_other", tree["heads_action"])(tree)

    edit(ckpt / STEP, change)
    error = refused(ckpt)
    assert f"shape      {SCORE} (here params/heads_action/score/out/kernel)" in error
    assert "is (64, 14), expected (64, 28)" in error
    assert "missing    octo_transformer/obs|task_primary_projection/bias (here" in error
    assert "left over  octo_transformer/extra" in error and "more" in error.splitlines()[-1]
    assert "--partial" in error and len(error.splitlines()) == 14


def test_places_that_cannot_be_written(golden, refused, tmp_path, monkeypatch):
    good = golden / "tiny" / "ckpt"
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").write_text("x")
    assert "the folder holds something" in refused(good, out=full)
    assert "it is a file" in refused(good, out=full / "x")
    assert f"cannot be made in {full / 'x'}: it is a file" in refused(good, out=full / "x" / "y")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        assert "you may not write there" in refused(good)


def test_a_disk_that_is_full(golden, refused, tmp_path, monkeypatch):
    from vla_jax.models import contract

    out = tmp_path / "empty"
    out.mkdir()
    usage = collections.namedtuple("usage", "total used free")(1, 1, 1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        error = refused(golden / "tiny" / "ckpt", out=out)
    assert "a checkpoint takes 2 MB, free are 0 MB; make room, or choose" in error
    assert out.is_dir()  # it was there before

    with monkeypatch.context() as patch:
        patch.setattr(contract, "FILE", "x" * 300)  # the last thing that is written
        error = refused(golden / "tiny" / "ckpt")
    assert "could not be written: [Errno 36]" in error
