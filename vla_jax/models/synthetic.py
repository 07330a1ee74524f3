"""Random batches in the shapes a config asks for: smoke tests, abstract runs, benchmarks.

Shapes come from the config alone, never from data, so a network can be initialised and checked
without any.
"""

from __future__ import annotations

import jax
import numpy as np

from vla_jax import config as config_lib
from vla_jax import plugin, types
from vla_jax.models import build


def batches(
    config: config_lib.TrainConfig, vocabulary_size: int, *, start: int = 0
) -> dict[str, types.Batch]:
    """One random numpy Batch per stream; rows `start`, `start + 1`, … so that steps differ."""
    return {
        name: batch(config, name, vocabulary_size, start=start * stream.batch_size)
        for name, stream in config.streams.items()
    }


def examples(config: config_lib.TrainConfig, vocabulary_size: int) -> dict[str, types.Batch]:
    """One row per stream: enough to make parameters, whose shapes do not depend on the batch's."""
    return {name: _batch(config, name, vocabulary_size, 0, 1) for name in config.streams}


def abstract(config: config_lib.TrainConfig, vocabulary_size: int) -> dict[str, types.Batch]:
    """{stream: Batch of ShapeDtypeStructs} at full size, without making the numbers."""

    def grown(size):
        return lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype)

    rows = examples(config, vocabulary_size)
    return {
        name: jax.tree.map(grown(stream.batch_size), rows[name])
        for name, stream in config.streams.items()
    }


def batch(
    config: config_lib.TrainConfig, stream: str, vocabulary_size: int, *, start: int = 0
) -> types.Batch:
    """The stream's random Batch of `batch_size` rows; row n is a function of n alone."""
    return _batch(config, stream, vocabulary_size, start, config.streams[stream].batch_size)


def _batch(config, stream: str, vocabulary_size: int, start: int, count: int) -> types.Batch:
    settings = config.streams[stream]
    rows = [
        _row(config, settings, vocabulary_size, np.random.default_rng((7, start + i)))
        for i in range(count)
    ]
    stacked = _stack(rows)
    return types.Batch.make(**stacked, row_id=np.arange(start, start + len(rows), dtype=np.uint32))


def _row(config, settings: config_lib.StreamConfig, vocabulary_size: int, rng) -> dict:
    bodies = build.embodiments(config)
    spaces = build.action_spaces(bodies)
    window, tokens = settings.window, settings.max_tokens
    proprio = {
        group.name: rng.normal(size=(window, group.size)).astype(np.float32)
        for body in bodies
        for group in body.proprio
    }
    real = np.ones(window, bool)
    length = int(rng.integers(min(2, tokens), tokens + 1))
    targets, masks = _targets(config, settings, spaces, proprio, vocabulary_size, rng)
    row = dict(
        observation=dict(
            images={
                view: rng.integers(0, 256, (window, *size, 3), np.uint8)
                for view, size in settings.image_sizes.items()
            },
            proprio=proprio,
            timestep_mask=real,
        ),
        task=dict(
            values={"language": rng.integers(0, max(vocabulary_size, 1), tokens, np.int32)},
            masks={"language": np.arange(tokens) < length},
        ),
        targets=targets,
        target_masks=masks,
        action_space=np.int32(0 if spaces else -1),
        dataset_key=np.int32(0 if spaces else -1),
    )
    values, masks = _embedding(config, settings, rng)
    row["task"]["values"] |= values
    row["task"]["masks"] |= masks
    return row


def _embedding(config, settings, rng) -> tuple[dict, dict]:
    """The instruction's embedding where a tokenizer asks for one and has no encoder to make it."""
    values, masks = {}, {}
    for name in settings.groups:
        spec = config.model.tokenizers[name] if name in config.model.tokenizers else {}
        if spec.get("embedding_size") and spec.get("encoder") is None:
            tokens = () if spec["max_tokens"] == 1 else (spec["max_tokens"],)
            drawn = rng.normal(size=(*tokens, spec["embedding_size"]))
            values["language_embedding"] = drawn.astype(np.float32)
            masks["language_embedding"] = np.ones(tokens, bool)
    return values, masks


def _targets(config, settings, spaces, proprio, vocabulary_size, rng) -> tuple[dict, dict]:
    window, regions = settings.window, 3
    for name in settings.heads:
        if name not in config.model.heads:
            raise plugin.UserError(plugin.unknown("config.model.heads", name, config.model.heads))
    heads = [config.model.heads[name] for name in settings.heads]
    values = {
        "point": rng.uniform(size=(window, 2)).astype(np.float32),
        "text": rng.integers(0, max(vocabulary_size, 1), settings.max_tokens, np.int32),
    }
    if spaces:
        shape = (window, settings.action_horizon, build.action_size(spaces))
        values["action"] = rng.normal(size=shape).astype(np.float32)
    for head in heads:
        if "target" in head and head["target"] == "waypoint":
            group = head["group"] if "group" in head else "hand"
            if group not in proprio:
                raise plugin.UserError(plugin.unknown("heads: waypoint group", group, proprio))
            values["waypoint"] = rng.normal(size=proprio[group].shape).astype(np.float32)
        if "names" in head:
            values["region_point"] = rng.uniform(size=(window, regions, 2)).astype(np.float32)
            values["region_name"] = rng.integers(0, len(head["names"]), (window, regions), np.int32)
    masks = {
        name: np.ones(value.shape[: value.ndim - types.TARGET_VECTOR_AXES.get(name, 0)], bool)
        for name, value in values.items()
    }
    return values, masks


def _stack(rows: list) -> dict:
    first = rows[0]
    if isinstance(first, dict):
        return {key: _stack([row[key] for row in rows]) for key in first}
    return np.stack(rows)
