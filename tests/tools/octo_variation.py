"""A golden folder of other sizes than the stored ones: tiny's checkpoint, grown and cut.

Window 3, chunks of 3 actions of 5 numbers, 7 diffusion steps, batch of 3, two cameras of one size
under other names, two more heads. Octo has never computed on it: the arrays that are to be compared
are zeros.
"""

from __future__ import annotations

import json
import pathlib

import flax.serialization
import numpy as np

from tools.octo_golden import draws
from vla_jax import trees

ROWS, WINDOW, HORIZON, SIZE, STEPS, VOCABULARY, SIDE = 3, 3, 3, 5, 7, 8, 32
FLAT = HORIZON * SIZE
RENAMED = {"primary": "front", "wrist": "second"}
CAMERAS = {"front": "image_primary", "second": "image_secondary"}


def write(source: pathlib.Path, target: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    """Writes the folder; {file: {array's name: array}} of it."""
    random = np.random.default_rng(0)
    parameters = _parameters(source, random)
    _checkpoint(source, target, parameters, random)
    files = {
        "inputs.npz": trees.flatten(_batch(random, ROWS)),
        "outputs.npz": _outputs(random),
        "grads.npz": _trained(parameters),
        "params_delta_after_2_steps.npz": _trained(parameters),
    }
    for name, arrays in files.items():
        np.savez(target / name, **arrays)
    listed = {
        name: [[path, list(array.shape), str(array.dtype)] for path, array in arrays.items()]
        for name, arrays in files.items()
    }
    (target / "arrays.json").write_text(json.dumps(listed))
    norms = {path: 1.0 for path in files["grads.npz"]}
    (target / "grad_norms.json").write_text(json.dumps(norms))
    return files


def _trained(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {path: array for path, array in parameters.items() if "hf_model" not in path}


def _parameters(source: pathlib.Path, random: np.random.Generator) -> dict[str, np.ndarray]:
    """tiny's, under the new names; those whose shapes are new are random, so are the new heads'."""
    path = source / "ckpt" / "7" / "default" / "checkpoint"
    read = trees.flatten(flax.serialization.msgpack_restore(path.read_bytes()))

    def new(*shape):
        return random.normal(0, 0.1, shape).astype(np.float32)

    found = {}
    for path, array in read.items():
        for old, name in RENAMED.items():
            for prefix in ("octo_transformer/obs_", "octo_transformer/observation_tokenizers_"):
                path = path.replace(f"{prefix}{old}", f"{prefix}{name}")
        found[path] = array
    width = found["octo_transformer/task_language_projection/bias"].shape[0]
    for name in CAMERAS:
        found[f"octo_transformer/obs_{name}_pos_embedding"] = new(1, 10, (SIDE // 16) ** 2, width)
    score = "heads_action/diffusion_model/reverse_network"
    hidden = found[f"{score}/Dense_0/bias"].shape[0]
    found[f"{score}/Dense_0/kernel"] = new(32 + width + FLAT, hidden)
    found[f"{score}/Dense_1/kernel"] = new(hidden, FLAT)
    found[f"{score}/Dense_1/bias"] = new(FLAT)
    for head, tokens, features in (("plain", 2, FLAT), ("bins", HORIZON, SIZE * VOCABULARY)):
        layer = "mean_proj" if head == "plain" else "vocab_proj"
        found[f"heads_{head}/{layer}/kernel"] = new(width, features)
        found[f"heads_{head}/{layer}/bias"] = new(features)
        found[f"octo_transformer/readout_{head}_pos_embedding"] = new(1, 10, tokens, width)
    return found


def _checkpoint(source, target, parameters, random) -> None:
    folder = target / "ckpt" / "7" / "default"
    folder.mkdir(parents=True)
    nested = trees.unflatten(parameters)
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(nested))
    config = json.loads((source / "ckpt" / "config.json").read_text())
    model = config["model"]
    tokenizers = model["observation_tokenizers"]
    model["observation_tokenizers"] = {name: tokenizers[old] for old, name in RENAMED.items()}
    for name, spec in model["observation_tokenizers"].items():
        spec["kwargs"] |= dict(obs_stack_keys=[CAMERAS[name]], task_stack_keys=[CAMERAS[name]])
    chunk = dict(action_horizon=HORIZON, action_dim=SIZE)
    model["heads"]["action"]["kwargs"] |= dict(**chunk, diffusion_steps=STEPS)
    module = "octo.model.components.action_heads"
    plain = dict(readout_key="readout_plain", loss_type="l1", use_map=False, **chunk)
    bins = dict(
        readout_key="readout_bins", token_per="action_horizon", vocab_size=VOCABULARY,
        normalization_type="normal", **chunk,
    )  # fmt: skip
    model["heads"] |= {
        "plain": dict(module=module, name="ContinuousActionHead", args=[], kwargs=plain),
        "bins": dict(module=module, name="DiscreteActionHead", args=[], kwargs=bins),
    }
    model["readouts"] |= dict(plain=2, bins=HORIZON)
    config["window_size"] = WINDOW
    ckpt = target / "ckpt"
    (ckpt / "config.json").write_text(json.dumps(config))
    example = flax.serialization.msgpack_serialize(_batch(random, 1))
    (ckpt / "example_batch.msgpack").write_bytes(example)
    numbers = dict(mean=[0.5] * SIZE, std=[2.0] * SIZE, p01=[-1.0] * SIZE, p99=[3.0] * SIZE)
    statistics = {name: {"action": dict(numbers, mask=[True] * SIZE)} for name in ("one", "two")}
    (ckpt / "dataset_statistics.json").write_text(json.dumps(statistics))


def _batch(random: np.random.Generator, rows: int) -> dict:
    lead, picture = (rows, WINDOW), (SIDE, SIDE, 3)
    images = CAMERAS.values()
    seen = {name: random.integers(0, 255, (*lead, *picture), np.uint8) for name in images}
    goals = {name: random.integers(0, 255, (rows, *picture), np.uint8) for name in images}
    ids = random.integers(3, 500, (rows, 16))
    return dict(
        observation=dict(
            seen,
            timestep_pad_mask=np.ones(lead, bool),
            pad_mask_dict={name: np.ones(lead, bool) for name in images},
        ),
        task=dict(
            goals,
            language_instruction=dict(input_ids=ids, attention_mask=np.ones_like(ids)),
            pad_mask_dict={n: np.ones(rows, bool) for n in (*images, "language_instruction")},
        ),
        action=random.normal(size=(*lead, HORIZON, SIZE)).astype(np.float32),
        action_pad_mask=np.ones((*lead, HORIZON, SIZE), bool),
    )


def _outputs(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Noise and times as they should be, and zeros for what is computed."""
    whole = (ROWS, WINDOW, FLAT)
    start, steps = draws.chain(7, whole, STEPS)
    chunk = np.zeros((ROWS, HORIZON, SIZE), np.float32)
    found = {"sample/init_noise": start, "sample/z_per_step": steps}
    found["sample/shape2_init_noise"], found["sample/shape2_z_per_step"] = draws.chain(
        7, (2, *whole), STEPS
    )
    for name in ("actions_normalized", "actions_h2window", "actions_unnorm_normal",
                 "actions_unnorm_bounds", "actions_create_tasks_goal"):  # fmt: skip
        found[f"sample/{name}"] = chunk
    found["sample/x_per_step"] = np.zeros((STEPS, *whole), np.float32)
    found["sample/actions_shape2"] = np.stack([chunk] * 2)
    found["sample/actions_unnorm_embodiment4"] = chunk[..., :4]
    time = random.integers(0, STEPS, (1, ROWS, WINDOW, 1)).astype(np.int32)
    for prefix in ("loss", "eps", "train/step0", "train/step1"):
        found[f"{prefix}/time"] = time
        noise = "noisy_actions" if prefix == "eps" else "noise"
        found[f"{prefix}/{noise}"] = random.normal(size=(1, *whole)).astype(np.float32)
    found["eps/pred_eps"] = np.zeros((1, *whole), np.float32)
    number = np.float32(0)
    for name in ("loss/loss", "loss/mse", "loss/value", "loss/grad_global_norm"):
        found[name] = number
    for step in range(2):
        for part in ("loss", "mse", "grad_norm", "update_norm", "param_norm", "learning_rate"):
            found[f"train/step{step}/{part}"] = number
    for name in ("betas", "alphas", "alpha_hats"):
        found[f"schedule/{name}"] = np.zeros(STEPS, np.float32)
    for prefix, window in (("transformer", WINDOW), ("transformer_h2", 2)):
        for group, tokens in dict(obs=24, obs_front=4, readout_bins=HORIZON).items():
            found[f"{prefix}/{group}/tokens"] = np.zeros((ROWS, window, tokens, 64), np.float32)
            found[f"{prefix}/{group}/mask"] = np.zeros((ROWS, window, tokens), bool)
    for form, tokens in (("nosecondary", 20), ("nolanguage", 8), ("nogoalsecondary", 24)):
        found[f"transformer_{form}/obs/tokens"] = np.zeros((ROWS, WINDOW, tokens, 64), np.float32)
    length = 16 + WINDOW * (4 + 4 + 16 + 1 + 2 + HORIZON)
    found["attention_mask"] = np.zeros((ROWS, 1, length, length), bool)
    for head in ("plain", "bins"):
        ends = (VOCABULARY,) if head == "bins" else ()
        found[f"heads/{head}/output"] = np.zeros((ROWS, WINDOW, HORIZON, SIZE, *ends), np.float32)
        for part in ("loss", "metrics/loss", "metrics/mse"):
            found[f"heads/{head}/{part}"] = number
        found[f"heads/{head}/predict_argmax"] = chunk
        found[f"heads/{head}/predict_sample_key5_shape2"] = np.stack([chunk] * 2)
    found["heads/bins/metrics/accuracy"] = number
    return found
