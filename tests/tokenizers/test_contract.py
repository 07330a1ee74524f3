"""Every file of tokenizers/ keeps the contract; the files are found by listing the folder."""

import contextlib
import dataclasses
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax import plugin, trees, types
from vla_jax.models import specs
from vla_jax.nn import embedding, grounding

NAMES = plugin.names("tokenizers")
B, W, T, D = 2, 3, 5, 16
SIZES = {"max_tokens": T, "size": 3}
GIVEN = {"view": "primary", "group": "hand", "groups": ("hand",), "finetune": True, **SIZES}


class Host(nn.Module):
    """Owns the shared modules as models/vla.py does, a language tokenizer and the tested one."""

    spec: dict
    width: int = D
    dtype: type = jnp.float32
    text_width: int = D

    def setup(self):
        self.shared = {
            "text_embedding": embedding.TextEmbedding(20, self.text_width, dtype=self.dtype),
            "grounding": grounding.Grounding(4, self.dtype),
        }
        context = types.Context(name="test", width=self.width, dtype=self.dtype, shared=self.shared)
        self.language = plugin.build("tokenizers", {"type": "language"}, context)
        self.tested = plugin.build("tokenizers", self.spec, context)

    def __call__(self, batch):
        groups = {"language": self.language(batch, {})}
        tested = self.tested
        return tested(batch, {name: groups[name] for name in tested.reads})


def spec(name, **changes):
    """The plug-in's smallest instance: its DEBUG, and what it cannot do without."""
    module = plugin.module("tokenizers", name)
    wants = inspect.signature(module.make).parameters
    given = {key: value for key, value in GIVEN.items() if key in wants}
    return {"type": name, **given, **module.DEBUG, **changes}


def batch(image_size=(24, 24), seed=0, image_mask=True, language=True):
    rng = np.random.default_rng(seed)
    real = np.ones((B, W), bool)
    real[0, 0] = False
    masked = real.copy()
    masked[1, 2] = image_mask
    ids = rng.integers(1, 20, (B, T)).astype(np.int32)
    mask = np.arange(T)[None] < np.array([[2], [T]])
    return types.Batch.make(
        observation=dict(
            images={"primary": rng.integers(0, 255, (B, W, *image_size, 3), dtype=np.uint8)},
            image_masks={"primary": masked},
            proprio={"hand": rng.normal(size=(B, W, 3)).astype(np.float32)},
            timestep_mask=real,
        ),
        task=dict(values={"language": ids}, masks={"language": mask & language}),
        targets={},
        target_masks={},
        row_id=np.arange(B, dtype=np.uint32),
        action_space=np.zeros(B, np.int32),
        dataset_key=np.zeros(B, np.int32),
    )


COMPILED = {}


def tokenize(spec, data=None, **host):
    """(parameters, group, the tokenizer's static facts) of a fresh instance."""
    net, key = Host(spec, **host), repr((spec, host))
    if key not in COMPILED:
        COMPILED[key] = jax.jit(lambda data: net.init_with_output(jax.random.key(0), data))
    group, p = COMPILED[key](batch() if data is None else data)
    facts = net.bind(p).tested
    return p, group, facts


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    module = plugin.module("tokenizers", name)
    assert next(iter(inspect.signature(module.make).parameters)) == "context"
    assert set(module.DEBUG) <= set(inspect.signature(module.make).parameters)
    assert module.__doc__ and module.make.__doc__
    p, group, facts = tokenize(spec(name))
    lead = (B, W) if facts.per_step else (B,)
    assert group.tokens.shape == (*lead, facts.num_tokens, D)
    assert group.valid.shape == (*lead, facts.num_tokens) and group.valid.dtype == bool
    assert group.stem.shape[:-1] == group.tokens.shape[:-1]
    assert isinstance(facts.reads, tuple)
    if group.grid is not None:
        assert group.grid[0] * group.grid[1] == facts.num_tokens
    if facts.per_step:  # nothing is real before the episode began
        assert not np.asarray(group.valid)[0, 0].any() and np.asarray(group.valid)[0, 1].all()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(p))


@pytest.mark.parametrize("name", NAMES)
def test_the_spec_says_what_it_reads(name):
    made, data = spec(name), batch()
    seen = data.observation
    for field, said in (("images", specs.views(made)), ("proprio", specs.readings(made))):
        assert set(said) <= set(getattr(seen, field))
        for entry in getattr(seen, field):
            left = {k: v for k, v in getattr(seen, field).items() if k != entry}
            less = dataclasses.replace(data, observation=dataclasses.replace(seen, **{field: left}))
            refused = pytest.raises(plugin.UserError, match=entry)
            with refused if entry in said else contextlib.nullcontext():
                jax.eval_shape(Host(made).init, jax.random.key(0), less)


@pytest.mark.parametrize("name", NAMES)
def test_compute_dtype_and_another_trunk_width(name):
    net = Host(spec(name), dtype=jnp.bfloat16, width=24)
    group, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), batch())
    assert group.tokens.dtype == group.stem.dtype == jnp.bfloat16
    assert group.tokens.shape[-1] == 24


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_and_reach_every_parameter(name):
    net, data = Host(spec(name), width=24, text_width=12), batch()
    p, _, _ = tokenize(spec(name), width=24, text_width=12)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(net.apply(p, data).tokens))))(p)
    own = {path: leaf for path, leaf in trees.items(gradient) if "/tested/" in path}
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in own.values())


@pytest.mark.parametrize("name", NAMES)
def test_unknown_argument_names_the_nearest(name):
    known = next(iter(spec(name, reads=()).keys() - {"type"}))
    with pytest.raises(plugin.UserError, match=known):
        tokenize(spec(name, **{known + "s_": 1}))


def test_frozen_dataclass_group_is_a_pytree_with_a_static_grid():
    _, group, _ = tokenize(spec("image_patch"))
    shapes = jax.tree.map(lambda leaf: leaf.shape, group)
    assert shapes.grid == (2, 2) and dataclasses.is_dataclass(shapes)
