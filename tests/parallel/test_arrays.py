import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from vla_jax import plugin
from vla_jax.parallel import arrays
from vla_jax.parallel import mesh as meshes


def test_one_host_owns_every_row():
    mesh = meshes.make({"data": 2, "fsdp": 2, "tensor": 2})
    np.testing.assert_array_equal(arrays.rows_of_host(mesh, 8), np.arange(8))
    with pytest.raises(
        plugin.UserError, match="batch_size 6 is not divisible by the 4.*nearest: 4"
    ):
        arrays.rows_of_host(mesh, 6)


def test_global_batch_keeps_rows_in_place():
    mesh = meshes.make({"data": 2, "fsdp": 2, "tensor": 2})
    local = {
        "a": np.arange(24, dtype=np.float32).reshape(8, 3),
        "id": np.arange(8, dtype=np.uint32),
    }
    out = arrays.global_batch(local, mesh)
    for name in local:
        np.testing.assert_array_equal(np.asarray(out[name]), local[name])
        assert out[name].sharding == arrays.batch_sharding(mesh)
    assert out["a"].addressable_shards[0].data.shape == (2, 3)


def test_rows_follow_the_devices_not_the_process(monkeypatch):
    """Half of the devices are elsewhere, in an order of its own: rows follow our devices."""
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    devices = np.asarray([jax.devices()[i] for i in order]).reshape(8, 1, 1, 1)
    mesh = Mesh(devices, meshes.AXES)
    sharding = type(arrays.batch_sharding(mesh))
    everything = sharding.devices_indices_map

    def ours(self, shape):
        return {d: i for d, i in everything(self, shape).items() if d.id < 4}

    monkeypatch.setattr(sharding, "addressable_devices_indices_map", ours)
    np.testing.assert_array_equal(arrays.rows_of_host(mesh, 16), [0, 1, 4, 5, 8, 9, 12, 13])


def test_fetch_gives_numpy():
    assert isinstance(arrays.fetch({"loss": jax.numpy.ones(())})["loss"], np.ndarray)
