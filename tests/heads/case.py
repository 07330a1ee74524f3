"""A head on its own: fake outputs of the trunk, a batch with every target, a harness."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vla_jax import plugin, trees, types
from vla_jax.nn import embedding, grounding

B, C, A, P, T, K, D, STEM = 3, 4, 5, 3, 6, 2, 16, 12
GRID = (3, 4)
HAND = (((0.1, 0.2, 0.3), (0.0, 0.0, 0.0)), ((0.5, 0.4, 0.3), (1.0, 2.0, 3.0)))
assert trees  # registers the dataclasses


class Words:
    """A text tokenizer of letters."""

    pad_id, bos_id, eos_id = 0, 28, 29

    def encode(self, text):
        return [ord(letter) - ord("a") + 1 for letter in text]


def _space(name, size):
    group = types.ActionGroup(name="all", size=size, quantity="position", representation="absolute")
    return types.ActionSpace(name=name, groups=(group,), control_hz=10.0)


CONTEXT = types.Context(
    name="it",
    width=D,
    action_horizon=C,
    action_size=A,
    action_spaces=(_space("wide", 5), _space("narrow", 2)),
    vocabulary_size=30,
    text_tokenizer=Words(),
    normalizers={"hand": HAND},
)


class Harness(nn.Module):
    """Runs `tokens` and the head with a trunk that leaves head tokens as they are."""

    spec: Any
    context: Any

    def setup(self):
        self.shared = {
            "text_embedding": embedding.TextEmbedding(vocabulary_size=30, width=D),
            "grounding": grounding.Grounding(dim=8),
        }
        context = dataclasses.replace(self.context, shared=dict(self.shared))
        self.head = plugin.build("heads", dict(self.spec), context)

    def __call__(self, outputs, heads, batch, key):
        groups, cond, carry = self.head.tokens(batch, key)
        for name, made in groups.items():
            valid = np.ones(made.shape[:3], bool)
            outputs = outputs | {name: types.Output(stem=None, final=made, valid=valid)}
        return self.head(outputs, heads, batch, carry)

    def sample(self, outputs, heads, batch, key):
        def decode(groups, cond, cache):
            return groups, cache

        return self.head.sample(outputs, heads, batch, "the cache", decode, key)


def _outputs(rng, W):
    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def steps(n, stem=None, grid=None):
        made = None if stem is None else normal(B, W, n, stem)
        return types.Output(
            stem=made, final=normal(B, W, n, D), valid=np.ones((B, W, n), bool), grid=grid
        )

    return {
        "primary": steps(GRID[0] * GRID[1], STEM, GRID),
        "readout_main": steps(2),
        "readout_image": steps(1),
        "readout_text": steps(1),
    }


def _batch(rng, W):
    def mask(*shape):
        return rng.random(shape) < 0.7

    observation = types.Observation.make(
        images={"primary": np.zeros((B, W, 6, 8, 3), np.uint8)},
        proprio={"hand": rng.normal(size=(B, W, P)).astype(np.float32)},
        timestep_mask=np.ones((B, W), bool),
    )
    values = {"language": np.ones((B, T), np.int32)}
    return types.Batch(
        observation=observation,
        task=types.Task.make(values=values, masks={"language": np.ones((B, T), bool)}),
        targets={
            "action": rng.normal(size=(B, W, C, A)).astype(np.float32),
            "waypoint": rng.normal(size=(B, W, P)).astype(np.float32),
            "point": rng.random((B, W, 2)).astype(np.float32),
            "region_point": rng.random((B, W, K, 2)).astype(np.float32),
            "region_name": rng.integers(0, 3, (B, W, K)).astype(np.int32),
            "text": rng.integers(1, 30, (B, T)).astype(np.int32),
        },
        target_masks={
            "action": mask(B, W, C, A),
            "waypoint": mask(B, W),
            "point": mask(B, W),
            "region_point": mask(B, W, K),
            "region_name": mask(B, W, K),
            "text": mask(B, T),
        },
        row_id=np.arange(B, dtype=np.uint32),
        action_space=np.array([0, 1, -1], np.int32),
        dataset_key=np.array([0, 1, -1], np.int32),
    )


def make(window=2):
    """Fresh sizes, context, outputs, batch, keys, and `build(**spec)` → (harness, variables)."""
    rng, W = np.random.default_rng(0), window
    made = SimpleNamespace(
        B=B, W=W, C=C, A=A, P=P, T=T, K=K, D=D, grid=GRID, hand=HAND, context=CONTEXT, rng=rng
    )
    made.outputs, made.batch = _outputs(rng, W), _batch(rng, W)
    made.keys = jax.vmap(jax.random.key)(np.arange(B))

    built = {}

    def build(heads=None, **spec):
        key = repr((sorted(spec.items()), sorted(heads or {})))
        if key not in built:
            harness = Harness(spec=tuple(sorted(spec.items())), context=CONTEXT)
            inputs = (made.outputs, heads or {}, made.batch, made.keys)
            built[key] = harness, jax.jit(harness.init)(jax.random.key(1), *inputs)
        return built[key]

    compiled = {}

    def apply(harness, *inputs, method=None):
        """(answer, errors), or (answer, None) of `sample`, compiled once per harness."""

        def run(*inputs):
            answer, more = harness.apply(*inputs, method=method)
            return answer, None if method == "sample" else more

        key = repr((harness, method))
        if key not in compiled:
            compiled[key] = jax.jit(run)
        return compiled[key](*inputs)

    def newest(answers):
        return jax.tree.map(lambda value: value[:, -1], answers)

    made.build, made.apply, made.newest = build, apply, newest
    return made
