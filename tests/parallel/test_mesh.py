import dataclasses
import functools
import math
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


@pytest.mark.mesh
@pytest.mark.parametrize(
    "axes, local",
    [
        (dict(data=2, fsdp=2, tensor=2), [(2, 5, 2), (2, 5, 1), (2,)]),
        (
            dict(data=2, tensor=4),
            [(4, 5, 4), (4, 5, 2), (4,)],
        ),  # 2 does not divide by 4: 4 is whole
        (dict(fsdp=8), [(1, 5, 4), (1, 5, 2), (1,)]),
        (dict(tensor=2, sequence=4), [(8, 5, 2), (8, 5, 1), (8,)]),
        (dict(), [(8, 5, 4), (8, 5, 2), (8,)]),
    ],
)
def test_split_gives_each_device_its_part(axes, local):
    """What a device sees, and the values and derivatives of all together."""
    rng, shapes = np.random.default_rng(0), [(8, 5, 4), (8, 5, 2), (8,)]
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    seen = []

    def function(x, y, z):
        seen.append([a.shape for a in (x, y, z)])
        return x * jnp.repeat(y, x.shape[2] // y.shape[2], axis=2) * z[:, None, None]

    def loss(run, arrays):
        return jnp.sum(jnp.sin(run(*arrays)))

    def split(*arrays):
        heads = ("batch", None, "tensor")
        return meshes.split(function, (heads, heads, ("batch",)), heads, arrays)

    expected = jax.grad(functools.partial(loss, function))(arrays)
    seen.clear()
    mesh = meshes.make(axes, jax.devices()[: math.prod(axes.values())])
    with meshes.use(mesh):
        found = jax.jit(jax.grad(functools.partial(loss, split)))(arrays)
    assert seen[0] == local
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_platform_is_the_meshes():
    assert meshes.platform() == jax.default_backend()
    with meshes.use(meshes.make()):
        assert meshes.platform() == "cpu"
        assert jax.jit(lambda x: x if meshes.platform() == "cpu" else 1 / 0)(1) == 1


@dataclasses.dataclass(frozen=True)
class Device:
    """A device of a machine that is not there."""

    id: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100"


@dataclasses.dataclass(frozen=True)
class OfSlice(Device):
    slice_index: int = 0


@dataclasses.dataclass(frozen=True)
class Tpu(OfSlice):
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0


def torus(kind: str, shape: tuple[int, int, int], slices: int = 1) -> list[Tpu]:
    """The chips of slices of TPUs, as jax lists them: four to a host."""
    places = [(x, y, z) for z in range(shape[2]) for y in range(shape[1]) for x in range(shape[0])]
    made = [(number, place) for number in range(slices) for place in places]
    return [Tpu(i, i // 4, "tpu", kind, n, place) for i, (n, place) in enumerate(made)]


def hosts(count: int, each: int, shuffled: bool = False) -> list[Device]:
    made = [Device(i, i // each) for i in range(count * each)]
    return list(np.random.default_rng(0).permutation(np.array(made))) if shuffled else made


def slices(count: int, each: int, process_of) -> list[Device]:
    return [OfSlice(i, process_of(i), slice_index=i // each) for i in range(count * each)]


def across(found: np.ndarray, axis: int, attribute: str) -> bool:
    """Whether some line of the array along `axis` holds devices of several parts."""
    numbers = np.vectorize(lambda d: getattr(d, attribute))(found)
    return bool((np.take(numbers, [0], axis) != numbers).any())


@pytest.mark.parametrize("sizes", [(4, 4, 1, 1), (2, 2, 4, 1), (1, 4, 2, 2), (8, 1, 1, 2)])
@pytest.mark.parametrize("shuffled", [False, True])
def test_tensor_and_sequence_stay_inside_a_host(sizes, shuffled):
    devices = hosts(4, 4, shuffled)
    found = meshes.order(sizes, devices)
    assert found.shape == sizes and set(found.flat) == set(devices)
    assert not across(found, 2, "process_index") and not across(found, 3, "process_index")
    assert across(found, 0, "process_index") or across(found, 1, "process_index")


def test_data_lies_between_slices_before_fsdp_does():
    # One process per GPU: hosts are told by slice_index, not by process.
    found = meshes.order((2, 4, 2, 1), slices(2, 8, process_of=lambda i: i))
    assert across(found, 0, "slice_index")
    assert not any(across(found, axis, "slice_index") for axis in (1, 2, 3))
    found = meshes.order((1, 8, 2, 1), slices(2, 8, process_of=lambda i: i))
    assert across(found, 1, "slice_index") and not across(found, 2, "slice_index")


def test_several_processes_of_one_slice_are_one_network():
    devices = slices(1, 8, process_of=lambda i: i // 2)
    assert list(meshes.order((1, 1, 8, 1), devices).flat) == devices


@pytest.mark.parametrize("sizes", [(8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 2, 1), (1, 2, 2, 2)])
def test_two_processes_in_order_keep_their_order(sizes):
    assert [d.id for d in meshes.order(sizes, hosts(2, 4)).flat] == list(range(8))


def test_one_host_keeps_its_order():
    assert list(meshes.order((2, 2, 2, 1), hosts(1, 8)).flat) == hosts(1, 8)
    made = meshes.make({"data": 2, "fsdp": 2, "tensor": 2})
    assert [d.id for d in made.devices.flat] == list(range(8))


@pytest.mark.parametrize(
    "kind, shape, sizes, slices",
    [
        ("TPU v6 lite", (16, 16, 1), (32, 8, 1, 1), 1),
        ("TPU v6 lite", (16, 16, 1), (32, 8, 2, 1), 2),
        ("TPU v5 lite", (16, 16, 1), (32, 8, 1, 1), 1),
        ("TPU v4", (4, 4, 4), (8, 8, 1, 1), 1),
        ("TPU v5", (4, 4, 4), (2, 32, 1, 1), 1),
    ],
)
def test_an_axis_that_fits_no_whole_links_of_a_torus(kind, shape, sizes, slices):
    devices = torus(kind, shape, slices)
    found = meshes.order(sizes, devices)
    assert found.shape == sizes and set(found.flat) == set(devices)
    assert not any(across(found, axis, "slice_index") for axis in (1, 2, 3))


def test_an_axis_that_fits_whole_links_keeps_them():
    found = meshes.order((16, 16, 1, 1), torus("TPU v6 lite", (16, 16, 1)))
    for row in found[:, :, 0, 0]:  # a ring: all chips of one coordinate
        x, y, _ = zip(*(device.coords for device in row))
        assert len(set(x)) == 1 or len(set(y)) == 1


@pytest.mark.parametrize(
    "sizes, devices, message",
    [
        ((1, 1, 16, 1), hosts(2, 8), "must be a multiple of 2"),
        ((2, 1, 4, 2), hosts(4, 4), "4 parts .* of 4 devices"),
        ((3, 4, 1, 1), hosts(2, 8)[:12], "parts of unlike size"),
    ],
)
def test_what_no_order_can_keep_inside(sizes, devices, message):
    with pytest.raises(plugin.UserError, match=message):
        meshes.order(sizes, devices)
