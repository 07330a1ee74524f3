"""What the tests of heads need of Octo's golden arrays: a trunk's outputs, a batch, parameters."""

from types import SimpleNamespace

import jax
import numpy as np
from flax import serialization

from vla_jax import plugin, trees, types

assert trees  # registers the dataclasses


def load(folder):
    """Arrays, heads' parameters, trunk outputs, batch and context of one golden folder."""
    arrays, inputs = np.load(folder / "outputs.npz"), np.load(folder / "inputs.npz")
    (path,) = folder.glob("ckpt/*/default/checkpoint")
    params = serialization.msgpack_restore(path.read_bytes())
    outputs = {}
    for name in {key.split("/")[1] for key in arrays.files if key.startswith("transformer/")}:
        tokens, mask = (arrays[f"transformer/{name}/{part}"] for part in ("tokens", "mask"))
        outputs[name] = types.Output(stem=None, final=tokens, valid=mask.astype(bool))
    rows, _, action_horizon, size = inputs["action"].shape
    batch = types.Batch.make(
        observation=dict(images={}, timestep_mask=inputs["observation/timestep_pad_mask"]),
        task={},
        targets={"action": inputs["action"]},
        target_masks={"action": inputs["action_pad_mask"]},
        row_id=np.arange(rows, dtype=np.uint32),
        action_space=np.full(rows, -1, np.int32),
        dataset_key=np.zeros(rows, np.int32),
    )
    context = types.Context(
        name="it", width=64, action_horizon=action_horizon, action_size=size
    )  # fmt: skip
    heads = {key.removeprefix("heads_"): v for key, v in params.items() if "heads_" in key}
    observed = tuple(name for name in outputs if name.startswith("obs_"))
    return SimpleNamespace(
        arrays=arrays, heads=heads, outputs=outputs, batch=batch, context=context, observed=observed
    )


def space(size):
    """An action space of so many numbers."""
    group = types.ActionGroup(
        name="all", size=size, quantity="position", representation="absolute"
    )  # fmt: skip
    return types.ActionSpace(name="all", groups=(group,), control_hz=5.0)


def run(made, params, spec, method="__call__", carry=None, key=None):
    """What a head answers on the golden outputs, training or sampling."""
    head = plugin.build("heads", spec, made.context)

    @jax.jit
    def answer(params, outputs, batch, more):
        inputs = (outputs, {}, batch, more)
        if method == "sample":
            inputs = (outputs, {}, batch, None, None, more)
        return head.apply({"params": params}, *inputs, method=method)

    return answer(params, made.outputs, made.batch, carry if method == "__call__" else key)


def loss(made, error):
    """The mean error over what is real: objectives/action.py's sum over its count."""
    seen = made.batch.observation.timestep_mask
    mask = made.batch.target_masks["action"] & seen[:, :, None, None]
    return float(np.sum(np.where(mask, error, 0)) / mask.sum())


def pool(tree):
    """Our parameters of Octo's MAPHead."""
    attention, mlp = tree["MultiHeadDotProductAttention_0"], tree["MlpBlock_0"]
    made = {name: attention[name] for name in ("query", "key", "value", "out")}
    made |= dict(probe=tree["probe"][0], norm=tree["LayerNorm_0"])
    return {"map": made | {"mlp": dict(hidden_0=mlp["Dense_0"], out=mlp["Dense_1"])}}


def diffusion(tree):
    """Our parameters of Octo's diffusion head."""
    tree = tree["diffusion_model"]
    network, times = tree["reverse_network"], tree["cond_encoder"]
    made = dict(
        time=dict(frequency=tree["time_preprocess"]["kernel"][:, 0]),
        time_hidden=times["Dense_0"],
        time_out=times["Dense_1"],
        project=network["Dense_0"],
        out=network["Dense_1"],
    )
    for i in range(sum("MLPResNetBlock" in name for name in network)):
        layer = network[f"MLPResNetBlock_{i}"]
        made[f"norm_{i}"] = layer["LayerNorm_0"]
        made[f"mlp_{i}"] = dict(hidden_0=layer["Dense_0"], out=layer["Dense_1"])
    return {"score": jax.tree.map(np.asarray, made)}


def close(got, reference, atol=1e-5):
    """Asserts the golden arrays' tolerance, atol · max(1, max|reference|)."""
    reference = np.asarray(reference)
    difference = np.abs(np.asarray(got) - reference).max()
    assert got.shape == reference.shape
    assert difference <= atol * max(1.0, np.abs(reference).max()), difference
    return difference
