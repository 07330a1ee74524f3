"""Octo's own random bits: the goldens were drawn with jax_threefry_partitionable=False.

That setting is made for these draws only. Where a folder stores its noise, the noise is injected;
draws stand in for noise that is not stored, and tell that the stored one is Octo's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from tools.octo_golden import dropped, forward
from tools.octo_golden.golden import Golden

# PRNGKeys by the generator's README: fingerprints and samples, the loss, the train state.
SAMPLE, LOSS, STATE = 7, 3, 9


def chain(key: int, shape: tuple[int, ...], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(start, z [steps, …]) of `shape`, as Octo's predict_action draws them from PRNGKey(key)."""
    with jax.threefry_partitionable(False):
        rng, here = jax.random.split(jax.random.PRNGKey(key))
        drawn = [jax.random.normal(here, shape)]
        for _ in range(steps):
            rng, here = jax.random.split(rng)
            drawn.append(jax.random.normal(here, shape))
    return np.asarray(drawn[0]), np.asarray(drawn[1:])


def gumbel(key: int, shape: tuple[int, ...]) -> np.ndarray:
    """The noise of a categorical draw from PRNGKey(key)."""
    with jax.threefry_partitionable(False):
        return np.asarray(jax.random.gumbel(jax.random.PRNGKey(key), shape))


def newest(start: np.ndarray, steps: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Octo's [B, W, C·A] and [T, B, W, C·A] as our head takes them, of the newest step."""
    rows = start.shape[0]
    return dict(
        start=start[:, -1].reshape(rows, *size),
        steps=np.moveaxis(steps[:, :, -1], 0, 1).reshape(rows, -1, *size),
    )


def answers(
    golden: Golden, name: str, noises: Sequence[Any], prefix: str = "transformer", **settings: Any
) -> np.ndarray:
    """[noises, B, C, A]: what a head with other settings answers, once for each noise.

    It is given Octo's own embeddings where a folder stores them below `prefix`: chained steps
    amplify the rounding of the trunk, Octo's above all, which is judged there by itself.
    """
    native, batch, outputs = forward.told(golden, prefix)
    head = native.network.module.bind(native.variables).heads[name]
    head = head.clone(parent=None, **settings)
    own = {"params": native.variables["params"][f"heads_{name}"]}

    @jax.jit
    def run(outputs, batch, noise):
        return head.apply(own, outputs, {}, batch, None, None, noise, method="sample")[0]["action"]

    return np.stack([run(outputs, batch, noise) for noise in noises])


# ------------------------------------------------------------- what is stored, and drawn once more


def compare(golden: Golden) -> None:
    """prng/…, and the stored noise: given to our network, and where draws give it too, compared."""
    if golden.names("prng/"):
        golden.attempt(_fingerprints)
    if any(name.endswith("noise") for name in golden.outputs):
        golden.attempt(_stored)


def _fingerprints(golden: Golden) -> None:
    for setting in (False, True):
        with jax.threefry_partitionable(setting):
            key, prefix = jax.random.PRNGKey(SAMPLE), f"prng/partitionable_{setting}"
            golden.compare(f"{prefix}/split", jax.random.split(key))
            golden.compare(f"{prefix}/fold_in_3", jax.random.fold_in(key, 3))
            golden.compare(f"{prefix}/normal", jax.random.normal(key, (2, 5)))
            golden.compare(f"{prefix}/randint", jax.random.randint(key, (2, 5), 0, 20))
    with jax.threefry_partitionable(False):
        golden.compare("prng/make_rng_head", _of_head(golden, jax.random.PRNGKey(LOSS)))


def _of_head(golden: Golden, key: jax.Array) -> jax.Array:
    return dropped.folded(key, f"heads_{golden.acting}")


def _stored(golden: Golden) -> None:
    """Each noise and time of outputs.npz that the README's keys give again."""
    drawn: dict[str, Any] = {}
    arrays = golden.outputs
    for name, array in arrays.items():
        if name.startswith("sample/") and name.endswith("init_noise"):
            steps = name.replace("init_noise", "z_per_step")
            count = len(arrays[steps]) if steps in arrays else 0
            drawn[name], drawn[steps] = chain(SAMPLE, array.shape, count)
    with jax.threefry_partitionable(False):
        keys, state = {"loss": jax.random.PRNGKey(LOSS)}, jax.random.PRNGKey(STATE)
        for step in range(len(golden.names("train/step"))):  # as many at most
            state, keys[f"train/step{step}"] = jax.random.split(state)
        for prefix, key in keys.items():
            if f"{prefix}/noise" in arrays and f"{prefix}/time" in arrays:
                first, second = jax.random.split(_of_head(golden, key))
                noise, time = (f"{prefix}/{part}" for part in ("noise", "time"))
                drawn[noise] = jax.random.normal(second, arrays[noise].shape)
                steps = len(arrays["schedule/betas"]) if "schedule/betas" in arrays else 20
                drawn[time] = jax.random.randint(first, arrays[time].shape, 0, steps)
    for name, array in drawn.items():
        if name in arrays and np.allclose(array, arrays[name], atol=1e-6):
            golden.compare(name, array)
