"""Many tokens to few by learned queries: attention pooling, and the token learner built on it."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax import plugin
from vla_jax.nn import attention, linear, mlp, norms


class AttentionPool(nn.Module):
    """[..., S, D] → [..., `probes`, D]: learned probes read the tokens, then norm → MLP → +.

    The MLP is 4·D wide unless `hidden` says otherwise. `mask` is bool [..., S], True = real. Where
    it has no real token, attention brings zeros, or with `unseeing="mean"` the mean of all values
    (flax, and so Octo). UserError when D does not divide into `heads`, for another `unseeing`, and
    for a mask of another shape. Set Transformer (Lee et al. 2019) with one layer; MAPHead of Octo's
    transformer.py.
    """

    probes: int = 1
    heads: int = 8
    hidden: int | None = None
    unseeing: Literal["zeros", "mean"] = "zeros"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        *lead, length, width = x.shape
        self._check(x, mask)
        shape = (width, self.heads, width // self.heads)  # [D, N, H]

        def into(equation: str, name: str) -> nn.Module:
            init = linear.xavier((0,), (1, 2))
            return linear.Einsum(equation, shape, self.dtype, shape[1:], init, name=name)

        init = nn.initializers.xavier_uniform()
        probe = self.param("probe", init, (self.probes, width), jnp.float32)
        query = into("RD,DNH->RNH", "query")(probe) * shape[-1] ** -0.5  # one for all rows
        x = x.reshape(-1, length, width)  # [B, S, D]
        key, value = (into("BSD,DNH->BSNH", name)(x) for name in ("key", "value"))
        weights = self._weights(query, key, None if mask is None else mask.reshape(-1, length))
        mixed = jnp.einsum("BNRS,BSNH->BRNH", weights.astype(self.dtype), value)
        init = linear.xavier((0, 1), (2,))
        back = (*shape[1:], width)
        x = linear.Einsum("BRNH,NHD->BRD", back, self.dtype, (width,), init, name="out")(mixed)
        y = norms.LayerNorm(self.dtype, name="norm")(x)
        x = x + mlp.Mlp((self.hidden or 4 * width,), width, dtype=self.dtype, name="mlp")(y)
        return x.reshape(*lead, self.probes, width)

    def _weights(self, query: jax.Array, key: jax.Array, mask: jax.Array | None) -> jax.Array:
        """float32 [B, N, R, S]: how much of each token each probe takes."""
        scores = jnp.einsum("RNH,BSNH->BNRS", query, key, preferred_element_type=jnp.float32)
        if mask is None:
            return jax.nn.softmax(scores)
        # Replaced, not added to: without a real token no gradient may reach the scores.
        scores = jnp.where(mask[:, None, None], scores, attention.MASKED)
        weights = jax.nn.softmax(scores)
        if self.unseeing == "zeros":
            weights = weights * mask.any(-1)[:, None, None, None]
        return weights

    def _check(self, x: jax.Array, mask: jax.Array | None) -> None:
        where = f"attention pool {self.name!r}"
        if x.shape[-1] % self.heads:
            raise plugin.UserError(
                f"{where}: width {x.shape[-1]} does not divide into {self.heads} heads"
            )
        if self.unseeing not in ("zeros", "mean"):
            raise plugin.UserError(
                plugin.unknown(f"{where}.unseeing", self.unseeing, ("zeros", "mean"))
            )
        if mask is not None and mask.shape != x.shape[:-1]:
            raise plugin.UserError(
                f"{where}: got a mask of shape {mask.shape}, expected {x.shape[:-1]}, the tokens'"
            )
