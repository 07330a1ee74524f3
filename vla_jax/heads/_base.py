"""What every head has: the defaults of the three verbs, and how the newest step is cut out.

    tokens(batch, key)                                    before the trunk, in training
    __call__(outputs, heads, batch, carry)                answer and errors of all steps, [B, W, …]
    sample(outputs, heads, batch, cache, decode, key)     answer of the newest step only, [B, …]

A head is a Linen module whose submodules are made in `setup`, so that all three verbs share them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax import plugin, types


class Head(nn.Module, kw_only=True):
    """Defaults of a head's verbs and attributes; subclasses write `__call__` and `sample`."""

    reads: tuple[str, ...] = ()  # names of the heads whose answers this head is given
    detach: tuple[str, ...] = ()  # those of `reads` that get no gradient from here

    @property
    def token_groups(self) -> dict[str, int]:
        """Group -> number of tokens per step that `tokens` brings into the trunk."""
        return {}

    @property
    def decodes(self) -> bool:
        """Whether `sample` calls `decode`, and so needs the trunk's cache."""
        return False

    def tokens(self, batch: types.Batch, key: jax.Array | None):
        """({group: [B, W, n, D]}, cond, carry) for training; `key` is one per row, [B]."""
        return {}, None, None


def check_reads(context: types.Context, reads: tuple[str, ...], detach: tuple[str, ...]) -> None:
    """Raises UserError when `detach` names a head that `reads` does not."""
    for name in detach:
        if name not in reads:
            raise plugin.UserError(plugin.unknown(f"heads.{context.name}.detach", name, reads))


def shared(context: types.Context, name: str) -> nn.Module:
    """The module `name` that models/vla.py owns; UserError when the config has none."""
    if name not in context.shared:
        raise plugin.UserError(
            f"heads.{context.name}: needs the shared module {name!r}, got "
            f"{sorted(context.shared)}; add it to config.model.shared."
        )
    return context.shared[name]


def action_shape(
    context: types.Context, action_space: str | None, action_horizon: int | None
) -> tuple[int, int]:
    """(C, A) of a head: its action space's size, or the padded size where it names none."""
    action_horizon = context.action_horizon if action_horizon is None else action_horizon
    if action_horizon > context.action_horizon:
        raise plugin.UserError(
            f"heads.{context.name}.action_horizon: got {action_horizon}, expected at most "
            f"{context.action_horizon}, the batch's."
        )
    if action_space is None:
        return action_horizon, context.action_size
    sizes = {space.name: space.size for space in context.action_spaces}
    if action_space not in sizes:
        raise plugin.UserError(
            plugin.unknown(f"heads.{context.name}.action_space", action_space, sizes)
        )
    return action_horizon, sizes[action_space]


def readout(outputs: Mapping[str, types.Output], name: str) -> jax.Array:
    """The mean of a readout's tokens, [B, W, D]."""
    group = f"readout_{name}"
    if group not in outputs:
        raise plugin.UserError(plugin.unknown("a head's readout", group, outputs))
    return jnp.mean(outputs[group].final, axis=2)


def target(batch: types.Batch, name: str) -> jax.Array | None:
    """A target with zeros where its mask is False (it may hold anything there), None if absent."""
    if name not in batch.targets:
        return None
    value, mask = batch.targets[name], batch.target_masks[name]
    mask = mask.reshape(mask.shape + (1,) * (value.ndim - mask.ndim))
    return jnp.where(mask, value, jnp.zeros((), value.dtype))


def action_target(batch: types.Batch, shape: tuple[int, int]) -> jax.Array | None:
    """A head's own slice [B, W, C, A] of the padded action target, None if absent."""
    value = target(batch, "action")
    return None if value is None else value[:, :, : shape[0], : shape[1]]


def newest(
    outputs: Mapping[str, types.Output], heads: Mapping[str, Any], batch: types.Batch
) -> tuple[dict[str, types.Output], dict[str, Any], types.Batch]:
    """The same three with a window of one, the newest step; task groups stay as they are.

    Answers of read heads come from their `sample` without the window axis and get one of length 1.
    Targets are dropped: a robot has none.
    """

    def cut(output: types.Output) -> types.Output:
        if output.final.ndim == 3:  # [B, n, D], no time
            return output
        stem = None if output.stem is None else output.stem[:, -1:]
        return dataclasses.replace(
            output, stem=stem, final=output.final[:, -1:], valid=output.valid[:, -1:]
        )

    def last(arrays: dict[str, Any]) -> dict[str, Any]:
        return {name: value[:, -1:] for name, value in arrays.items()}

    seen = batch.observation
    seen = dataclasses.replace(
        seen,
        images=last(seen.images),
        image_masks=last(seen.image_masks),
        proprio=last(seen.proprio),
        proprio_masks=last(seen.proprio_masks),
        timestep_mask=seen.timestep_mask[:, -1:],
    )
    batch = dataclasses.replace(batch, observation=seen, targets={}, target_masks={})
    outputs = {name: cut(output) for name, output in outputs.items()}
    return outputs, jax.tree.map(lambda value: value[:, None], dict(heads)), batch


def squeeze(answer: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """An answer of a window of one without the window axis: [B, 1, …] -> [B, …]."""
    return {name: value[:, 0] for name, value in answer.items()}
