"""Attention by kernels that one platform has each; attention.py decides what they are asked.

    splash  TPU: jax's own Pallas kernel (jax.experimental.pallas.ops.tpu.splash_attention). What
            the rules let nobody see is known while tracing, and blocks of it are skipped. Padding
            differs by row: keys carry a segment, 1 where they are real, and all queries are of 1
    cudnn   GPU: cuDNN's flash attention (jax.nn.dot_product_attention). The mask goes in as a bias
            [B, 1, L, S] that is added to the scores: no weights are kept, but no pair is skipped

Both want sizes of their own, so tokens are added that nobody sees and that are cut off again. Under
a mesh each device runs the kernel on its rows and heads. A kernel's answer to a query that may see
nothing is some finite number, which attention.py replaces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax import plugin
from vla_jax.parallel import mesh

INTERPRET = False  # Pallas's interpreter in place of a TPU, slow: what tests set
LANES = 128  # splash cuts queries and keys by multiples of it
LARGEST = 512  # not tuned: no TPU was at hand


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Where a kernel runs, and what computes the same anywhere."""

    platform: str  # as jax.Device.platform says it
    plain: str  # the implementation in XLA's operations that computes about the same pairs
    untested: str  # what is yet to be seen of it; `auto` takes none of which something is
    dtypes: tuple[str, ...]


KERNELS = {
    "splash": Kernel(
        platform="tpu",
        plain="structured",
        untested="interpreted and compiled for TPUs, never run on one",
        dtypes=("float32", "bfloat16"),
    ),
    "cudnn": Kernel(
        platform="gpu",
        plain="chunked",
        untested="lowered for GPUs, never run on one",
        dtypes=("bfloat16", "float16"),
    ),
}


def plain(name: str) -> str:
    """The implementation in XLA's own operations that stands for `name` on other platforms."""
    return KERNELS[name].plain if name in KERNELS else name


def check(name: str, dtype: str) -> None:
    """UserError if `name` is a kernel that does not run on the current mesh's devices, in `dtype`.

    Implementations that are no kernels run anywhere.
    """
    if name not in KERNELS:
        return
    kernel, here = KERNELS[name], mesh.platform()
    instead = f"trunk.attention={kernel.plain!r} (the same numbers on any platform), or 'auto'"
    if here != kernel.platform and not (name == "splash" and INTERPRET):
        plan = " (planning for TPUs takes libtpu, extra `plan`)" if kernel.platform == "tpu" else ""
        raise plugin.UserError(
            f"attention {name!r}: got platform {here!r}, expected {kernel.platform!r}{plan}; "
            f"give {instead}"
        )
    if dtype not in kernel.dtypes:
        raise plugin.UserError(
            f"attention {name!r}: got {dtype}, expected {' or '.join(kernel.dtypes)}; give "
            f"model.dtype={kernel.dtypes[0]!r}, or {instead}"
        )


def run(
    name: str,
    query: jax.Array,  # [B, L, N, H], scaled
    key: jax.Array,  # [B, S, K, H]
    value: jax.Array,  # [B, S, K, H]
    seen: np.ndarray,  # bool [L, S]: what the rules say
    valid: jax.Array,  # bool [B, S]: which keys are real
) -> jax.Array:
    """[B, L, N, H] by the kernel `name`; any finite number for a query that may see nothing.

    UserError where the platform does not have it, or not for these sizes.
    """
    check(name, str(query.dtype))
    made = {"splash": _splash, "cudnn": _cudnn}[name]
    heads = ("batch", None, "tensor", None)
    return mesh.split(
        lambda q, k, v, valid: made(q, k, v, seen, valid),
        (heads, heads, heads, ("batch", None)),
        heads,
        (query, key, value, valid),
    )


def _splash(query, key, value, seen: np.ndarray, valid) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention

    (rows, _), (columns, _) = map(_sizes, seen.shape)
    segments = splash_attention.SegmentIds(
        jnp.ones((valid.shape[0], rows), jnp.int32), _longer(valid.astype(jnp.int32), columns)
    )
    parts = (_longer(query, rows), _longer(key, columns), _longer(value, columns))
    kernel = splash_kernel(seen, heads=query.shape[2])
    mixed = jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in parts), segments)  # [B, N, rows, H]
    return mixed.swapaxes(1, 2)[:, : len(seen)]


def splash_kernel(seen: np.ndarray, heads: int) -> Callable[..., jax.Array]:
    """The kernel for what the rules say, `seen` bool [L, S]; both lengths as `_sizes` has them."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    (rows, block_q), (columns, block_kv) = map(_sizes, seen.shape)
    mask = np.pad(seen, ((0, rows - seen.shape[0]), (0, columns - seen.shape[1])))
    # The kernel would divide by zero for a block of queries without any key.
    empty = np.flatnonzero(~mask.reshape(-1, block_q, columns).any((1, 2)))
    mask[empty * block_q, 0] = True
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([splash_attention.NumpyMask(mask)] * heads),
        block_sizes=splash_attention.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_q_dq=block_q,
            block_kv_dq=block_kv,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=INTERPRET,
    )


def _sizes(count: int) -> tuple[int, int]:
    """(tokens with those that are added, tokens of a block)."""
    lanes = -(-count // LANES)
    most = LARGEST // LANES
    return lanes * LANES, LANES * max(n for n in range(1, most + 1) if lanes % n == 0)


def _cudnn(query, key, value, seen: np.ndarray, valid) -> jax.Array:
    queries, keys = seen.shape
    rows, columns = queries + queries % 2, keys + keys % 2  # its backward pass takes even ones
    mask = _longer(jnp.asarray(seen)[None] & valid[:, None], rows)
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, columns - keys)))
    try:
        mixed = jax.nn.dot_product_attention(
            _longer(query, rows),
            _longer(key, columns),
            _longer(value, columns),
            mask=mask[:, None],
            scale=1.0,
            implementation="cudnn",
        )
    except (NotImplementedError, RuntimeError) as error:  # the size of heads, no cuDNN
        raise plugin.UserError(
            f"attention 'cudnn': {str(error).rstrip('.')}; query [B, L, N, H] {query.shape}; "
            f"change trunk.head_dim, or give trunk.attention={KERNELS['cudnn'].plain!r}"
        ) from error
    return mixed[:, :queries]


def _longer(x: jax.Array, length: int) -> jax.Array:
    """[B, length, …]: x [B, L, …] with zeros behind."""
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)))
