"""Direct regression of a waypoint or of an action chunk, by L1 or L2.

Without `reads` this is the plain head (readout → MLP → chunk). With them it is the smallest chain
of thought:

    pointing ── point ──▶ waypoint head ── waypoint − hand ──▶ action head ──▶ chunk [C, A]
                          (MLP of x, y, x², y², x·y)           (+ proprio + readout)

A waypoint is the reading of a proprio group (the hand's position) that the episode ends at; it is
predicted in that group's normalised space.

With `tokens_per="step"` a token of the readout answers for one action of the chunk (CrossFormer's
"pass"): C tokens, one layer for all of them.

Octo's ContinuousActionHead (action_heads.py) is `hidden=()`, `max_action=5.0`, loss "l1" or "l2",
and `pool="map"` for its MSE and L1 heads, over `groups`, all those of the observation, where it
reads "obs". Its loss is ours, the mean over what is real, times A: give the objective that weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vla_jax import plugin, types
from vla_jax.heads import _base, _condition
from vla_jax.nn import mlp

DEBUG = dict(hidden=(8,))
LOSSES = {"l1": jnp.abs, "l2": jnp.square}
TARGETS, TOKENS_PER = ("action", "waypoint"), ("chunk", "step")


class Regression(_base.Head, kw_only=True):
    """`target` predicted by an MLP; answer and errors are {target: [B, W, *shape]}."""

    target: str
    loss: str
    shape: tuple[int, ...]  # (C, A) of an action chunk, (P,) of a waypoint
    hidden: tuple[int, ...]
    activation: str
    max_action: float | None
    tokens_per: str
    condition: _condition.Condition
    dtype: jnp.dtype

    def setup(self):
        self.pool = self.condition.pool(self.dtype)
        self.mlp = mlp.Mlp(
            hidden=self.hidden,
            features=math.prod(self.shape[self.tokens_per == "step" :]),
            activation=self.activation,
            dtype=self.dtype,
        )

    def __call__(self, outputs, heads, batch: types.Batch, carry=None):
        """({target: prediction}, {target: |difference| or its square}), normalised units."""
        answer = self._predict(outputs, heads, batch)
        if self.target == "action":
            goal = _base.action_target(batch, self.shape)
        else:
            goal = _base.target(batch, self.target)
        if goal is None:
            return answer, {}
        return answer, {self.target: LOSSES[self.loss](answer[self.target] - goal)}

    def sample(self, outputs, heads, batch: types.Batch, cache, decode, key):
        """({target: [B, *shape]} of the newest step, cache); no randomness, `key` is ignored."""
        return _base.squeeze(self._predict(*_base.newest(outputs, heads, batch))), cache

    def _predict(self, outputs, heads, batch) -> dict[str, jax.Array]:
        condition = self.condition
        read = condition.by_token if self.tokens_per == "step" else condition
        given = read(outputs, heads, batch, self.pool)  # [B, W, F] or [B, W, C, F]
        value = self.mlp(given).astype(jnp.float32)
        if self.max_action is not None:
            value = jnp.tanh(value / self.max_action) * self.max_action
        return {self.target: value.reshape(*value.shape[:2], *self.shape)}


def make(
    context: types.Context,
    *,
    reads: tuple[str, ...] = (),
    detach: tuple[str, ...] = (),
    readout: str | None = None,
    groups: tuple[str, ...] = (),
    pool: str | None = None,
    tokens_per: str = "chunk",
    target: str = "action",
    loss: str = "l1",
    hidden: tuple[int, ...] = (256,),
    activation: str = "gelu",
    max_action: float | None = None,
    proprio: tuple[str, ...] = (),
    relative_to: str | None = None,
    action_space: str | None = None,
    action_horizon: int | None = None,
    group: str = "hand",
) -> Regression:
    """A Regression head.

    `target` is "action" (size from `action_space` and `action_horizon`, else the batch's padded
    sizes) or "waypoint" (size of the proprio group `group`). Tokens come from a `readout` or from
    token `groups`, by `pool` (heads/_pool.py; "mean", or "none" of the C tokens that are read with
    `tokens_per` "step"). `proprio` are groups given as input; `relative_to` is the group that a
    read waypoint is taken relative to, in metres. With `max_action` answers are squashed into ±
    that by tanh. Raises UserError for unknown names.
    """
    _base.check_reads(context, reads, detach)
    _check(context, loss, target, tokens_per, readout or groups)
    shape: tuple[int, ...] = _base.action_shape(context, action_space, action_horizon)
    if target == "waypoint":
        shape = (len(_condition.constants(context, group)[1][0]),)
    return Regression(
        reads=tuple(reads),
        detach=tuple(detach),
        target=target,
        loss=loss,
        shape=shape,
        hidden=tuple(hidden),
        activation=activation,
        max_action=max_action,
        tokens_per=tokens_per,
        condition=_condition.make(
            context,
            readout=readout,
            reads=reads,
            proprio=proprio,
            relative_to=relative_to,
            groups=groups,
            pool=pool,
            count=shape[0] if tokens_per == "step" else None,
        ),
        dtype=context.dtype,
    )


def readout_tokens(arguments: Mapping[str, Any], shape: tuple[int, int]) -> int | None:
    """How many tokens a readout must have for these arguments of `make`; None: any number."""
    alone = arguments["tokens_per"] == "step" and arguments["pool"] in (None, "none")
    return shape[0] if alone else None


def _check(context: types.Context, loss: str, target: str, tokens_per: str, source: Any) -> None:
    """UserError for unknown words, and for tokens that cannot each answer for one action."""
    for name, given, known in (
        ("loss", loss, LOSSES),
        ("target", target, TARGETS),
        ("tokens_per", tokens_per, TOKENS_PER),
    ):
        if given not in known:
            raise plugin.UserError(plugin.unknown(f"heads.{context.name}.{name}", given, known))
    if tokens_per == "step" and (target != "action" or not source):
        read = "tokens" if source else "no readout or groups"
        raise plugin.UserError(
            f"heads.{context.name}.tokens_per: 'step' divides a chunk of actions among the tokens "
            f"that the head reads; got target={target!r} and {read}"
        )
