"""Attention over a layout: one function that reads the layout and its rules, not a dense mask.

The mask is worked out with numpy while tracing and cached per (layout, rules). Inside, this is
plain XLA over all pairs; structured kernels can take its place without a caller noticing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax.nn import layout as layouts
from vla_jax.nn import visibility

MASKED = -1e30  # finite, so that a fully masked row has finite gradients


def attention(
    query: jax.Array,  # [B, L, N, H]
    key: jax.Array,  # [B, S, K, H]
    value: jax.Array,  # [B, S, K, H]
    layout: layouts.Layout,
    rules: visibility.Rules,
    valid: jax.Array,  # bool [B, S]: which keys are real
    slots: np.ndarray | jax.Array | None = None,  # [L]: places of the queries; None: all, L = S
    unseeing: str = "zeros",
) -> jax.Array:
    """[B, L, N, H] in the query's dtype: what each query reads from the tokens it may see.

    The softmax is float32; S is the layout's length. With K < N, N / K queries share a key head
    (grouped-query attention, Ainslie et al. 2023). A query that may see nothing gets zeros, and
    finite gradients; with `unseeing="mean"` it gets the mean of all values, as in flax (Octo).
    """
    heads, key_heads = query.shape[2], key.shape[2]
    seen = visibility.mask(layout, rules)  # [S, S]
    if isinstance(slots, jax.Array):
        seen = jnp.asarray(seen)[slots]
    elif slots is not None:
        seen = seen[slots]
    seen = jnp.logical_and(jnp.asarray(seen)[None], valid[:, None, :])  # [B, L, S]
    bias = jnp.where(seen, 0.0, MASKED)[:, None, None]  # [B, 1, 1, L, S]
    query = query * np.asarray(query.shape[-1] ** -0.5, query.dtype)
    query = query.reshape(*query.shape[:2], key_heads, heads // key_heads, -1)  # [B, L, K, G, H]
    scores = jnp.einsum("BLKGH,BSKH->BKGLS", query, key, preferred_element_type=jnp.float32) + bias
    # The sum of a row is at least 1 after this shift; dividing after the product with the values
    # touches L·H numbers instead of L·S.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    share = 1.0 / weights.sum(-1)  # [B, K, G, L]
    if unseeing == "zeros":
        share = share * jnp.any(seen, -1)[:, None, None]
    mixed = jnp.einsum("BKGLS,BSKH->BLKGH", weights.astype(value.dtype), value)
    mixed = mixed * share.astype(value.dtype).transpose(0, 3, 1, 2)[..., None]
    return mixed.reshape(*mixed.shape[:2], heads, -1)  # [B, L, N, H]
