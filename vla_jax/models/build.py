"""From a config (and what a checkpoint stores beside it) to the network, without touching data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_jax import config as config_lib
from vla_jax import plugin, types
from vla_jax.codecs import normalizer as normalizer_lib
from vla_jax.codecs import text_tokenizer as text_tokenizer_lib
from vla_jax.models import vla


def embodiments(config: config_lib.TrainConfig) -> tuple[types.Embodiment, ...]:
    """The robot bodies the config names, in order; a path ending in ``.py`` is a user's own file."""
    found = []
    for name in config.embodiments:
        if name.endswith(".py"):
            found.append(plugin.load_attribute(name, "EMBODIMENT"))
        else:
            found.append(plugin.module("embodiments", name).EMBODIMENT)
    return tuple(found)


def action_spaces(bodies: tuple[types.Embodiment, ...]) -> tuple[types.ActionSpace, ...]:
    """The table that `Batch.action_space` indexes: every body's action spaces, in config order."""
    spaces = tuple(space for body in bodies for space in body.action_spaces)
    names = [space.name for space in spaces]
    if len(set(names)) != len(names):
        raise plugin.UserError(f"config.embodiments: action spaces {names} are not unique; rename one.")
    return spaces


def constants(
    bodies: tuple[types.Embodiment, ...], normalizer: normalizer_lib.Normalizer | None
) -> Mapping[str, tuple]:
    """Proprio group → (shift, scale) per dataset key, for heads that compute in SI units.

    Without a normalizer (shapes only: `--dry-run`, `vla smoke`) the constants are the identity.
    """
    sizes = {group.name: group.size for body in bodies for group in body.proprio}
    if normalizer is None:
        return {name: (((0.0,) * size,), ((1.0,) * size,)) for name, size in sizes.items()}
    fields = {field for key in normalizer.keys for field in normalizer.fields(key)}
    return {
        name: normalizer.constants(f"proprio/{name}")
        for name in sizes
        if f"proprio/{name}" in fields
    }


def network(
    config: config_lib.TrainConfig,
    *,
    spaces: tuple[types.ActionSpace, ...],
    text_tokenizer: text_tokenizer_lib.TextTokenizer | None,
    proprio_constants: Mapping[str, tuple],
) -> vla.VLA:
    """The VLA module of the config's streams.

    `spaces`: the table of action spaces; `proprio_constants`: see `constants`.
    """
    context = types.Context(
        name="vla",
        width=0,  # VLA takes it from the trunk
        action_horizon=max(stream.action_horizon for stream in config.streams.values()),
        action_size=action_size(spaces),
        action_spaces=spaces,
        vocabulary_size=text_tokenizer.vocabulary_size if text_tokenizer else 0,
        text_tokenizer=text_tokenizer,
        normalizers=proprio_constants,
    )
    return vla.VLA(model=config.model, streams=config.streams, context=context)


def action_size(spaces: tuple[types.ActionSpace, ...]) -> int:
    """A_max, the width to which every batch's actions are padded (1 where no robot is named)."""
    return max((space.size for space in spaces), default=1)


def objectives(config: config_lib.TrainConfig, context: Any) -> dict[str, dict[str, tuple]]:
    """{stream: {name: (objective, weight)}} of the config."""
    built: dict[str, dict[str, tuple]] = {}
    for stream_name, stream in config.streams.items():
        built[stream_name] = {}
        for name, spec in stream.objectives.items():
            arguments = {key: value for key, value in spec.items() if key != "weight"}
            objective = plugin.build("objectives", arguments, context)
            built[stream_name][name] = (objective, float(spec["weight"]) if "weight" in spec else 1.0)
    return built
