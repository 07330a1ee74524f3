"""The real trunk under rows with fsdp and tensor: XLA gets such gradients wrong where activations
are left unconstrained (parallel/sharding.py), so the trunk's own are compared with one device.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax import config as config_lib
from vla_jax import trees
from vla_jax.nn import attention_kernels, layout, trunk
from vla_jax.parallel import arrays, sharding
from vla_jax.parallel import mesh as meshes

G = layout.Group
ROWS = layout.Layout.make([G("language", 2), G("image", 3, 2)], 2)
SIZES = dict(width=16, depth=2, heads=4, mlp=32, rules=(("*", "*", "past_or_now"),))
NET = trunk.Trunk(**SIZES)
VALID = np.ones((8, ROWS.length), bool)


def loss(params, x, valid, net=NET):
    out, _ = net.apply(params, {"trunk": x}, ROWS, valid)
    return jnp.sum(out["trunk"] * jnp.cos(x))


@pytest.mark.mesh
@pytest.mark.parametrize(
    "axes, more",
    [
        ((2, 2, 2, 1), {}),
        ((1, 4, 2, 1), {}),
        ((1, 2, 2, 2), {}),
        ((2, 2, 2, 1), dict(attention="splash", remat="full")),
    ],
)
def test_gradients_agree_with_one_device(axes, more, monkeypatch):
    monkeypatch.setattr(attention_kernels, "INTERPRET", True)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, ROWS.length, 16)).astype(np.float32)
    shapes = jax.eval_shape(
        lambda x, v: NET.init(jax.random.key(0), {"trunk": x}, ROWS, v), x, VALID
    )
    params = trees.map_with_path(
        lambda path, leaf: rng.normal(float("scale" in path), 0.3, leaf.shape).astype(np.float32),
        shapes,
    )
    params = {"params": {"trunk": params["params"]}}  # its place in the network
    rules = config_lib.ShardingConfig().rules
    mesh = meshes.make(dict(zip(meshes.AXES, axes)))
    shardings = sharding.state_shardings(params, params, rules, mesh, small=1)
    inner = lambda tree: {"params": tree["params"]["trunk"]}  # noqa: E731
    expected = jax.device_get(jax.jit(jax.grad(loss))(inner(params), x, VALID))
    with meshes.use(mesh):
        placed = jax.device_put(inner(params), inner(shardings))
        split = arrays.global_batch((x, VALID), mesh)
        spread_loss = functools.partial(loss, net=trunk.Trunk(**SIZES, **more))
        got = jax.jit(jax.grad(spread_loss), out_shardings=inner(shardings))(placed, *split)
    spread = {axis for s in jax.tree.leaves(shardings) for axis in s.spec if axis}
    assert spread >= {name for name in ("fsdp", "tensor") if mesh.shape[name] > 1}
    norm = lambda tree: np.sqrt(sum(np.sum(np.square(a)) for a in jax.tree.leaves(tree)))  # noqa: E731
    assert norm(jax.tree.map(np.subtract, expected, jax.device_get(got))) <= 1e-5 * norm(expected)
