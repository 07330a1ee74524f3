"""Global arrays from the rows that this host loads.

A host loads exactly the rows that its addressable devices own. That follows from the sharding of
the batch, not from the process index: a mesh may order devices as it likes.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vla_jax import plugin
from vla_jax.parallel import mesh as meshes


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays [B, …] of a batch: rows over (data, fsdp)."""
    return NamedSharding(mesh, PartitionSpec(meshes.BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def rows_of_host(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Global rows [b] of a batch that this host's devices own, ascending.

    UserError if the batch does not divide over the mesh.
    """
    ways = shards(mesh)
    if batch_size % ways:
        raise plugin.UserError(
            f"batch_size {batch_size} is not divisible by the {ways} shards of the mesh "
            f"(data x fsdp); nearest: {max(batch_size // ways, 1) * ways}"
        )
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index[0]] for index in slices]))


def global_batch(tree: Any, mesh: Mesh) -> Any:
    """Arrays [B, …] over the mesh from host-local rows [b, …] that stand as `rows_of_host` says."""
    share = len(rows_of_host(mesh, shards(mesh)))  # shards of the batch on this host

    def assemble(local):
        local = np.asarray(local)
        size = len(local) * shards(mesh) // share
        position = np.full(size, -1)
        position[rows_of_host(mesh, size)] = np.arange(len(local))
        return jax.make_array_from_callback(
            (size, *local.shape[1:]), batch_sharding(mesh), lambda index: local[position[index[0]]]
        )

    return jax.tree.map(assemble, tree)


def fetch(tree: Any) -> Any:
    """Numpy copies of small replicated arrays (metrics), also where some devices are elsewhere."""

    def one(x):
        return np.asarray(x.addressable_data(0)) if isinstance(x, jax.Array) else np.asarray(x)

    return jax.tree.map(one, tree)


def shards(mesh: Mesh) -> int:
    """Into how many parts the mesh splits a batch."""
    return int(np.prod([mesh.shape[axis] for axis in meshes.BATCH]))
