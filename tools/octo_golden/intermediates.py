"""intermediates_itemN.npz: what each of Octo's modules answered for row N of the batch.

Our network runs once for that row, without jit, and every module's call is written down (those of a
scan once per layer). Modules with parameters are found by the importer's table, the others by ROWS.
"""

from __future__ import annotations

import re
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from tools.octo_golden import forward
from tools.octo_golden.golden import Golden
from vla_jax.backbones import t5
from vla_jax.models.importers import _params

Calls = dict[str, list[tuple[Any, Any]]]  # our module -> (inputs, answer) of each of its calls
UNSEEN = -1e8  # in a bias: below it stand the keys that are not to be seen, however far
ALONE = "no module of ours holds this value by itself; what it goes into is compared"

ATTENTION = "MultiHeadDotProductAttention_0"
TRUNK = r"octo_transformer/BlockTransformer_0/Transformer_0"
BLOCK = TRUNK + r"/encoderblock_(?P<layer>\d+)"
SEEN = r"octo_transformer/observation_tokenizers_(?P<name>\w+)"
TASK = r"octo_transformer/task_tokenizers_(?P<name>\w+)"
T5 = TASK + r"/hf_model"
T5_LAYER = T5 + r"/encoder/block/(?P<layer>\d+)"
FIRST, SECOND = T5_LAYER + r"/layer/0", T5_LAYER + r"/layer/1"
MASK = r"octo_transformer/(observation|task)_tokenizers_(\w+)/__call__/0/mask"
LAYERS, TEXT = "trunk/layers", r"tokenizers_\g<name>/encoder"
# Octo's module and which of its results; our module, and whether its input or its output is meant.
# A layer of ours answers with a tuple: an input or output may be followed by a place in it.
ROWS: tuple[tuple[str, str, str], ...] = (
    (TRUNK + r"/__call__/0", "trunk/final_norm_trunk", "out"),
    (BLOCK + r"/__call__/0", LAYERS, "out/0/trunk"),
    (BLOCK + rf"/(?:Dropout_0|{ATTENTION})/__call__/0", LAYERS + "/trunk/out", "out"),
    (BLOCK + r"/MlpBlock_0/Dropout_0/__call__/0", LAYERS + "/trunk/mlp/out", "in/0"),
    (BLOCK + r"/MlpBlock_0/(?:Dropout_1/)?__call__/0", LAYERS + "/trunk/mlp/out", "out"),
    (SEEN + r"/TokenLearner_0/__call__/0", r"tokenizers_\g<name>/learner", "out"),
    (SEEN + r"/\w+/FilmConditioning_0/__call__/0", r"tokenizers_\g<name>/encoder/film", "out"),
    (SEEN + r"/\w+_0/__call__/0", r"tokenizers_\g<name>/encoder", "out"),
    (SEEN + r"/__call__/0/tokens", r"tokenizers_\g<name>/project", "in/0"),
    (TASK + r"/__call__/0/tokens", r"tokenizers_\g<name>/project", "in/0"),
    (T5 + r"/(?:shared/__call__/0|encoder/dropout/__call__/0)", TEXT + "/layers:0", "in/0"),
    (T5 + r"/(?:encoder/)?__call__/0/last_hidden_state", TEXT + "/final_norm", "out"),
    (T5 + r"/encoder/(?:final_layer_norm|dropout)/__call__/[01]", TEXT + "/final_norm", "out"),
    (T5 + r"/encoder/block/__call__/0/last_hidden_state", TEXT + "/layers:-1", "out/0"),
    (T5_LAYER + r"/(?:layer/)?__call__/0/0", TEXT + "/layers", "out/0"),
    (SECOND + r"/__call__/0/0", TEXT + "/layers", "out/0"),
    (SECOND + r"/__call__/0", TEXT + "/layers", "out/0"),
    (T5_LAYER + r"/(?:layer/(?:0/(?:SelfAttention/)?)?)?__call__/0/1", TEXT + "/layers", "in/1"),
    (FIRST + r"/SelfAttention/q/__call__/0", TEXT + "/layers/query", "out"),
    (FIRST + r"/SelfAttention/k/__call__/0", TEXT + "/layers/key", "out"),
    (FIRST + r"/SelfAttention/v/__call__/0", TEXT + "/layers/value", "out"),
    (FIRST + r"/(?:SelfAttention/o|dropout)/__call__/0", TEXT + "/layers/out", "out"),
    (FIRST + r"/SelfAttention/__call__/0/0", TEXT + "/layers/out", "out"),
    (FIRST + r"/__call__/0/0", TEXT + "/layers/mlp_norm", "in/0"),
    (FIRST + r"/layer_norm/__call__/0", TEXT + "/layers/attention_norm", "out"),
    (SECOND + r"/layer_norm/__call__/0", TEXT + "/layers/mlp_norm", "out"),
    (SECOND + r"/DenseReluDense/wi(?:_1)?/__call__/0", TEXT + "/layers/hidden", "out"),
    (SECOND + r"/DenseReluDense/wi_0/__call__/0", TEXT + "/layers/gate", "out"),
    (SECOND + r"/DenseReluDense/dropout/__call__/0", TEXT + "/layers/mlp_out", "in/0"),
    (SECOND + r"/(?:DenseReluDense/(?:wo/)?|dropout/)__call__/0", TEXT + "/layers/mlp_out", "out"),
)  # fmt: skip


def compare(golden: Golden) -> None:
    """Every array of intermediates_itemN.npz that a module of ours answers for."""
    for file in golden.files:
        of = re.fullmatch(r"intermediates_item(\d+)\.npz", file)
        if of is not None:
            golden.attempt(_compare, file, int(of[1]))


def _compare(golden: Golden, file: str, row: int) -> None:
    native, batch = golden.native(), golden.batch(rows=slice(row, row + 1))
    calls: Calls = {}

    def write(call, inputs, named, context):
        answer = call(*inputs, **named)
        if context.method_name == "__call__":
            # A scan traces its body once before.
            concrete = not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(answer))
            if concrete:
                calls.setdefault("/".join(context.module.path), []).append((inputs, answer))
        return answer

    with jax.disable_jit(), nn.intercept_methods(write):
        outputs = native.network.encode(native.variables, batch, "robot")
    outputs = jax.device_get(outputs)
    forward.groups(golden, "octo_transformer/__call__/0", native, outputs, file)
    _blocks(golden, file, native, outputs)
    _masks(golden, file, batch, calls)
    _distances(golden, file, native)
    for name in golden.files[file]:
        if f"{file}:{name}" not in golden.verdicts and "/__call__/" in name:
            _one(golden, file, name, calls)


def _one(golden: Golden, file: str, name: str, calls: Calls) -> None:
    for module, which, index in _places(golden, name):
        if len(calls.get(module, ())) > max(index, -1 - index):
            value = _part(calls[module][index], which)
            reference = golden.files[file][name]
            if np.size(value) == reference.size:
                _judge(golden, file, name, np.asarray(value).reshape(reference.shape))
                return
    golden.excuse(name, ALONE, file)


def _judge(golden: Golden, file: str, name: str, value: np.ndarray) -> None:
    """As everywhere; in a bias, keys that are not to be seen need not be so by the same number."""
    reference = golden.files[file][name]
    far = reference < UNSEEN
    if not far.any():
        golden.compare(name, value, file=file)
    elif not np.array_equal(far, value < UNSEEN):
        golden.fail(f"{file}:{name}", "other keys are hidden")
    else:
        near = np.where(far, 0, reference)
        apart = np.max(np.abs(np.where(far, 0, value) - near))
        golden.settle(f"{file}:{name}", apart, 1e-5 * max(1.0, np.max(np.abs(near))))


def _places(golden: Golden, name: str):
    """(our module, which value of it, number of its call) that an array's name may mean."""
    for pattern, module, which in ROWS:
        of = re.fullmatch(pattern, name)
        if of is not None:
            module, _, index = of.expand(module).partition(":")
            yield module, which, int(index or of.groupdict().get("layer") or 0)
    theirs = name.removesuffix("/__call__/0")
    for path in golden.checkpoint.parameters:
        if path.rpartition("/")[0] == theirs:
            (ours,) = _params.origins([path]) or (None,)
            if ours is not None:
                layer = re.match(BLOCK, name)
                module = ours.removeprefix("params/").rpartition("/")[0]
                yield module, "out", int(layer["layer"]) if layer else 0
                return


def _part(call: tuple[Any, Any], which: str) -> Any:
    """ "out/0/trunk": the entry "trunk" of the first of what the module answered."""
    side, *keys = which.split("/")
    value = call[0] if side == "in" else call[1]
    for key in keys:
        value = value[int(key) if key.isdigit() else key]
    return value


def _blocks(golden: Golden, file: str, native, outputs: dict) -> None:
    """BlockTransformer's answer: lists of task groups and of groups with time, in its order."""
    stream = native.config.streams["robot"]
    order = [*stream.groups, *(f"readout_{name}" for name in stream.readouts)]
    for place, axes in enumerate((3, 4)):
        groups = [name for name in order if outputs[name].final.ndim == axes]
        for i, name in enumerate(groups):
            prefix = f"octo_transformer/BlockTransformer_0/__call__/0/{place}/{i}"
            golden.compare(f"{prefix}/tokens", outputs[name].final, file=file)
            golden.compare(f"{prefix}/mask", outputs[name].valid, file=file)


def _masks(golden: Golden, file: str, batch, calls: Calls) -> None:
    """What a tokenizer says is there: Octo looks at the timestep later, ours at once."""
    real = np.asarray(batch.observation.timestep_mask)[..., None]
    for name, reference in golden.files[file].items():
        of = re.fullmatch(MASK, name)
        made = calls.get(f"tokenizers_{of[2]}", ()) if of is not None else ()
        if made:
            valid = np.asarray(made[0][1].valid)
            if of[1] == "observation":
                valid = np.where(real, valid, reference)
            golden.compare(name, valid, file=file)


def _distances(golden: Golden, file: str, native) -> None:
    """The text encoder's bias by distance, [T, T, N]."""
    for name, reference in golden.files[file].items():
        of = re.fullmatch(T5_LAYER + r"/.*/relative_attention_bias/__call__/0", name)
        if of is None:
            continue
        spec = native.config.model.tokenizers[of["name"]]["encoder"]
        table = native.variables["params"][f"tokenizers_{of['name']}"]["encoder"]["buckets_bias"]
        place = np.arange(reference.shape[0])
        names = ("buckets", "max_distance")
        limits = {key: spec[key] for key in names if key in spec}
        rows = t5.bucket(place[None] - place[:, None], **limits)
        golden.compare(name, np.asarray(table)[rows], file=file)
