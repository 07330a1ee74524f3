"""A checkpoint of the card demo's form, tiny and never trained: it acts, and it points."""

import functools
import pathlib

import jax
import numpy as np

from tests.models import tiny
from vla_jax import config as config_lib
from vla_jax.codecs import normalizer as normalizers
from vla_jax.codecs import text_tokenizer
from vla_jax.data.sources import _emoji, collage
from vla_jax.models import build, synthetic
from vla_jax.train import checkpoint
from vla_jax.train import state as states

NAMES = _emoji.split_names(_emoji.card_names(collage.ASSETS), 0)
TOKENS = 24
COLLAGES = dict(type="collage", archives=("twemoji",))
MEMBER = dict(collages=dict(source=COLLAGES, weight=1.0))


@functools.cache
def words() -> text_tokenizer.TextTokenizer:
    """Knows every name, those of C too."""
    names = _emoji.card_names(collage.ASSETS)
    return text_tokenizer.TextTokenizer.train(
        [f"{verb} the {name}" for name in names for verb in ("touch", "point to")]
    )


def config() -> config_lib.TrainConfig:
    """Streams: `robot`; `vl`, collages; `still`, pictures of which nothing is pointed out."""
    plain = dict(type="regression", readout="action", action_space="sawyer_xyz_gripper")
    vl = dict(mixture=MEMBER, max_tokens=TOKENS)
    still = tiny.VL | vl | dict(readouts=("action",), heads=("plain",))
    still["objectives"] = dict(action=dict(type="action", head="plain"))
    return tiny.config(
        model=dict(
            heads=dict(plain=plain | dict(hidden=(8,))),
            tokenizers=dict(language=dict(type="language", max_tokens=TOKENS)),
        ),
        streams=dict(robot=dict(window=1, action_horizon=8, max_tokens=TOKENS), vl=vl, still=still),
    )


def normalizer() -> normalizers.Normalizer:
    """Actions as they are, the hand over half a metre."""
    ones = normalizers.Statistics(9, *((value,) * 4 for value in (0, 0.5, -1, 1, -1, 1)))
    hand = normalizers.Statistics(9, *((value,) * 3 for value in (0, 0.5, -1, 1, -1, 1)))
    entries = {
        "action": normalizers.Entry("identity", ones, (True,) * 4),
        "proprio/hand": normalizers.Entry("zscore", hand, (True,) * 3),
    }
    return normalizers.Normalizer({"sawyer_cards": entries})


def save(folder: pathlib.Path, made: config_lib.TrainConfig | None = None) -> str:
    """Writes a checkpoint of random parameters; its folder."""
    made = made or config()
    spaces = build.action_spaces(build.embodiments(made))
    network = build.network(
        made,
        spaces=spaces,
        text_tokenizer=words(),
        proprio_constants=build.constants(normalizer()),
    )
    examples = synthetic.examples(made, words().vocabulary_size)
    shapes = jax.eval_shape(lambda: dict(network.init(jax.random.key(0), examples)))
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), shapes)
    state = states.TrainState(
        step=np.int32(1), trained=values, frozen={}, opt_state={"count": np.zeros(1)}, ema=None
    )
    assets = checkpoint.Assets(
        normalizer=normalizer().to_json(),
        text_tokenizer=words().bytes,
        action_spaces=tuple(spaces),
    )
    saver = checkpoint.Checkpoints(str(folder), made, assets)
    saver.save(1, state, {"robot": 2})
    saver.close()
    return str(folder)
