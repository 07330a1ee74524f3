"""Random keys: one per row of a batch, a function of (seed, use, row_id) and nothing else."""

from __future__ import annotations

import zlib

import jax


def row_keys(seed: int, use: str, row_id: jax.Array) -> jax.Array:
    """One key per row, [B]; `use` names the stream and what the key is for ("robot/action").

    Accumulation, meshes and hosts do not change a row's key: `row_id` is its number in the stream.
    """
    # crc32: Python's own hash differs from process to process.
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(use.encode()))
    return jax.vmap(jax.random.fold_in, (None, 0))(key, row_id)
