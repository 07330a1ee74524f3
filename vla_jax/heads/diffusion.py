"""Denoising diffusion over action chunks (DDPM, Ho et al. 2020), as Octo's DiffusionActionHead.

    x_t = √ᾱ_t · action + √(1 − ᾱ_t) · noise        t = 0 … diffusion_steps − 1

Training regresses the noise in x_t at a random t; sampling takes it out step by step. The trunk
runs once, only a small network (nn/score.py) runs at every step.

Here t is an integer and runs from data (0) to noise, against the rule of this code base that t = 0
is noise (heads/flow.py): schedules and samplers are published that way, and imported weights have
learned features of this very number.

Octo's loss is the mean of the errors over what is real, over the whole batch, times A ("sum over
the dimensions"): ours, with that `weight` of the objective. Octo samples every step of the window
and drops all but the newest; here only the newest is sampled.

Noise and time come from one random key per row, or may be given instead of the keys:

    tokens   {"time": int [B, W, n], "noise": [B, W, n, C, A]}          n = n_diffusion_samples
    sample   {"start": [B, C, A], "steps": [B, sampling_steps, C, A]}   steps, z: DDPM only
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax import plugin, types
from vla_jax.heads import _base, _condition
from vla_jax.nn import score

DEBUG = dict(hidden=8, depth=1, time_features=4, diffusion_steps=3)
SAMPLERS = ("ddpm", "ddim")
LOSSES = {"l1": jnp.abs, "l2": jnp.square}
MASKED = ("zeros", "given")
IMPORTED = ("masked",)  # Octo noises whatever stands in dimensions that are not real
OFFSET, LARGEST = 0.008, 0.999  # of the cosine schedule


class Diffusion(_base.Head, kw_only=True):
    """Action chunks by denoising; answer and errors are {"action": [B, W, C, A]}."""

    shape: tuple[int, int]  # C, A
    sizes: tuple[int, ...]  # real dimensions per action space, where a head serves several
    diffusion_steps: int
    sampling_steps: int
    sampler: str
    n_diffusion_samples: int
    loss: str
    masked: str
    max_action: float
    hidden: int
    depth: int
    time_features: int
    learned_time: bool
    layer_norm: bool
    condition: _condition.Condition
    dtype: jnp.dtype

    def setup(self):
        self.pool = self.condition.pool(self.dtype)
        self.score = score.ScoreNetwork(
            hidden=self.hidden,
            depth=self.depth,
            time_features=self.time_features,
            learned_time=self.learned_time,
            layer_norm=self.layer_norm,
            dtype=self.dtype,
        )

    def tokens(self, batch: types.Batch, key):
        """Draws time and noise per row: ({}, None, (time, noise, x_t)), [B, W, n, …].

        Without a key or an action target there is nothing to denoise: the carry is None.
        """
        action = _base.action_target(batch, self.shape)
        if key is None or action is None:
            return {}, None, None
        if self.masked == "given":
            action = batch.targets["action"][:, :, : self.shape[0], : self.shape[1]]
        if isinstance(key, Mapping):
            time, noise = key["time"], key["noise"]
        else:
            time, noise = jax.vmap(lambda row: self._draw(row, action.shape[1]))(key)
        action = jnp.clip(action, -self.max_action, self.max_action)[:, :, None]
        kept, spread = self._levels(time)
        return {}, None, (time, noise, kept * action + spread * noise)

    def __call__(self, outputs, heads, batch: types.Batch, carry):
        """({"action": one-step estimate}, {"action": error of the noise}), [B, W, C, A].

        Both are means over the n draws.
        """
        if carry is None:
            return {}, {}
        time, noise, noisy = carry
        given = self.condition(outputs, heads, batch, self.pool)[:, :, None]  # [B, W, 1, F]
        given = jnp.broadcast_to(given, (*time.shape, given.shape[-1]))
        flat = noisy.reshape(*time.shape, -1)
        guess = self.score(flat, time, given).reshape(noisy.shape)  # [B, W, n, C, A]
        kept, spread = self._levels(time)
        estimate = jnp.clip((noisy - spread * guess) / kept, -self.max_action, self.max_action)
        errors = LOSSES[self.loss](guess - noise)
        return {"action": jnp.mean(estimate, axis=2)}, {"action": jnp.mean(errors, axis=2)}

    def sample(self, outputs, heads, batch: types.Batch, cache, decode, key):
        """({"action": [B, C, A]}, cache), from noise in `sampling_steps` evaluations.

        `key` is one random key per row [B], or the noise (see the module). Dimensions that a row's
        action space lacks are held at the noise that training showed there, and are zero in the
        answer.
        """
        outputs, heads, batch = _base.newest(outputs, heads, batch)
        given = self.condition(outputs, heads, batch, self.pool)[:, 0]  # [B, F]
        noise = key if isinstance(key, Mapping) else self._noise(key)
        start = noise["start"].astype(jnp.float32)
        real = self._real(batch)
        # Unbound, the score network goes into a scan: compiled once, not once per step.
        network, variables = self.score.unbind()

        def guess(x, time):
            flat = x.reshape(x.shape[0], -1)
            times = jnp.full(x.shape[:1], time)
            return network.apply(variables, flat, times, given).reshape(x.shape)

        def ddpm(x, step):
            time, z, scale, share, sigma, spread = step
            x = scale * (x - share * guess(x, time)) + sigma * z
            x = jnp.clip(x, -self.max_action, self.max_action)
            return jnp.where(real, x, spread * z), None

        def ddim(x, step):
            time, kept, spread, next_kept, next_spread = step
            action = (x - spread * guess(x, time)) / kept
            action = jnp.clip(action, -self.max_action, self.max_action)
            left = (x - kept * action) / spread  # the noise, once the action is clipped
            x = next_kept * action + next_spread * left
            return jnp.where(real, x, next_spread * start), None

        if self.sampler == "ddpm":
            steps = jnp.moveaxis(noise["steps"].astype(jnp.float32), 1, 0)  # [T, B, C, A]
            times, *constants = ddpm_constants(self.diffusion_steps)
            x, _ = jax.lax.scan(ddpm, start, (times, steps, *constants))
        else:
            constants = ddim_constants(self.diffusion_steps, self.sampling_steps)
            x, _ = jax.lax.scan(ddim, start, constants)
        return {"action": jnp.where(real, x, 0.0)}, cache

    def _draw(self, key: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
        """(time [W, n], noise [W, n, C, A]) of one row."""
        noise_key, time_key = jax.random.split(key)
        lead = (window, self.n_diffusion_samples)
        time = jax.random.randint(time_key, lead, 0, self.diffusion_steps)
        return time, jax.random.normal(noise_key, (*lead, *self.shape), jnp.float32)

    def _noise(self, key: jax.Array) -> dict[str, jax.Array]:
        """The noise that sampling needs, from one key per row."""

        def draw(row):
            count = self.sampling_steps if self.sampler == "ddpm" else 0
            noise = jax.random.normal(row, (1 + count, *self.shape), jnp.float32)
            return {"start": noise[0], "steps": noise[1:]}

        return jax.vmap(draw)(key)

    def _levels(self, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(√ᾱ, √(1 − ᾱ)) at times [B, W, n], each [B, W, n, 1, 1]."""
        left = jnp.asarray(signal(self.diffusion_steps))[time][..., None, None]
        return jnp.sqrt(left), jnp.sqrt(1.0 - left)

    def _real(self, batch: types.Batch) -> jax.Array:
        """Bool [B, 1, A]: the dimensions that each row's action space has."""
        size = self.shape[1]
        table = jnp.asarray((*self.sizes, size), jnp.int32)  # -1, no action space: all of them
        row = table[batch.action_space if self.sizes else jnp.full_like(batch.action_space, -1)]
        return (jnp.arange(size)[None] < row[:, None])[:, None]


def cosine_betas(steps: int) -> np.ndarray:
    """float32 [steps]: the share of noise added at each time (Nichol & Dhariwal 2021)."""
    # In float32, in Octo's order: its released weights were trained with these very numbers.
    time = (np.linspace(0, steps, steps + 1) / steps).astype(np.float32)
    offset = np.float32(OFFSET)
    angle = (time + offset) / (1 + offset) * np.float32(np.pi) * np.float32(0.5)
    left = np.cos(angle) ** 2
    return np.clip(1 - left[1:] / left[:-1], 0, np.float32(LARGEST)).astype(np.float32)


def signal(steps: int) -> np.ndarray:
    """ᾱ, float32 [steps]: the share of the action's variance that is left at each time."""
    return np.cumprod(1 - cosine_betas(steps))


def ddpm_constants(steps: int) -> tuple[np.ndarray, ...]:
    """(time, 1/√α, β/√(1 − ᾱ), σ, √(1 − ᾱ)) by evaluation, from noise to data; σ² = β, last 0."""
    betas, left = cosine_betas(steps), signal(steps)
    sigma = np.sqrt(betas)
    sigma[0] = 0.0
    spread = np.sqrt(1 - left)
    rows = np.arange(steps, dtype=np.int32), 1 / np.sqrt(1 - betas), betas / spread, sigma, spread
    return tuple(row[::-1] for row in rows)


def ddim_constants(steps: int, evaluations: int) -> tuple[np.ndarray, ...]:
    """(time, √ᾱ, √(1 − ᾱ), and both after it) by evaluation; times evenly from steps − 1 to 0."""
    times = np.floor(np.linspace(steps - 1, 0, evaluations) + 0.5).astype(np.int32)
    left = signal(steps)[times]
    after = np.append(left[1:], np.float32(1))
    return times, np.sqrt(left), np.sqrt(1 - left), np.sqrt(after), np.sqrt(1 - after)


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
    diffusion_steps: int = 20,
    sampler: str = "ddpm",
    sampling_steps: int | None = None,
    n_diffusion_samples: int = 1,
    loss: str = "l2",
    masked: str = "zeros",
    max_action: float = 5.0,
    hidden: int = 256,
    depth: int = 3,
    time_features: int = 32,
    learned_time: bool = True,
    layer_norm: bool = True,
    proprio: tuple[str, ...] = (),
    relative_to: str | None = None,
) -> Diffusion:
    """A Diffusion head over chunks of `action_space`, within ± `max_action`.

    It is conditioned on a `readout` or on token `groups`, by `pool` (heads/_pool.py), read answers
    and proprio (heads/_condition.py). `sampler` "ddim" (Song et al. 2021, deterministic) may take
    fewer `sampling_steps` than `diffusion_steps`; "ddpm" takes them all. In the noised chunk,
    entries that the target's mask excludes are "zeros", or with `masked="given"` what the target
    holds there, which must then be finite (Octo). Raises UserError for unknown names and counts.
    """
    _base.check_reads(context, reads, detach)
    sampling_steps = diffusion_steps if sampling_steps is None else sampling_steps
    where = f"heads.{context.name}"
    _check_names(where, sampler, loss, masked)
    _check_counts(where, sampler, diffusion_steps, sampling_steps, n_diffusion_samples)
    spaces = () if action_space else context.action_spaces
    return Diffusion(
        reads=tuple(reads),
        detach=tuple(detach),
        shape=_base.action_shape(context, action_space, action_horizon),
        sizes=tuple(space.size for space in spaces),
        diffusion_steps=diffusion_steps, sampling_steps=sampling_steps, sampler=sampler,
        n_diffusion_samples=n_diffusion_samples, loss=loss, masked=masked, max_action=max_action,
        hidden=hidden, depth=depth, time_features=time_features, learned_time=learned_time,
        layer_norm=layer_norm,
        condition=_condition.make(
            context, readout=readout, reads=reads, proprio=proprio, relative_to=relative_to,
            groups=groups, pool=pool,
        ),
        dtype=context.dtype,
    )  # fmt: skip


def _check_names(where: str, sampler: str, loss: str, masked: str) -> None:
    for name, got, known in (
        ("sampler", sampler, SAMPLERS),
        ("loss", loss, LOSSES),
        ("masked", masked, MASKED),
    ):
        if got not in known:
            raise plugin.UserError(plugin.unknown(f"{where}.{name}", got, known))


def _check_counts(where: str, sampler: str, steps: int, evaluations: int, samples: int) -> None:
    if steps < 1 or samples < 1:
        raise plugin.UserError(
            f"{where}: got diffusion_steps={steps}, n_diffusion_samples={samples}; expected at "
            "least 1 of each."
        )
    if not 1 <= evaluations <= steps:
        raise plugin.UserError(
            f"{where}.sampling_steps: got {evaluations}, expected 1 to {steps}, diffusion_steps."
        )
    if sampler == "ddpm" and evaluations != steps:
        raise plugin.UserError(
            f"{where}.sampling_steps: got {evaluations} with sampler='ddpm', which takes all "
            f"{steps}; for fewer say sampler='ddim'."
        )
