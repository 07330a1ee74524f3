"""Every file of envs/ keeps the contract; files are found by listing the folder."""

import inspect

import numpy as np
import pytest

from vla_jax import plugin

pytestmark = pytest.mark.sim

# What an environment asks for besides its sizes: made here, since `make` has no default for it.
ARGUMENTS = {"cards": lambda: dict(pictures=_pictures())}
RESETS = {"cards": (0, "a", ("a", "b", "c", "d"))}


def _pictures():
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, (64, 64, 4), dtype=np.uint8) for name in "abcd"}


@pytest.mark.parametrize("name", plugin.names("envs"))
def test_contract(name):
    module = plugin.module("envs", name)
    first = next(iter(inspect.signature(module.make).parameters.values()))
    assert first.name == "context"
    arguments = {**ARGUMENTS[name](), **module.DEBUG}
    env = plugin.build("envs", dict(type=name, **arguments), None)
    observation = env.reset(*RESETS[name])
    for _ in range(2):
        assert set(observation["images"]) == set(env.views)
        assert set(env.views) <= set(env.embodiment.views)
        for image in observation["images"].values():
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        for group in env.embodiment.proprio:
            reading = observation["proprio"][group.name]
            assert reading.dtype == np.float32 and reading.shape == (group.size,)
        observation, info = env.step(np.zeros(env.action_space.size))
        assert isinstance(info["done"], bool) and isinstance(info["success"], bool)
        assert isinstance(env.instruction, str)
    env.close()
