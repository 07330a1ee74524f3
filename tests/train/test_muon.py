"""Muon against a plain numpy Newton-Schulz, matrix by matrix; its state on a mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train import toy
from vla_jax import config as config_lib
from vla_jax import plugin, trees
from vla_jax.parallel import mesh as meshes
from vla_jax.parallel import sharding
from vla_jax.train import checkpoint, optimizer, start
from vla_jax.train import step as steps

LAYERS, D, N, H, F = 2, 8, 2, 4, 16
SHAPES = {
    "params": {
        "trunk": {
            "layers": {
                "trunk": {
                    "query": {"kernel": (LAYERS, D, N, H), "bias": (LAYERS, N, H)},
                    "out": {"kernel": (LAYERS, N, H, D)},
                    "mlp": {
                        "hidden_0": {"kernel": (LAYERS, D, F)},
                        "out": {"kernel": (LAYERS, F, D)},
                    },
                }
            }
        },
        "heads_action": {"out": {"kernel": (D, 6)}},
    }
}  # fmt: skip


def drawn(seed: int) -> dict:
    rng = np.random.default_rng(seed)

    def one(shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return jax.tree.map(one, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


PARAMS = drawn(0)
GRADS = [drawn(seed) for seed in (1, 2, 3)]


def settings(**changes) -> config_lib.OptimizerConfig:
    given = dict(type="muon", lr=0.1, schedule="constant", clip=None, weight_decay=0.02)
    return config_lib.OptimizerConfig(**(given | changes))


def advance(chain, params, state, grads) -> tuple:
    """(parameters, state) after one gradient."""
    update = optax.with_extra_args_support(chain).update
    updates, state = update(grads, state, params, loss=jnp.ones(()))
    return optax.apply_updates(params, updates), state


STEPPED = {}


def stepped(config, steps=3) -> dict[str, np.ndarray]:
    """{path: PARAMS after the first gradients}, computed once per config."""
    key = repr((config, steps))
    if key not in STEPPED:
        STEPPED[key] = _stepped(config, steps)
    return STEPPED[key]


def _stepped(config, steps) -> dict[str, np.ndarray]:
    chain, params = optimizer.make(config, 10, PARAMS), PARAMS
    state = chain.init(params)
    step = jax.jit(functools.partial(advance, chain))
    for grads in GRADS[:steps]:
        params, state = step(params, state, grads)
    return {path: np.asarray(leaf) for path, leaf in trees.items(params)}


def newton_schulz(m: np.ndarray) -> np.ndarray:
    """Jordan et al. 2024, as written there: five quintic steps on the wide orientation."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = m.T if m.shape[0] > m.shape[1] else m
    x = x / np.sqrt((x**2).sum())
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if m.shape[0] > m.shape[1] else x


def reference(name: str, split: int) -> np.ndarray:
    """A stacked parameter after GRADS; `split` axes after the layers' are a matrix's inputs."""
    whole = dict(trees.items(PARAMS))[name]
    made = []
    for layer in range(LAYERS):
        shape = whole.shape[1:]
        rows = int(np.prod(shape[:split]))
        p = np.asarray(whole[layer], np.float64).reshape(rows, -1)
        momentum = np.zeros_like(p)
        for t, grads in enumerate(GRADS, start=1):
            g = np.asarray(dict(trees.items(grads))[name][layer], np.float64).reshape(rows, -1)
            momentum = 0.95 * momentum + 0.05 * g
            ahead = 0.95 * momentum / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
            step = newton_schulz(ahead) * 0.2 * np.sqrt(max(p.shape))
            p = p - 0.1 * (step + 0.02 * p)
        made.append(p.reshape(shape))
    return np.stack(made)


@pytest.mark.parametrize(
    "name, split",
    [("query/kernel", 1), ("out/kernel", 2), ("mlp/hidden_0/kernel", 1), ("mlp/out/kernel", 1)],
)
def test_matrices_move_as_the_reference_says(name, split):
    path = f"params/trunk/layers/trunk/{name}"
    np.testing.assert_allclose(
        stepped(settings())[path], reference(path, split), rtol=2e-4, atol=2e-5
    )


def test_the_rest_is_adamw():
    muon, adamw = stepped(settings()), stepped(settings(type="adamw"))
    for path in muon:
        same = np.array_equal(muon[path], adamw[path])
        assert same == (not path.endswith("kernel") or "heads_action" in path), path


def test_an_update_has_singular_values_of_about_one():
    config = settings(lr=1.0, weight_decay=0.0)
    moved = stepped(config, steps=1)
    path = "params/trunk/layers/trunk/mlp/hidden_0/kernel"
    steps = np.asarray(dict(trees.items(PARAMS))[path]) - moved[path]
    for layer, step in enumerate(steps):
        values = np.linalg.svd(step / (0.2 * np.sqrt(F)), compute_uv=False)
        assert values.min() > 0.5 and values.max() < 1.3
        u, _, v = np.linalg.svd(np.asarray(dict(trees.items(GRADS[0]))[path][layer]))
        turned = u.T @ step @ v.T  # diagonal: the gradient's own directions
        off = turned - np.pad(np.diag(np.diag(turned)), ((0, 0), (0, F - D)))
        assert np.abs(off).max() < 1e-4


def test_factors_by_parameter_and_layer_hold():
    groups = ((r".*/query/kernel", {"lr": (0.0, 1.0)}), (r".*", {}))
    path = "params/trunk/layers/trunk/query/kernel"
    moved = stepped(settings(groups=groups))[path]
    whole = stepped(settings())[path]
    np.testing.assert_array_equal(moved[0], dict(trees.items(PARAMS))[path][0])
    np.testing.assert_allclose(moved[1], whole[1])


@pytest.mark.slow
@pytest.mark.mesh
def test_on_a_mesh_the_state_is_sharded_and_the_steps_are_the_same():
    config = settings(clip=1.0, skip=5.0)
    mesh = meshes.make(dict(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    chain = optimizer.make(config, 10, PARAMS)

    rules = config_lib.ShardingConfig().rules
    with meshes.use(mesh):
        state = chain.init(PARAMS)
        over = [sharding.state_shardings(t, PARAMS, rules, mesh, 16) for t in (PARAMS, state)]
        params, state = jax.device_put(PARAMS, over[0]), jax.device_put(state, over[1])
        step = jax.jit(functools.partial(advance, chain), out_shardings=tuple(over))
        for grads in GRADS:
            params, state = step(params, state, jax.device_put(grads, over[0]))
    alone = stepped(config)
    for path, leaf in trees.items(params):
        np.testing.assert_allclose(
            np.asarray(leaf), alone[path], rtol=1e-4, atol=1e-5, err_msg=path
        )
    found = dict(trees.items(params))
    moments = [(p, x) for p, x in trees.items(state) if sharding.owner(p, found) and "/mu/" in p]
    assert len(moments) == len(found)  # each parameter has one, Muon's or AdamW's
    for path, leaf in moments:
        parameter = found[sharding.owner(path, found)]
        assert leaf.sharding.is_equivalent_to(parameter.sharding, leaf.ndim), path
    split = [leaf for path, leaf in moments if "hidden_0/kernel" in path]
    assert split[0].addressable_shards[0].data.size * 4 == split[0].size  # fsdp and tensor


@pytest.mark.parametrize(
    "rows, said",
    [
        (((r"params/trunk/.*/quary/kernel", {"inputs": (1,), "outputs": (2,)}),), "matches no"),
        (((r".*/query/kernel", {"inputs": (1,), "outputs": (4,)}),), "from 0 to 3"),
        (((r".*/query/kernel", {"inputs": (1,), "outputs": (1,)}),), "each once"),
        (((r".*/query/kernel", {"inputs": (1,)}),), "inputs and outputs"),
        (((r".*", None),), "no row names a matrix"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows, said):
    with pytest.raises(plugin.UserError, match=said):
        optimizer.make(settings(muon=rows), 10, PARAMS)


@pytest.mark.slow
def test_a_state_is_saved_and_comes_back(tmp_path):
    rows = (("params/kernel", {"inputs": (1,), "outputs": (2,)}), (".*", None))
    config = toy.config(optimizer=dict(type="muon", muon=rows))
    mesh = meshes.make(devices=jax.devices()[:1])
    plan = start.plan(config, toy.Model(), toy.batches(config), mesh)
    state = start.fresh(plan)
    grads = jax.tree.map(jnp.cos, state.trained)
    state = steps._advance(state, grads, jnp.ones(()), plan.optimizer, config.optimizer)
    saver = checkpoint.Checkpoints(str(tmp_path), config, checkpoint.Assets())
    saver.save(1, state, {"robot": 16, "vl": 8})
    saver.wait()
    back, meta = saver.restore(plan.abstract)
    saver.close()
    assert meta.config == config and meta.step == 1
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)
    moments = [path for path, _ in trees.items(back.opt_state) if path.endswith("params/kernel")]
    assert len(moments) == 1  # a momentum, and no second moment


def test_a_config_with_rows_survives_json():
    config = dataclasses.replace(settings(), muon=((r".*", None),))
    back = config_lib.parse(config_lib.OptimizerConfig, dataclasses.asdict(config))
    assert back == config
