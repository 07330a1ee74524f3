"""A network with every kind of organ, so small that it compiles in seconds, and its config."""

import copy
import dataclasses

import jax
import numpy as np

from vla_jax import config as config_lib
from vla_jax import trees
from vla_jax.codecs import text_tokenizer
from vla_jax.models import build, synthetic

assert trees  # registers the dataclasses
WORDS = text_tokenizer.TextTokenizer.train(["touch the cat", "touch the dog", "point to the cow"])
RULES = (
    ("*_actions", "*_actions", "now"),
    ("*", "*_actions", "never"),
    ("readout_action", "readout_action", "past_or_now"),
    ("*", "readout_*", "never"),
    ("*", "language", "all"),
    ("language", "*", "never"),
    ("*", "*", "past_or_now"),
)


VL = dict(
    batch_size=2,
    groups=("language", "primary"),
    readouts=("point",),
    heads=("point",),
    objectives=dict(point=dict(type="pointing", head="point")),
    max_tokens=12,
    image_sizes=dict(primary=(16, 16)),
)


def tree(**changes) -> dict:
    """The config as a table; `changes` are laid over `model` and `streams` by name."""
    made = dict(
        steps=4,
        embodiments=("sawyer_cards",),
        model=dict(
            trunk=dict(width=16, depth=2, heads=2, mlp=16),
            shared=dict(text_embedding={}, grounding=dict(dim=8)),
            tokenizers=dict(
                language=dict(type="language", max_tokens=12),
                primary=dict(
                    type="image_patch",
                    view="primary",
                    image_size=(16, 16),
                    grid_stride=8,
                    widths=(8, 8, 8),
                    film="product",
                ),
                proprio=dict(type="proprio", group="hand", size=3, hidden=(8,)),
            ),
            readouts=dict(point=1, action=1),
            heads=dict(
                point=dict(type="pointing", readout="point", dim=8),
                action=dict(
                    type="regression",
                    readout="action",
                    action_space="sawyer_xyz_gripper",
                    reads=("point",),
                    hidden=(8,),
                ),
            ),
            rules=RULES,
        ),
        streams=dict(
            robot=dict(
                batch_size=2,
                window=2,
                action_horizon=3,
                groups=("language", "primary", "proprio"),
                readouts=("point", "action"),
                heads=("action", "point"),
                objectives=dict(
                    action=dict(type="action", head="action", weight=2.0),
                    point=dict(type="pointing", head="point"),
                ),
                max_tokens=12,
                image_sizes=dict(primary=(16, 16)),
            ),
            vl=copy.deepcopy(VL),
        ),
    )
    _lay(made, changes)
    return made


def _lay(under: dict, over: dict) -> None:
    for name, value in over.items():
        if isinstance(value, dict) and isinstance(under.get(name), dict) and "type" not in value:
            _lay(under[name], value)
        else:
            under[name] = value


def config(**changes) -> config_lib.TrainConfig:
    """The parsed config."""
    return config_lib.parse(config_lib.TrainConfig, tree(**changes))


def network(config: config_lib.TrainConfig, normalizer=None) -> build.Network:
    """Its network; without a normalizer, constants are the identity."""
    bodies = build.embodiments(config)
    known = build.constants(normalizer) if normalizer else build.identity_constants(bodies)
    return build.network(
        config,
        spaces=build.action_spaces(bodies),
        text_tokenizer=WORDS,
        proprio_constants=known,
    )


def batches(config: config_lib.TrainConfig) -> dict:
    """{stream: Batch} of random numbers."""
    return synthetic.batches(config, WORDS.vocabulary_size)


def shapes(config: config_lib.TrainConfig) -> dict:
    """Shapes of all parameters."""
    net, examples = network(config), batches(config)
    return jax.eval_shape(lambda: dict(net.init(jax.random.key(0), examples)))


def values(config: config_lib.TrainConfig, seed: int = 0) -> dict:
    """Parameters drawn in numpy, without compiling anything."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), shapes(config)
    )


def keys(heads, rows: int = 2) -> dict:
    """A random key per head and row."""
    return {name: jax.random.split(jax.random.key(i), rows) for i, name in enumerate(heads)}


def say(batch, text: str):
    """The batch with another instruction in every row."""
    ids, mask = WORDS.encode_padded(text, batch.task.values["language"].shape[1])
    rows = batch.row_id.shape[0]
    task = dataclasses.replace(
        batch.task,
        values={"language": np.stack([ids] * rows)},
        masks={"language": np.stack([mask] * rows)},
    )
    return dataclasses.replace(batch, task=task)
