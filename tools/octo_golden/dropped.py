"""train_dropout_keyN/GROUP_tokens: the network in training, with the bits that Octo dropped by.

Our modules know no such bits: each module's call is intercepted, without jit, and what goes in or
comes out is multiplied. flax 0.7 folds a key with the hash of the path of its Dropout.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tools.octo_golden.golden import Golden, ours

BLOCK = r"octo_transformer/BlockTransformer_0/Transformer_0/encoderblock_{layer}"
LEARNER = r"octo_transformer/observation_tokenizers_\1/TokenLearner_0/MAPHead_0/MlpBlock_0"
POOL_RATE = 0.1  # of a MAPHead's MLP, which no config of Octo's names
# Our module, which side of it is dropped from, and Octo's Dropout there.
ROWS = (
    (r"trunk/layers/trunk/out", "out", BLOCK + "/Dropout_0"),
    (r"trunk/layers/trunk/mlp/out", "in", BLOCK + "/MlpBlock_0/Dropout_0"),
    (r"trunk/layers/trunk/mlp/out", "out", BLOCK + "/MlpBlock_0/Dropout_1"),
    (r"tokenizers_(\w+)/learner/pool/mlp/out", "in", LEARNER + "/Dropout_0"),
    (r"tokenizers_(\w+)/learner/pool/mlp/out", "out", LEARNER + "/Dropout_1"),
)


def folded(key: jax.Array, path: str) -> jax.Array:
    """What flax 0.7 makes of a key for the first draw of the module at a path."""
    parts = path.replace("/", "").encode() + bytes([1])
    number = int.from_bytes(hashlib.sha1(parts).digest()[:4], "big")
    return jax.random.fold_in(key, jnp.uint32(number))


def compare(golden: Golden) -> None:
    """Every array whose name tells its key and its group."""
    for name in golden.names("train_dropout_key"):
        of = re.fullmatch(r"train_dropout_key(\d+)/(\w+)_tokens", name)
        if of is not None:
            golden.attempt(_compare, name, int(of[1]), of[2])


def _compare(golden: Golden, name: str, key: int, group: str) -> None:
    rates = golden.checkpoint.config["model"]["transformer_kwargs"]
    if rates.get("attention_dropout_rate", 0.1):
        golden.excuse(name, "drops attention weights, which are no module's answer in ours")
        return
    with jax.threefry_partitionable(False):
        outputs = _dropping(golden, jax.random.PRNGKey(key), rates.get("dropout_rate", 0.1))
    golden.compare(name, outputs[ours(group)].final)


def _dropping(golden: Golden, key: jax.Array, rate: float) -> dict:
    calls: dict[str, int] = {}

    def drop(x: jax.Array, path: str, side: str, count: int) -> jax.Array:
        for pattern, where, theirs in ROWS:
            of = re.fullmatch(pattern, path)
            if of is not None and where == side:
                kept = 1.0 - (POOL_RATE if "MAPHead" in theirs else rate)
                with jax.disable_jit(False):  # threefry by single operations takes minutes
                    here = folded(key, of.expand(theirs).format(layer=count))
                    bits = jax.random.uniform(here, x.shape)
                x = jnp.where(bits < kept, x / kept, 0.0)
        return x

    def run(call, inputs, named, context) -> Any:
        path = "/".join(context.module.path)
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(inputs))
        if context.method_name != "__call__" or traced or not inputs:
            return call(*inputs, **named)  # a scan traces its body once before
        count = calls.setdefault(path, 0)
        calls[path] += 1
        if not any(re.fullmatch(row[0], path) for row in ROWS):
            return call(*inputs, **named)
        answer = call(drop(inputs[0], path, "in", count), *inputs[1:], **named)
        return drop(answer, path, "out", count)

    native = golden.native()
    with jax.disable_jit(), nn.intercept_methods(run):
        outputs = native.network.encode(native.variables, golden.batch(), "robot")
    return jax.device_get(outputs)
