"""Attention over a layout: one function that reads the layout and its rules, not a dense mask.

The mask is worked out with numpy while tracing and cached per (layout, rules). All
implementations give the same numbers:

    xla         all pairs at once, jax's derivative, which keeps the weights [B, N, L, S]
    chunked     by blocks of queries over all keys; no weights are kept for the backward pass, which
                computes them again from the softmax's normalizer (FlashAttention, Dao et al. 2022,
                in XLA's own operations)
    structured  the same, cut between timesteps; a block takes only the keys that the rules let some
                query of it see, and what a window of timesteps never sees costs nothing
    splash, cudnn  kernels of one platform each (attention_kernels.py)
    auto        xla for no more than BLOCK queries, else what AUTO says of the platform
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax import plugin
from vla_jax.nn import attention_kernels as kernels
from vla_jax.nn import layout as layouts
from vla_jax.nn import visibility
from vla_jax.parallel import mesh

MASKED = -1e30  # finite, so that a fully masked row has finite gradients
PLAIN = ("xla", "chunked", "structured")  # XLA's own operations: they run wherever jax does
IMPLEMENTATIONS = ("auto", *PLAIN, *kernels.KERNELS)
# A kernel may stand here once it was run on its platform and compared (attention_kernels.py).
AUTO = {"cpu": "structured", "gpu": "structured", "tpu": "structured"}
BLOCK = 384  # queries at most in a block; a layout of no more tokens is one
GAP = 64  # unseen keys in a row that are worth leaving out between seen ones

Span = tuple[int, int]  # first and last (exclusive) key
Block = tuple[int, int, tuple[Span, ...]]  # first and last (exclusive) query, its keys


def attention(
    query: jax.Array,  # [B, L, N, H]
    key: jax.Array,  # [B, S, K, H]
    value: jax.Array,  # [B, S, K, H]
    layout: layouts.Layout,
    rules: visibility.Rules,
    valid: jax.Array,  # bool [B, S]: which keys are real
    slots: np.ndarray | jax.Array | None = None,  # [L]: places of the queries; None: all, L = S
    unseeing: str = "zeros",
    implementation: str = "auto",
) -> jax.Array:
    """[B, L, N, H] in the query's dtype: what each query reads from the tokens it may see.

    `implementation` is one of IMPLEMENTATIONS; queries at traced `slots` (decoding) are few, what
    they see is not known while tracing, and they always go by xla. UserError for an unknown one,
    and for a kernel that the platform does not have.
    The softmax is float32; S is the layout's length. With K < N, N / K queries share a key head
    (grouped-query attention, Ainslie et al. 2023). A query that may see nothing gets zeros, and
    finite gradients; with `unseeing="mean"` it gets the mean of all values, as in flax (Octo).
    """
    if implementation not in IMPLEMENTATIONS:
        raise plugin.UserError(plugin.unknown("attention", implementation, IMPLEMENTATIONS))
    heads, key_heads = query.shape[2], key.shape[2]
    rules_see = visibility.mask(layout, rules)  # [S, S]
    blocks: tuple[Block, ...] = ()
    if isinstance(slots, jax.Array):
        implementation, rules_see = "xla", jnp.asarray(rules_see)[slots]
    else:
        places = np.arange(layout.length) if slots is None else slots
        rules_see = rules_see[places]
        if implementation == "auto":
            implementation = auto(mesh.platform(), len(places))
        if implementation == "structured":
            blocks = _blocks(rules_see, layout.time[places], whole=unseeing == "mean")
        elif implementation == "chunked":
            blocks = _blocks(rules_see, np.zeros(len(places)), whole=True)
    seen = jnp.logical_and(jnp.asarray(rules_see)[None], valid[:, None, :])  # [B, L, S]
    query = query * np.asarray(query.shape[-1] ** -0.5, query.dtype)
    if implementation in kernels.KERNELS:
        mixed = kernels.run(implementation, query, key, value, rules_see, valid)
        return _unseeing(mixed, value, seen, unseeing)
    query = query.reshape(*query.shape[:2], key_heads, heads // key_heads, -1)  # [B, L, K, G, H]
    if blocks:
        mixed = _by_blocks(blocks, unseeing, query, key, value, seen)
    else:
        mixed = _over_all(query, key, value, seen, unseeing)
    return mixed.reshape(*mixed.shape[:2], heads, -1)  # [B, L, N, H]


def auto(platform: str, queries: int) -> str:
    """What `auto` stands for on a platform: one that was run there, or that runs anywhere."""
    if queries <= BLOCK:
        return "xla"
    return AUTO[platform] if platform in AUTO else "structured"


def _unseeing(mixed: jax.Array, value: jax.Array, seen: jax.Array, unseeing: str) -> jax.Array:
    """`mixed` [B, L, N, H] where a query may see something, elsewhere what `unseeing` says."""
    empty = jnp.zeros((), mixed.dtype)
    if unseeing == "mean":
        mean = jnp.mean(value, axis=1, keepdims=True, dtype=jnp.float32)  # [B, 1, K, H]
        empty = jnp.repeat(mean, mixed.shape[2] // mean.shape[2], axis=2).astype(mixed.dtype)
    return jnp.where(jnp.any(seen, -1)[..., None, None], mixed, empty)


def _over_all(query, key, value, seen, unseeing: str) -> jax.Array:
    """[B, L, K, G, H]; jax's own derivative, which keeps the weights."""
    scores = jnp.einsum("BLKGH,BSKH->BKGLS", query, key, preferred_element_type=jnp.float32)
    if unseeing == "zeros":
        scores = scores + jnp.where(seen, 0.0, MASKED)[:, None, None]
    else:  # no gradient may reach the scores of what is not seen
        scores = jnp.where(seen[:, None, None], scores, MASKED)
    # The sum of a row is at least 1 after this shift; dividing after the product with the values
    # touches L·H numbers instead of L·S.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    share = 1.0 / weights.sum(-1)  # [B, K, G, L]
    if unseeing == "zeros":
        share = share * jnp.any(seen, -1)[:, None, None]
    mixed = jnp.einsum("BKGLS,BSKH->BLKGH", weights.astype(value.dtype), value)
    return mixed * share.astype(value.dtype).transpose(0, 3, 1, 2)[..., None]


def _blocks(seen: np.ndarray, time: np.ndarray, whole: bool) -> tuple[Block, ...]:
    """Blocks of at most BLOCK queries, cut between timesteps where that is possible.

    `seen` bool [L, S]; `whole`: every block takes all keys (an unseeing query's mean is of all).
    """
    edges, ends = [0], [*(np.flatnonzero(np.diff(time)) + 1), len(time)]
    for end, after in zip(ends, [*ends[1:], None]):
        if after is None or after - edges[-1] > BLOCK:  # the next timestep does not fit in as well
            pieces = -(-(end - edges[-1]) // BLOCK)
            edges += list(np.linspace(edges[-1], end, pieces + 1).astype(int)[1:])
    blocks = []
    for first, last in zip(edges, edges[1:]):
        keys = np.flatnonzero(seen[first:last].any(0))
        if whole or not keys.size:
            keys = np.arange(seen.shape[1])
        ends = np.flatnonzero(np.diff(keys) > GAP)
        near, far = keys[np.append(0, ends + 1)], keys[np.append(ends, len(keys) - 1)] + 1
        spans = tuple(zip(near.tolist(), far.tolist()))
        blocks.append((int(first), int(last), spans))
    return tuple(blocks)


def _take(x: jax.Array, spans: tuple[Span, ...], axis: int) -> jax.Array:
    """The keys of `spans` along `axis`."""
    parts = [jax.lax.slice_in_dim(x, near, far, axis=axis) for near, far in spans]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=axis)


def _add(total: jax.Array, spans: tuple[Span, ...], part: jax.Array) -> jax.Array:
    """`total` [B, K, S, H] with `part`, which stands for `spans` of S, added there."""
    begin = 0
    for near, far in spans:
        size = far - near
        total = total.at[:, :, near:far].add(part[:, :, begin : begin + size])
        begin += size
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_blocks(blocks, unseeing: str, query, key, value, seen) -> jax.Array:
    """[B, L, K, G, H] of a scaled query [B, L, K, G, H], key and value [B, S, K, H]."""
    return _forward(blocks, unseeing, query, key, value, seen)[0]


def _forward(blocks, unseeing: str, query, key, value, seen):
    """The answer, and what the derivative needs: the softmax's normalizer, but no weights."""
    query = query.transpose(0, 2, 3, 1, 4)  # [B, K, G, L, H]
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)  # [B, K, S, H]
    mixed, normalizers = [], []
    for first, last, spans in blocks:
        sees = _take(seen[:, first:last], spans, 2)
        scores = _scores(query[:, :, :, first:last], _take(key, spans, 2), sees)
        largest = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = weights.sum(-1)  # [B, K, G, l], at least 1
        normalizer = largest[..., 0] + jnp.log(total)
        share = 1.0 / total
        if unseeing == "zeros":
            real = jnp.any(sees, -1)[:, None, None]
            share = share * real
            normalizer = jnp.where(real, normalizer, -MASKED)  # weights of 0 in the backward pass
        part = jnp.einsum("BKGLS,BKSH->BKGLH", weights.astype(value.dtype), _take(value, spans, 2))
        mixed.append(part * share.astype(value.dtype)[..., None])
        normalizers.append(normalizer)
    mixed, normalizer = jnp.concatenate(mixed, axis=3), jnp.concatenate(normalizers, axis=3)
    return mixed.transpose(0, 3, 1, 2, 4), (query, key, value, seen, mixed, normalizer)


def _scores(query, key, sees) -> jax.Array:
    """float32 [B, K, G, l, s] of a block."""
    scores = jnp.einsum("BKGLH,BKSH->BKGLS", query, key, preferred_element_type=jnp.float32)
    # A query that sees nothing spreads itself evenly, at scores whose normalizer is a number.
    hidden = jnp.where(jnp.any(sees, -1, keepdims=True), MASKED, 0.0)
    return jnp.where(sees[:, None, None], scores, hidden[:, None, None])


def _backward(blocks, unseeing: str, kept, gradient):
    query, key, value, seen, mixed, normalizer = kept
    gradient = gradient.transpose(0, 2, 3, 1, 4)  # [B, K, G, L, H]
    along = jnp.sum(gradient.astype(jnp.float32) * mixed, axis=-1, keepdims=True)
    to_query = []
    to_key, to_value = (jnp.zeros(x.shape, jnp.float32) for x in (key, value))
    for first, last, spans in blocks:
        q, g = query[:, :, :, first:last], gradient[:, :, :, first:last]
        k, v = _take(key, spans, 2), _take(value, spans, 2)
        sees = _take(seen[:, first:last], spans, 2)
        weights = jnp.exp(_scores(q, k, sees) - normalizer[:, :, :, first:last, None])
        back = jnp.einsum("BKGLH,BKSH->BKGLS", g, v, preferred_element_type=jnp.float32)
        scores = weights * (back - along[:, :, :, first:last])
        if unseeing == "mean":  # elsewhere a weight is 0 where nothing is seen
            scores = jnp.where(sees[:, None, None], scores, 0.0)
        weights, scores = weights.astype(v.dtype), scores.astype(q.dtype)
        to_query.append(jnp.einsum("BKGLS,BKSH->BLKGH", scores, k))
        down = functools.partial(
            jnp.einsum, "BKGLS,BKGLH->BKSH", preferred_element_type=jnp.float32
        )
        to_key, to_value = (
            _add(to_key, spans, down(scores, q)),
            _add(to_value, spans, down(weights, g)),
        )
    to_key, to_value = (
        x.swapaxes(1, 2).astype(like.dtype) for x, like in ((to_key, key), (to_value, value))
    )
    return jnp.concatenate(to_query, axis=1), to_key, to_value, None


_by_blocks.defvjp(_forward, _backward)
