"""Conditional flow matching over action chunks (Lipman et al. 2023; pi0, Black et al. 2024).

Time runs from t = 0 (noise) to t = 1 (data) along straight lines:

    x_t = (1 − t)·noise + t·action      velocity = action − noise      dx/dt = velocity(x_t, t, …)

Training regresses the velocity at a random t; sampling integrates it from noise with Euler steps.
Two forms, which share everything but the network:

    as_tokens=False   an MLP of [x_t, t, condition], as Octo's diffusion head: the trunk runs once
    as_tokens=True    the noisy actions are C tokens per step in the trunk, as in pi0: `tokens`
                      brings the group ``<name>_actions``, `sample` decodes it over the cache

Noise and time come from one random key per row, so they do not depend on the batch around a row.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax import plugin, types
from vla_jax.heads import _base, _condition
from vla_jax.nn import linear, mlp

DEBUG = dict(hidden=(8,), steps=2)
TIMES = ("uniform", "beta")
TIME_FEATURES = 32
PERIODS = (4e-3, 4.0)  # shortest and longest period of the time features (openpi)
BETA = 1.5  # pi0: 1 − t ~ .999·Beta(1.5, 1), more weight on noisy x_t
BETA_END = 0.999


class Flow(_base.Head, kw_only=True):
    """Action chunks by flow matching; answer and errors are {"action": [B, W, C, A]}."""

    group: str  # the token group of the noisy actions
    shape: tuple[int, int]  # C, A
    steps: int
    time: str
    as_tokens: bool
    hidden: tuple[int, ...]
    activation: str
    width: int
    condition: _condition.Condition | None
    dtype: jnp.dtype

    def setup(self):
        action_horizon, size = self.shape
        if self.as_tokens:
            self.action_in = linear.Dense(self.width, dtype=self.dtype)
            self.time_in = mlp.Mlp(
                hidden=(self.width,), features=self.width, activation="silu", dtype=self.dtype
            )
            self.chunk_position = self.param(
                "chunk_position", nn.initializers.normal(0.02), (action_horizon, self.width)
            )
            self.velocity_out = linear.Dense(size, dtype=self.dtype)
        else:
            self.pool = self.condition.pool(self.dtype)
            self.mlp = mlp.Mlp(
                hidden=self.hidden,
                features=action_horizon * size,
                activation=self.activation,
                dtype=self.dtype,
            )

    @property
    def token_groups(self) -> dict[str, int]:
        """C noisy action tokens per step, if `as_tokens`."""
        return {self.group: self.shape[0]} if self.as_tokens else {}

    @property
    def decodes(self) -> bool:
        """Whether sampling runs tokens over the trunk's cache."""
        return self.as_tokens

    def tokens(self, batch: types.Batch, key: jax.Array | None):
        """Draws noise and time per row: ({group: [B, W, C, D]} or {}, None, (noise, t, x_t)).

        Without a key or an action target there is nothing to denoise: the carry is None.
        """
        action = _base.action_target(batch, self.shape)
        if key is None or action is None:
            return {}, None, None
        noise, t = jax.vmap(lambda row: self._draw(row, action.shape[1]))(key)
        line = t[..., None, None]  # [B, W, 1, 1]
        noisy = (1.0 - line) * noise + line * action
        groups = {self.group: self._embed(noisy, t)} if self.as_tokens else {}
        return groups, None, (noise, t, noisy)

    def __call__(self, outputs, heads, batch: types.Batch, carry):
        """({"action": one-step estimate}, {"action": squared velocity error}), [B, W, C, A]."""
        if carry is None:
            return {}, {}
        noise, t, noisy = carry
        if self.as_tokens:
            velocity = self.velocity_out(outputs[self.group].final).astype(jnp.float32)
        else:
            velocity = self._velocity(noisy, t, self._given(outputs, heads, batch))
        wanted = _base.action_target(batch, self.shape) - noise
        estimate = noisy + (1.0 - t[..., None, None]) * velocity
        return {"action": estimate}, {"action": jnp.square(velocity - wanted)}

    def sample(self, outputs, heads, batch: types.Batch, cache, decode, key):
        """({"action": [B, C, A]}, cache): Euler's method from noise, `steps` evaluations.

        `key` is one random key per row [B], or the noise itself, float [B, C, A].
        """
        outputs, heads, batch = _base.newest(outputs, heads, batch)
        noise = key
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            noise = jax.vmap(lambda row: self._draw(row, 1)[0][0])(key)
        value = noise.astype(jnp.float32)[:, None]  # [B, 1, C, A]
        given = None if self.as_tokens else self._given(outputs, heads, batch)
        # A Python loop: `decode` and the layers are bound modules, which jax.lax.scan refuses.
        for step in range(self.steps):
            t = jnp.full(value.shape[:2], step / self.steps, jnp.float32)
            if self.as_tokens:
                made = {self.group: self._embed(value, t)[:, 0]}  # [B, C, D]
                final = decode(made, None, cache)[0][self.group]
                velocity = self.velocity_out(final)[:, None].astype(jnp.float32)
            else:
                velocity = self._velocity(value, t, given)
            value = value + velocity / self.steps
        return {"action": value[:, 0]}, cache

    def _draw(self, key: jax.Array, window: int):
        """(noise [W, C, A], t [W]) of one row."""
        noise_key, time_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (window, *self.shape), jnp.float32)
        uniform = jax.random.uniform(time_key, (window,), jnp.float32)
        return noise, uniform if self.time == "uniform" else beta_time(uniform)

    def _embed(self, noisy: jax.Array, t: jax.Array) -> jax.Array:
        actions = self.action_in(noisy)  # [B, W, C, D]
        times = self.time_in(time_features(t))[:, :, None, :]
        position = self.chunk_position.astype(actions.dtype)[None, None]
        return actions + times + position

    def _given(self, outputs, heads, batch) -> jax.Array:
        return self.condition(outputs, heads, batch, self.pool)

    def _velocity(self, noisy: jax.Array, t: jax.Array, given: jax.Array) -> jax.Array:
        flat = noisy.reshape(*noisy.shape[:2], -1)
        joined = jnp.concatenate([given, time_features(t), flat], axis=-1)
        return self.mlp(joined).astype(jnp.float32).reshape(noisy.shape)


def time_features(t: jax.Array) -> jax.Array:
    """Sines and cosines of t at periods spaced geometrically (openpi): [...] -> [..., 32]."""
    half = TIME_FEATURES // 2
    shortest, longest = PERIODS
    powers = jnp.arange(half, dtype=jnp.float32) / (half - 1)
    frequencies = 2.0 * math.pi / (shortest * (longest / shortest) ** powers)
    angles = t.astype(jnp.float32)[..., None] * frequencies.reshape((1,) * t.ndim + (half,))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def beta_time(uniform: jax.Array) -> jax.Array:
    """Time t in [0, .999] with 1 − t/.999 ~ Beta(1.5, 1) (pi0), by the inverse CDF of `uniform`."""
    return BETA_END * (1.0 - uniform ** (1.0 / BETA))


def make(
    context: types.Context,
    *,
    reads: tuple[str, ...] = (),
    detach: tuple[str, ...] = (),
    readout: str | None = None,
    groups: tuple[str, ...] = (),
    pool: str = "mean",
    action_space: str | None = None,
    action_horizon: int | None = None,
    steps: int = 10,
    time: str = "uniform",
    as_tokens: bool = False,
    hidden: tuple[int, ...] = (256, 256, 256),
    activation: str = "silu",
    proprio: tuple[str, ...] = (),
    relative_to: str | None = None,
) -> Flow:
    """A Flow head over chunks of `action_space`, integrated in `steps` steps when sampling.

    The MLP form is conditioned on `readout` or token `groups`, by `pool` (heads/_pool.py), read
    answers and proprio (heads/_condition.py); the token form sees what the visibility rules let
    ``<name>_actions`` see, and takes none of them.
    Raises UserError for unknown names and for a condition given to the token form.
    """
    _base.check_reads(context, reads, detach)
    where = f"heads.{context.name}"
    if time not in TIMES:
        raise plugin.UserError(plugin.unknown(f"{where}.time", time, TIMES))
    if steps < 1:
        raise plugin.UserError(f"{where}.steps: got {steps}, expected at least 1.")
    if as_tokens and (readout or groups or reads or proprio or relative_to):
        raise plugin.UserError(
            f"{where}: with as_tokens=True the action tokens read through the trunk; remove "
            "readout, groups, reads, proprio and relative_to, and say what they see in "
            "config.model.rules."
        )
    condition = None
    if not as_tokens:
        condition = _condition.make(
            context, readout=readout, reads=reads, proprio=proprio, relative_to=relative_to,
            groups=groups, pool=pool,
        )  # fmt: skip
    return Flow(
        reads=tuple(reads),
        detach=tuple(detach),
        group=f"{context.name}_actions",
        shape=_base.action_shape(context, action_space, action_horizon),
        steps=steps,
        time=time,
        as_tokens=as_tokens,
        hidden=tuple(hidden),
        activation=activation,
        width=context.width,
        condition=condition,
        dtype=context.dtype,
    )
