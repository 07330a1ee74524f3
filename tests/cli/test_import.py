"""`vla import octo`: a folder of Octo's becomes one that a policy loads and fine-tuning takes."""

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
