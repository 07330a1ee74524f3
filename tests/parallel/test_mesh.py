import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from vla_jax import plugin
from vla_jax.parallel import mesh as meshes


def test_axes_and_the_rest():
    mesh = meshes.make({"data": 2, "fsdp": -1, "tensor": 2})
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}
    assert all(kind == AxisType.Auto for kind in mesh.axis_types)
    assert meshes.make(devices=jax.devices()[:1]).size == 1
    assert meshes.make().shape["data"] == len(jax.devices())


@pytest.mark.parametrize(
    "axes, message",
    [
        ({"dta": 8}, "did you mean 'data'"),
        ({"data": 3}, "3 places for 8 devices"),
        ({"data": -1, "fsdp": 3}, "multiple of 3"),
        ({"data": -1, "fsdp": -1}, "at most one"),
        ({"data": 0}, "positive"),
    ],
)
def test_bad_axes(axes, message):
    with pytest.raises(plugin.UserError, match=message):
        meshes.make(axes)


def test_constrain_without_mesh_is_nothing():
    x = jnp.ones((4, 2))
    assert meshes.constrain(x, "batch", None) is x
    with pytest.raises(ValueError, match="names"):
        meshes.constrain(x, "batch", None, None)


@pytest.mark.mesh
def test_constrain_shards_also_from_a_second_thread():
    mesh, specs = meshes.make({"data": 2, "fsdp": 2, "tensor": 2}), []
    f = jax.jit(lambda x: meshes.constrain(x * 2, "batch", None, "tensor"))

    def call():
        with meshes.use(mesh):
            specs.append(f(jnp.ones((4, 3, 2))).sharding.spec)

    call()
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert specs[0] == specs[1] and specs[0][0] == ("data", "fsdp")
    assert jax.sharding.get_abstract_mesh().empty  # and it left
    assert f(jnp.ones((4, 3, 2))).sharding.is_fully_replicated  # traced anew without a mesh


@pytest.mark.mesh
def test_constrain_leaves_what_does_not_divide():
    with meshes.use(meshes.make({"data": 8})):
        x = jax.jit(lambda x: meshes.constrain(x + 1, "batch"))(jnp.ones((3, 2)))
        np.testing.assert_array_equal(x, 2.0)
        grads = jax.vmap(jax.grad(lambda x: meshes.constrain(x, "batch").sum()))(jnp.ones((2, 8)))
        np.testing.assert_array_equal(grads, 1.0)
    with meshes.use(None):
        pass
