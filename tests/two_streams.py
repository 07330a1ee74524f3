"""A run on real data, as small as can be: the Bridge fixture and collages of emoji, two streams."""

import hashlib

import jax
import numpy as np

from vla_jax import config as config_lib
from vla_jax.data.sources import _emoji, collage
from vla_jax.train import feed, smoke

IMAGE = (24, 24)


def text_tokenizer(folder) -> str:
    """The path of a tokenizer of the collages' words."""
    path = folder / "text_tokenizer.model"
    texts = collage.texts(archives=("twemoji",), split=0, names="ab")
    smoke.text_tokenizer_lib.TextTokenizer.train(texts, vocabulary_size=200).save(path)
    return str(path)


def tree(fixtures_dir, tokenizer: str, *, vl: bool = True, **changes) -> dict:
    """The config as a table; `vl=False` leaves the robot's stream alone."""
    streams = dict(robot=_robot(fixtures_dir))
    heads = dict(action=dict(type="flow", readout="main", hidden=(8,), steps=2))
    if vl:
        drawn = _emoji.split_names(_emoji.card_names(collage.ASSETS), 0)
        heads["point"] = dict(type="pointing", readout="main", dim=8)
        heads["region_text"] = dict(type="region_text", names=drawn.a + drawn.b)
        streams["vl"] = _web()
    made = dict(
        steps=4,
        embodiments=("widowx",),
        text_tokenizer=tokenizer,
        model=dict(
            trunk=dict(width=16, depth=2, heads=2, mlp=32),
            shared=dict(text_embedding={}, grounding=dict(dim=8)),
            tokenizers=dict(
                language=dict(type="language"),
                primary=dict(
                    type="image_patch",
                    view="primary",
                    image_size=IMAGE,
                    widths=(8, 8, 16),
                ),
                proprio=dict(type="proprio", group="ee", size=7, hidden=(8,)),
            ),
            readouts=dict(main=1),
            heads=heads,
            rules=(
                ("readout_main", "readout_main", "past_or_now"),
                ("*", "readout_*", "never"),
                ("*", "language", "all"),
                ("language", "*", "never"),
                ("*", "*", "past_or_now"),
            ),
        ),
        streams=streams,
        optimizer=dict(lr=3e-3, warmup=2, weight_decay=0.1, ema=0.9),
        checkpoint=dict(every=2),
        log_every=1,
        writers=("jsonl",),
    )
    return made | changes


def _robot(fixtures_dir) -> dict:
    """Bridge, a window of two."""
    source = dict(
        type="rlds",
        path=str(fixtures_dir / "bridge_dataset" / "1.0.0"),
        standardizer=dict(type="oxe", row="bridge"),
        language="optional",
        augment=dict(color=0.2, proprio_noise=0.03),
    )
    return dict(
        batch_size=4,
        window=2,
        action_horizon=3,
        groups=("primary", "proprio"),
        readouts=("main",),
        heads=("action",),
        objectives=dict(action=dict(type="action", head="action")),
        max_tokens=64,  # Bridge's words are not in the collages' vocabulary
        image_sizes=dict(primary=IMAGE),
        mixture=dict(bridge=dict(source=source, weight=1.0)),
    )


def _web() -> dict:
    """Collages by one artist."""
    web = dict(type="collage", archives=("twemoji",), split=0, names="ab")
    return dict(
        batch_size=4,
        groups=("language", "primary"),
        readouts=("main",),
        heads=("region_text", "point"),
        objectives=dict(
            region_text=dict(type="region_text", head="region_text"),
            pointing=dict(type="pointing", head="point", weight=((0, 1.0), (4, 2.0))),
        ),
        image_sizes=dict(primary=IMAGE),
        mixture=dict(web=dict(source=web, weight=1.0)),
    )


def config(*arguments, **changes) -> config_lib.TrainConfig:
    """The parsed config."""
    return config_lib.parse(config_lib.TrainConfig, tree(*arguments, **changes))


def watch(monkeypatch) -> list:
    """The list of (stream, row_ids, hash of the arrays) of every batch a train_step takes from now.

    Not of those that were only drawn: one is read ahead, and a run that stops leaves it behind.
    """
    taken, take = [], feed.Feed.take

    def watched(self, running=None):
        batches, *rest = take(self, running)
        for name, batch in batches.items():
            digest = hashlib.sha256()
            for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
                digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
            taken.append((name, np.asarray(batch.row_id).tolist(), digest.hexdigest()))
        return batches, *rest

    monkeypatch.setattr(feed.Feed, "take", watched)
    return taken
