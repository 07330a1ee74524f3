"""`vla import octo`: a folder of Octo's becomes one that a policy loads and fine-tuning takes."""

import dataclasses
import json

import cv2
import jax
import numpy as np
import pytest

from vla_jax.cli import main as cli

TOKENIZER = "hf/t5-tiny-golden/tokenizer.json"


@pytest.fixture(scope="module")
def golden(fixtures_dir):
    return fixtures_dir / "octo_golden"


@pytest.fixture(scope="module")
def imported(golden, tmp_path_factory):
    """(the folder, what `vla import` printed)."""
    out = tmp_path_factory.mktemp("import") / "octo"
    words = ["import", "octo", str(golden / "tiny" / "ckpt"), "--out", str(out)]
    assert cli.main([*words, "--text-tokenizer", str(golden / TOKENIZER)]) == 0
    return out


@pytest.fixture(scope="module")
def policy(imported):
    from vla_jax.policy import policy

    return policy.Policy.load(str(imported))


def test_pictures_and_a_sentence_to_actions_as_octo(golden, policy):
    with np.load(golden / "tiny" / "inputs.npz") as file:
        inputs = dict(file)
    with np.load(golden / "tiny" / "outputs.npz") as file:
        outputs = dict(file)
    text = json.loads((golden / "tiny" / "texts.json").read_text())[0]
    policy.reset()
    for step in range(2):
        views = {
            view: inputs[f"observation/image_{view}"][0, step] for view in ("primary", "wrist")
        }
        policy.observe(0, {"images": views})
    batch = policy.batch([text])
    ids = outputs["create_tasks_lang/language_instruction/input_ids"]
    np.testing.assert_array_equal(batch.task.values["language"], ids[:1])
    start, steps = outputs["sample/init_noise"], outputs["sample/z_per_step"]
    noise = dict(
        start=start[:1, -1].reshape(1, 4, 7),
        steps=np.moveaxis(steps[:, :1, -1], 0, 1).reshape(1, -1, 4, 7),
    )
    sample = jax.jit(lambda v: policy.model.sample(v, batch, "robot", {"action": noise}))
    answers = jax.device_get(sample(policy._variables))
    wanted = outputs["sample/actions_create_tasks_lang"][:1]
    np.testing.assert_allclose(answers["action"]["action"], wanted, atol=2e-4 * 5)
    raw = policy.normalizer.inverse(policy.dataset, "action", wanted[0])
    np.testing.assert_allclose(policy._actions(answers)[0], raw, atol=1e-3)


def test_a_jpeg_is_read_as_octo_reads_it(golden, policy):
    with np.load(golden / "data" / "data.npz") as file:
        jpeg = file["sample_jpeg_bytes/traj0_t0"].tobytes()
        wanted = file["sample_decoded_native/traj0_t0"]
    blank = cv2.imencode(".jpg", np.full((40, 30, 3), 200, np.uint8))[1].tobytes()
    policy.reset()
    policy.observe(0, {"images": {"primary": jpeg, "wrist": blank}})
    batch = policy.batch(["pick up the spoon"])
    np.testing.assert_array_equal(batch.observation.images["primary"][0, -1], wanted)
    assert policy.act(["pick up the spoon"])[0].shape == (1, 4, 7)
    before = policy._embed.cache_info()
    policy.act(["pick up the spoon"])
    after = policy._embed.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)  # T5 rested


def test_the_folder_keeps_what_was_printed(golden, imported, policy):
    from vla_jax.train import checkpoint

    stored = json.loads((imported / "contract.json").read_text())
    meta = checkpoint.load(str(imported)).meta
    assert (
        meta.provenance["import"]["contract"] == stored == json.loads(json.dumps(policy.contract))
    )
    assert meta.provenance["import"]["folder"] == str(golden / "tiny" / "ckpt")
    assert stored["images"] == dict(primary=[64, 64], wrist=[32, 32])
    assert (stored["resize"], stored["language_tokens"]) == ("tensorflow", 16)
    assert (stored["window"], stored["chunk"]) == (2, {"action": 4})
    entry = dict(mode="zscore", clip=None, size=7)
    assert stored["statistics"] == dict(bridge_dataset=dict(action=entry))


def test_readings_that_no_organ_reads_need_not_be_given(imported):
    """Octo's own statistics have readings of the body, its released networks do not read any."""
    from vla_jax.codecs import normalizer as normalizer_lib
    from vla_jax.policy import policy
    from vla_jax.train import checkpoint

    loaded = checkpoint.load(str(imported))
    entries = dict(normalizer_lib.Normalizer.from_json(loaded.normalizer).entries["bridge_dataset"])
    entries["proprio/proprio"] = entries["action"]
    table = normalizer_lib.Normalizer({"bridge_dataset": entries})
    assets = dataclasses.replace(loaded.meta.assets, normalizer=table.to_json())
    meta = dataclasses.replace(loaded.meta, assets=assets)
    made = policy.Policy(dataclasses.replace(loaded, meta=meta))
    blank = {view: np.zeros((8, 8, 3), np.uint8) for view in ("primary", "wrist")}
    made.observe(0, {"images": blank})
    assert made.contract["proprio"] == []
    assert not made.batch([""]).observation.proprio_masks["proprio"].any()


def test_data_cut_a_sentence_as_the_policy_does(policy, tmp_path):
    from tests.data import conftest as data_lib
    from vla_jax.data.sources import rlds
    from vla_jax.types import SourceContext

    texts = (
        "pick up the spoon",
        "  Put the  carrot on the plate. ",
        "open the drawer and " * 12,  # more pieces than the checkpoint has room for
        "",
    )
    said = [
        data_lib.episode(i, **{"steps/language_instruction": [text.encode()] * 7})
        for i, text in enumerate(texts)
    ]
    folder = data_lib.write_folder(tmp_path / "arm_data" / "1.0.0", said, shards=1)
    context = SourceContext(
        name="arm",
        stream="robot",
        action_size=4,
        image_sizes={"primary": (16, 16)},
        max_tokens=policy.stream.max_tokens,
        text_tokenizer=policy.text_tokenizer,
        embodiments=(data_lib.ARM,),
        action_spaces=data_lib.ARM.action_spaces,
    )
    source = rlds.make(context, path=str(folder), holdout=0.0, language="optional")
    blank = np.zeros((8, 8, 3), np.uint8)
    policy.reset()
    policy.observe(0, {"images": {"primary": blank, "wrist": blank}})
    for i, text in enumerate(texts):
        row = source.sample(7 * i, np.random.default_rng(0))["task"]
        task = policy.batch([text]).task
        ids, mask = row["values"]["language"], row["masks"]["language"]
        np.testing.assert_array_equal(ids, task.values["language"][0])
        np.testing.assert_array_equal(mask, task.masks["language"][0])
        assert mask.sum() == (0, 16)[i == 2] or i < 2
        assert ids[mask][-1:].tolist() == [policy.text_tokenizer.eos_id] * (i < 3)


def test_what_is_refused(golden, tmp_path, capsys):
    out, checkpoint = tmp_path / "out", str(golden / "tiny" / "ckpt")
    for words, expected in (
        (["octto", checkpoint], "did you mean 'octo'"),
        (["octo", str(tmp_path)], "config.json is missing"),
        (["octo", checkpoint, "--step", "3"], "no step 3"),
        (["octo", checkpoint, "--text-tokenizer", str(tmp_path / "no.model")], "no.model"),
    ):
        assert cli.main(["import", *words, "--out", str(out)]) == 2
        assert expected in capsys.readouterr().err
        assert not out.exists()
    assert cli.main(["import", "octo", checkpoint, "--out", str(golden)]) == 2
    assert "holds something" in capsys.readouterr().err
