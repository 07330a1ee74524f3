"""The one function that makes a mesh, the context that uses it, and hints for activations.

Axes: ``data`` (replicas), ``fsdp`` (replicas that shard the state), ``tensor`` (widths split),
``sequence`` (tokens split). A batch is split over data and fsdp. No module holds a mesh: `use`
makes it current in this thread, `constrain` reads the current one and does nothing without one.

Devices come in parts with a fast network inside and a slow one between: slices of TPUs, hosts of
GPUs (jax numbers both as `slice_index`), else processes. Between parts lie `data`, then `fsdp`;
`tensor` and `sequence`, which talk in every layer, stay inside one.
"""

from __future__ import annotations

import collections
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, PartitionSpec

from vla_jax import plugin

AXES = ("data", "fsdp", "tensor", "sequence")
BATCH = ("data", "fsdp")


def make(
    axes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh over all devices (or `devices`) with every axis of AXES, absent ones of size 1.

    One axis may be -1: the devices that the others leave. Raises UserError for an unknown axis,
    for sizes that do not multiply to the number of devices, and as `order` does.
    """
    axes = dict({"data": -1} if axes is None else axes)
    devices = list(jax.devices() if devices is None else devices)
    count = len(devices)
    for name in axes:
        if name not in AXES:
            raise plugin.UserError(plugin.unknown("mesh", name, AXES))
    sizes = [int(axes.get(name, 1)) for name in AXES]
    if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
        raise plugin.UserError(f"mesh {axes}: sizes are positive, at most one is -1 (the rest)")
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and count % fixed == 0:
        sizes[sizes.index(-1)] = count // fixed
    if math.prod(sizes) != count:
        raise plugin.UserError(
            f"mesh {axes}: needs a multiple of {fixed} devices, got {count}"
            if -1 in sizes
            else f"mesh {axes}: {fixed} places for {count} devices; set one axis to -1 (the rest)"
        )
    # Auto, explicitly: under Explicit ordinary Linen layers raise.
    return Mesh(order(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def order(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices as an array of the shape `sizes`, one size for each of AXES.

    Raises UserError for parts of unlike size, and for sizes under which `tensor` or `sequence`
    would reach from one part into another.
    """
    sizes, devices = tuple(sizes), list(devices)
    # jax cuts a ring of the torus only where whole ones do not fit, as for fsdp=8 on 16x16.
    split = dict(allow_split_physical_axes=True)
    numbered = "slice_index" if hasattr(devices[0], "slice_index") else "process_index"
    parts = collections.Counter(getattr(device, numbered) for device in devices)
    on_one_network = numbered == "process_index" and devices[0].platform == "tpu"
    if len(parts) == 1 or on_one_network:
        return mesh_utils.create_device_mesh(sizes, devices, **split)
    if len(set(parts.values())) > 1:
        raise plugin.UserError(f"mesh: parts of unlike size, devices by {numbered}: {dict(parts)}")
    outside = math.gcd(sizes[0], len(parts))
    between = (outside, math.gcd(sizes[1], len(parts) // outside), 1, 1)  # data, then fsdp
    if math.prod(between) != len(parts):
        raise plugin.UserError(
            f"mesh {dict(zip(AXES, sizes))}: {len(parts)} parts (slices or hosts, by {numbered}) "
            f"of {len(devices) // len(parts)} devices; data x fsdp must be a multiple of "
            f"{len(parts)}, so that tensor and sequence stay inside one"
        )
    inside = tuple(size // ways for size, ways in zip(sizes, between))
    return mesh_utils.create_hybrid_device_mesh(
        inside, between, devices, process_is_granule=numbered == "process_index", **split
    )


@contextlib.contextmanager
def use(mesh: Mesh | None) -> Iterator[Mesh | None]:
    """Makes the mesh current in this thread (None: nothing); each thread enters it for itself."""
    if mesh is None:
        yield None
        return
    with jax.set_mesh(mesh):  # takes effect when made, hence made here and never kept
        yield mesh


def constrain(x: jax.Array, *axes: str | Sequence[str] | None) -> jax.Array:
    """`x` with the hint that its leading axes lie as named; further axes are whole.

    "batch" stands for (data, fsdp), other names are mesh axes, None is whole. Without a current
    mesh, or on one device, `x` itself. An axis that does not divide (a batch of one) is left whole:
    values never depend on a hint. Not for shard_map. Raises ValueError for more names than axes.
    """
    if len(axes) > x.ndim:
        raise ValueError(f"constrain: {len(axes)} names {axes} for shape {x.shape}")
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = []
    for size, axis in zip(x.shape, axes):
        names = _names(axis)
        ways = math.prod(mesh.shape[name] for name in names)
        spec.append(names if ways > 1 and size % ways == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def split(
    function: Callable[..., jax.Array],
    axes: Sequence[Sequence[str | None]],
    out: Sequence[str | None],
    arrays: Sequence[jax.Array],
) -> jax.Array:
    """function(*arrays), each device by itself on its part: for kernels, which XLA cannot cut.

    `axes` names the axes of each array, and `out` those of the answer, as in `constrain`. A name is
    dropped everywhere if some axis that bears it does not divide. Without a current mesh, or on
    one device, the function is called as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*arrays)
    named = [pair for x, names in zip(arrays, axes) for pair in zip(x.shape, names) if pair[1]]
    whole = {
        axis for size, axis in named if size % math.prod(mesh.shape[name] for name in _names(axis))
    }

    def spec(names):
        return PartitionSpec(*(None if axis in whole else _names(axis) or None for axis in names))

    # Kernels do not say over which axes their answers vary, so nobody can check it.
    parted = jax.shard_map(
        function, in_specs=tuple(map(spec, axes)), out_specs=spec(out), check_vma=False
    )
    return parted(*arrays)


def platform() -> str:
    """What the current mesh's devices are ("cpu", "gpu", "tpu"); without one, jax's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _names(axis: str | Sequence[str] | None) -> tuple[str, ...]:
    """The mesh axes that a name of `constrain` stands for."""
    return BATCH if axis == "batch" else (axis,) if isinstance(axis, str) else tuple(axis or ())
