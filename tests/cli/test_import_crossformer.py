"""`vla import crossformer`: a folder of theirs becomes one that a policy loads, or nothing does."""

import json
import shutil

import flax.serialization
import numpy as np
import pytest

from tests.models.importers import crossformer_files as files
from tests.models.importers.crossformer_numpy import Reference
from vla_jax import plugin
from vla_jax.cli import main as cli

ALOHA = "aloha_pen_uncap_diverse_dataset"
ORGANS = ("high", "nav", "bimanual")  # of its tokenizers: a camera, one without FiLM, a reading


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    return files.write(tmp_path_factory.mktemp("crossformer") / "ckpt", ORGANS)


@pytest.fixture(scope="module")
def imported(ckpt, tmp_path_factory):
    out = tmp_path_factory.mktemp("import") / "crossformer"
    assert cli.main(["import", "crossformer", str(ckpt), "--out", str(out)]) == 0
    return out


def test_the_contract(imported):
    contract = json.loads((imported / "contract.json").read_text())
    assert contract["images"] == dict(high=[16, 16], nav=[16, 16])
    assert contract["resize"] == "tensorflow" and contract["proprio"] == ["bimanual"]
    assert contract["window"] == files.WINDOW
    assert contract["language"] == (
        "as an embedding of 24 numbers, language_embedding, by universal-sentence-encoder-large/5 "
        "of TF-Hub; the empty text's where there is none"
    )
    assert contract["chunk"] == {name: horizon for name, (horizon, _) in files.ACTIONS.items()}
    sizes = {name: space["size"] for name, space in contract["actions"].items()}
    assert sizes == {name: size for name, (_, size) in files.ACTIONS.items()}
    assert contract["actions"]["bimanual"]["control_hz"] is None, "nobody says it"
    reading = contract["statistics"][ALOHA]["proprio/bimanual"]
    assert reading == dict(mode="identity", clip=None, size=14)


def test_pictures_and_an_embedding_to_actions(ckpt, imported):
    """What the policy answers is what the reference answers, back in the robot's numbers."""
    from vla_jax.policy import policy as policies

    policy = policies.Policy.load(str(imported), dataset=ALOHA)
    assert policy.row_spaces[0].name == "bimanual"
    given = files.batch(1)
    seen, task = given["observation"], given["task"]
    del task["image_high"], task["image_nav"]  # no goal: black pictures, as create_tasks gives
    ticks = 3
    real = np.arange(files.WINDOW) >= files.WINDOW - ticks
    seen["timestep_pad_mask"] = real[None]
    seen["pad_mask_dict"] = dict(image_high=real[None], image_nav=np.zeros_like(real)[None])
    for name in ("image_high", "proprio_bimanual"):
        seen[name][0, ~real] = seen[name][0, real][0]
    seen["image_nav"][:] = 0
    for t in np.flatnonzero(real):
        proprio = {"bimanual": seen["proprio_bimanual"][0, t]}
        images = {"high": seen["image_high"][0, t], "nav": None}
        policy.observe(0, {"images": images, "proprio": proprio})
    actions, answers = policy.act([task["language_instruction"][0]])
    blank = {f"image_{view}": np.zeros((1, 16, 16, 3), np.uint8) for view in ("high", "nav")}
    reference = Reference(files.config(ORGANS)["model"])
    outputs = reference(dict(observation=seen, task=task | blank))
    for name, answer in answers.items():
        wanted = reference.actions(name, outputs)[:, -1]
        np.testing.assert_allclose(answer["action"], wanted, atol=1e-5 * np.abs(wanted).max())
    numbers = {k: np.array(v) for k, v in files.statistics()[ALOHA]["action"].items()}
    wanted = reference.actions("bimanual", outputs)[0, -1]
    raw = np.where(numbers["mask"], wanted * numbers["std"] + numbers["mean"], wanted)
    np.testing.assert_allclose(actions[0], raw, rtol=1e-4, atol=1e-4)
    with pytest.raises(plugin.UserError, match="got 'uncap the pen', expected the sentence's"):
        policy.act(["uncap the pen"])
    with pytest.raises(plugin.UserError, match=r"float64 \(7,\), expected"):
        policy.act([np.zeros(7)])


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs `vla import crossformer WORDS` and returns its one message; nothing is left behind."""

    def run(*words, kind: str = "crossformer") -> str:
        out = tmp_path / "out"
        code = cli.main(["import", kind, *map(str, words), "--out", str(out)])
        error = capsys.readouterr().err
        assert code == 2 and error.startswith("vla import: ") and "Traceback" not in error, error
        assert not out.exists()
        return error

    return run


def test_files_that_are_cut_off(ckpt, refused, tmp_path):
    folder = shutil.copytree(ckpt, tmp_path / "copy")
    for name in (files.CHECKPOINT, "example_batch.msgpack", "config.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        error = refused(folder)
        assert name in error and "is cut off" in error and "crossformer checkpoint: " in error
        (folder / name).write_bytes(whole)


def test_checkpoints_of_others(ckpt, refused, tmp_path):
    assert "this checkpoint is CrossFormer's: vla import crossformer" in refused(ckpt, kind="octo")
    assert "did you mean 'crossformer'" in refused(ckpt, kind="crosformer")
    assert "config.json is missing" in refused(tmp_path)
    folder = shutil.copytree(ckpt, tmp_path / "copy")
    other = {"params": {"a": np.zeros(3, np.float32)}}
    (folder / files.CHECKPOINT).write_bytes(flax.serialization.msgpack_serialize(other))
    error = refused(folder)
    assert "holds params/a, expected CrossFormer's parameters (crossformer_transformer/" in error


def test_a_parameter_of_another_shape(ckpt, refused, tmp_path):
    folder = shutil.copytree(ckpt, tmp_path / "copy")
    tree = flax.serialization.msgpack_restore((folder / files.CHECKPOINT).read_bytes())
    tree["heads_bimanual"]["mean_proj"]["kernel"] = np.zeros((32, 13), np.float32)
    (folder / files.CHECKPOINT).write_bytes(flax.serialization.msgpack_serialize(tree))
    error = refused(folder)
    assert "heads_bimanual/mean_proj/kernel (here params/heads_bimanual/mlp/out/kernel)" in error
    assert "is (32, 13), expected (32, 14)" in error


def test_words_that_it_does_not_read(ckpt, refused, tmp_path):
    from vla_jax.codecs import text_tokenizer

    words = tmp_path / "words.model"
    text_tokenizer.TextTokenizer.train(["touch the cat"]).save(words)
    error = refused(ckpt, "--text-tokenizer", words)
    assert "sentences as embeddings by universal-sentence-encoder" in error
    assert "leave --text-tokenizer out" in error


BODY = """
from vla_jax.types import ActionGroup, ActionSpace, Embodiment, ProprioGroup

NUMBERS = ActionGroup(
    name="action", size=SIZE, quantity="position", representation="absolute", unit="1"
)
EMBODIMENT = Embodiment(
    name="robot",
    joints=(),
    joint_limits=(),
    control_hz=50.0,
    views=VIEWS,
    proprio=(ProprioGroup(name="bimanual", size=14, unit="rad", meaning="joints of both arms"),),
    action_spaces=(ActionSpace(name="mine", groups=(NUMBERS,), control_hz=0.0),),
)
"""


def test_fine_tuning_keeps_what_the_robot_has(imported, tmp_path):
    """The same action space: its head is loaded, by itself; another: one like it, fresh."""
    from vla_jax.train import finetune

    def asked(size: int, views: tuple[str, ...]):
        body = tmp_path / f"robot_{size}.py"
        body.write_text(BODY.replace("SIZE", str(size)).replace("VIEWS", repr(views)))
        return finetune.prepare(
            finetune.Request(
                checkpoint=str(imported),
                embodiment=str(body),
                data="d",
                source="rlds",
                stats="recompute",
            )
        )

    prepared = asked(14, ("high",))
    assert prepared.report.missing == ()
    dropped = {path.split("/")[1] for path in prepared.report.unused}
    assert {"tokenizers_nav", "heads_nav", "positions_readout_nav"} <= dropped
    stream = prepared.config.streams["robot"]
    assert stream.heads == ("bimanual",) and stream.readouts == ("bimanual",)
    assert set(stream.groups) == {"language", "high", "bimanual"}
    prepared = asked(3, ("high", "primary"))
    fresh = {path.split("/")[1] for path in prepared.report.missing}
    assert fresh == {"tokenizers_primary", "positions_primary", "heads_action_mine"}
    head = prepared.config.model.heads["action_mine"]
    assert (head["tokens_per"], head["readout"]) == ("step", "bimanual")
    assert prepared.config.model.tokenizers["primary"]["reads"] == ("language",)
