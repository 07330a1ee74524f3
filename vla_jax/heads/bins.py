"""Action chunks as bins: one softmax over bins per action dimension (RT-1; Brohan et al. 2022).

Octo's DiscreteActionHead (action_heads.py), with its three ways to divide a chunk among tokens:

    tokens_per   tokens   each answers for       Octo's token_per
    chunk        1        the whole chunk        ""
    step         C        one action             action_horizon
    dimension    C·A      one number             action_dim_and_action_horizon

The bins are those of codecs/action_tokenizer.py. Octo's uniform ones lie in [0, 1], where half of
the normalised values fall outside: here they are [-1, 1] by default, and imports say low=0, high=1.
Octo's normal ones take values above all thresholds for the lowest: imports say beyond="first".

Octo's loss is the mean cross entropy over what is real, without a factor A: ours, at weight 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vla_jax import plugin, types
from vla_jax.codecs import action_tokenizer
from vla_jax.heads import _base, _pool
from vla_jax.nn import linear

DEBUG = dict(bins=8)
TOKENS_PER = ("chunk", "step", "dimension")
IMPORTED = ("low", "high", "beyond")  # Octo's bins are not those of our normalised actions


class BinsHead(_base.Head, kw_only=True):
    """answer: action [B, W, C, A] (likeliest bins), logits [B, W, C, A, V]; errors: action."""

    shape: tuple[int, int]  # C, A
    bins: action_tokenizer.Bins
    temperature: float
    source: _pool.Source
    dtype: jnp.dtype

    def setup(self):
        action_horizon, size = self.shape
        self.pool = _pool.Pool(source=self.source, dtype=self.dtype)
        numbers = action_horizon * size // self.source.count
        self.project = linear.Dense(numbers * self.bins.count, dtype=self.dtype)

    def __call__(self, outputs, heads, batch: types.Batch, carry=None):
        """(answer, {"action": cross entropy [B, W, C, A]}) of every step of the window."""
        answer = self._predict(outputs)
        goal = _base.action_target(batch, self.shape)
        if goal is None:
            return answer, {}
        log_probs = jax.nn.log_softmax(answer["logits"], axis=-1)
        right = jnp.take_along_axis(log_probs, self.bins.tokenize(goal)[..., None], axis=-1)
        return answer, {"action": -right[..., 0]}

    def sample(self, outputs, heads, batch: types.Batch, cache, decode, key):
        """({"action": [B, C, A], "logits"}, cache): the likeliest bins, or drawn at `temperature`.

        `key` is one random key per row [B], or the Gumbel noise itself, float [B, C, A, V].
        """
        answer = _base.squeeze(self._predict(_base.newest(outputs, heads, batch)[0]))
        if self.temperature > 0:
            noise, logits = key, answer["logits"]
            if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
                noise = jax.vmap(lambda row: jax.random.gumbel(row, logits.shape[1:]))(key)
            drawn = jnp.argmax(logits / self.temperature + noise, axis=-1)
            answer = answer | {"action": self.bins.decode(drawn)}
        return answer, cache

    def _predict(self, outputs) -> dict[str, jax.Array]:
        logits = self.project(self.pool(outputs)).astype(jnp.float32)  # [B, W, tokens, …]
        logits = logits.reshape(*logits.shape[:2], *self.shape, self.bins.count)
        return {"action": self.bins.decode(jnp.argmax(logits, axis=-1)), "logits": logits}


def make(
    context: types.Context,
    *,
    reads: tuple[str, ...] = (),
    detach: tuple[str, ...] = (),
    readout: str | None = None,
    groups: tuple[str, ...] = (),
    pool: str | None = None,
    action_space: str | None = None,
    action_horizon: int | None = None,
    tokens_per: str = "chunk",
    bins: int = 256,
    spacing: str = "uniform",
    low: float = -1.0,
    high: float = 1.0,
    beyond: str = "last",
    temperature: float = 0.0,
) -> BinsHead:
    """A BinsHead over chunks of `action_space`, of `bins` bins per number.

    Tokens come from a `readout` or token `groups`, by `pool` (heads/_pool.py): "map" makes as many
    as `tokens_per` asks for, "none" expects so many, "mean" makes one for the chunk; by default
    "mean" for a chunk, else "none". `temperature` 0 answers the likeliest bins. Raises UserError
    for unknown names and where there is nothing to read.
    """
    _base.check_reads(context, reads, detach)
    where = f"heads.{context.name}"
    if tokens_per not in TOKENS_PER:
        raise plugin.UserError(plugin.unknown(f"{where}.tokens_per", tokens_per, TOKENS_PER))
    if temperature < 0:
        raise plugin.UserError(f"{where}.temperature: got {temperature}, expected 0 or more.")
    shape = _base.action_shape(context, action_space, action_horizon)
    count = _tokens(tokens_per, shape)
    source = _pool.make(
        context,
        readout=readout,
        groups=groups,
        pool=pool or _usual_pool(tokens_per),
        count=count,
        known=("map", "none") if count > 1 else (*_pool.POOLS, "none"),
    )
    if source is None:
        raise plugin.UserError(f"{where}: nothing to predict from; name a readout or token groups.")
    return BinsHead(
        reads=tuple(reads),
        detach=tuple(detach),
        shape=shape,
        bins=action_tokenizer.Bins.make(
            where, count=bins, spacing=spacing, low=low, high=high, beyond=beyond
        ),
        temperature=temperature,
        source=source,
        dtype=context.dtype,
    )


def readout_tokens(arguments: Mapping[str, Any], shape: tuple[int, int]) -> int | None:
    """How many tokens a readout must have for these arguments of `make`; None: any number."""
    tokens_per = arguments["tokens_per"]
    pool = arguments["pool"] or _usual_pool(tokens_per)
    return _tokens(tokens_per, shape) if pool == "none" else None


def _tokens(tokens_per: str, shape: tuple[int, int]) -> int:
    return {"chunk": 1, "step": shape[0], "dimension": shape[0] * shape[1]}[tokens_per]


def _usual_pool(tokens_per: str) -> str:
    return "mean" if tokens_per == "chunk" else "none"
