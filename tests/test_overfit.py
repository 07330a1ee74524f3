"""Every head can learn: one batch is overfitted, and losses fall on captions of real emoji.

One config holds every head in two streams, so that one compiled train_step serves all of it.
"""

import dataclasses
import functools
import tarfile

import jax
import numpy as np
import pytest

from vla_jax import config as config_lib
from vla_jax import plugin, types
from vla_jax.codecs import text_tokenizer as text_tokenizer_lib
from vla_jax.data import engine, mixture
from vla_jax.data.sources import collage, image_text
from vla_jax.models import synthetic
from vla_jax.parallel import arrays
from vla_jax.parallel import mesh as meshes
from vla_jax.train import assemble, keys, smoke, start, step

SIZE, ROWS, T, STEPS, PICTURES = (24, 24), 16, 12, 150, 48
STREAMS = ("robot", "vl")
# Of its first loss that an objective has left after STEPS on one batch. A head that ignores its
# readout stays at 0.9 (regression, waypoint), 0.6 (pointing: log 4 of 2.3), 0.36 (region_text:
# log 3 of 3.1), 0.66 (contrastive: log 16 of 4.2). The targets of pointing are soft: 0.35 is all.
SHARE = {
    "robot/regression": 0.15,
    "robot/flow": 0.3,
    "robot/tokens": 0.2,
    "robot/diffusion": 0.5,
    "robot/bins": 0.15,
    "robot/pointing": 0.4,
    "robot/waypoint": 0.15,
    "vl/region_text": 0.12,
    "vl/pointing": 0.42,
    "vl/next_token": 0.05,
    "vl/contrastive": 0.05,
}
RULES = (
    ("caption_text", "caption_text", "causal_position"),
    ("caption_text", "primary", "all"),
    ("caption_text", "*", "never"),
    ("*", "caption_text", "never"),
    ("tokens_actions", "tokens_actions", "now"),
    ("*", "tokens_actions", "never"),
    ("readout_image", "readout_image", "now"),
    ("readout_image", "primary", "past_or_now"),
    ("readout_image", "*", "never"),
    ("readout_text", "readout_text", "now"),
    ("readout_text", "language", "all"),
    ("readout_text", "*", "never"),
    ("readout_main", "readout_main", "past_or_now"),
    ("*", "readout_*", "never"),
    ("language", "language", "all"),
    ("language", "*", "never"),
    ("primary", "language", "never"),  # what the image readout sees must know no text
    ("*", "language", "all"),
    ("*", "*", "past_or_now"),
)
HEADS = dict(
    point=dict(type="pointing", readout="main", dim=16),
    waypoint=dict(type="regression", target="waypoint", reads=("point",), readout="main"),
    regression=dict(type="regression", readout="main", hidden=(64,)),
    flow=dict(type="flow", readout="main", hidden=(128, 128)),
    tokens=dict(type="flow", as_tokens=True),
    diffusion=dict(
        type="diffusion",
        readout="main",
        hidden=128,
        diffusion_steps=5,
        n_diffusion_samples=8,
        sampler="ddim",
    ),
    bins=dict(type="bins", readout="main", bins=32, low=-3.0, high=3.0),
    region_text=dict(type="region_text", names=("cat", "dog", "cow")),
    caption=dict(type="language", max_tokens=T),
    pair=dict(type="contrastive", dim=16),
)


@functools.cache
def captions() -> text_tokenizer_lib.TextTokenizer:
    texts = image_text.texts(path=str(collage.ASSETS / "twemoji.tar"))
    return text_tokenizer_lib.TextTokenizer.train([*texts, "cat dog cow"], vocabulary_size=300)


def config() -> config_lib.TrainConfig:
    stem = dict(type="image_patch", view="primary", image_size=SIZE, widths=(16, 16, 32))
    both = dict(batch_size=ROWS, max_tokens=T, image_sizes=dict(primary=SIZE))
    acting = ("regression", "flow", "tokens", "diffusion", "bins")
    tree = dict(
        steps=STEPS,
        embodiments=("sawyer_cards",),
        model=dict(
            trunk=dict(width=32, depth=2, heads=4, mlp=64),
            shared=dict(text_embedding={}, grounding=dict(dim=16)),
            tokenizers=dict(
                language=dict(type="language", mode="pieces", max_tokens=T),
                primary=stem,
                proprio=dict(type="proprio", group="hand", size=3, hidden=(32,)),
            ),
            readouts=dict(main=1, image=1, text=1),
            heads=HEADS,
            rules=RULES,
        ),
        streams=dict(
            robot=dict(
                **both,
                action_horizon=3,
                groups=("language", "primary", "proprio"),
                readouts=("main",),
                heads=("point", "waypoint", *acting),
                objectives={name: dict(type="action", head=name) for name in acting}
                | dict(
                    pointing=dict(type="pointing", head="point"),
                    waypoint=dict(type="waypoint", head="waypoint"),
                ),
            ),
            vl=dict(
                **both,
                groups=("language", "primary"),
                readouts=("main", "image", "text"),
                heads=("point", "region_text", "caption", "pair"),
                objectives=dict(
                    region_text=dict(type="region_text", head="region_text"),
                    pointing=dict(type="pointing", head="point"),
                    next_token=dict(type="next_token", head="caption"),
                    contrastive=dict(type="contrastive", head="pair", loss="softmax"),
                ),
            ),
        ),
        optimizer=dict(lr=5e-3, schedule="constant", warmup=10),
    )
    return config_lib.parse(config_lib.TrainConfig, tree)


@pytest.fixture(scope="module")
def trainer():
    """(function of {stream: iterator}, steps -> {objective: [mean per train_step]}, the config)."""
    made = config()
    tokenizer = captions()
    network, objectives = smoke.parts(made, tokenizer)
    mesh = meshes.make(devices=jax.devices()[:1])
    with meshes.use(mesh):
        examples = synthetic.examples(made, tokenizer.vocabulary_size)
        plan = start.plan(made, network, examples, mesh)
        train_step = jax.jit(
            step.make_train_step(network.apply, objectives, plan.optimizer, made),
            donate_argnums=0,
        )

    def train(next_batches, steps):
        curves: dict[str, list[float]] = {}
        with meshes.use(mesh):
            state = start.fresh(plan)
            for number in range(steps):
                batches = arrays.global_batch(next_batches(number), mesh)
                state, metrics = train_step(state, batches)
                for name, (total, count) in arrays.fetch(metrics).items():
                    if count > 0:
                        curves.setdefault(name, []).append(float(total / count))
        return curves, state.trained

    return train, made, tokenizer, network


@pytest.fixture(scope="module")
def overfitted(trainer):
    """({objective: losses}, the robot stream's batch, what its heads answer when they sample)."""
    train, made, tokenizer, network = trainer
    batches = synthetic.batches(made, tokenizer.vocabulary_size)

    def again(number):  # the same rows under other names: other noise for the flow heads
        rows = (np.arange(ROWS) + number * ROWS).astype(np.uint32)
        return {name: dataclasses.replace(b, row_id=rows) for name, b in batches.items()}

    curves, variables = train(again, STEPS)
    robot = batches["robot"]
    row_keys = {name: keys.row_keys(1, name, robot.row_id) for name in HEADS}
    sample = jax.jit(lambda variables, batch: network.sample(variables, batch, "robot", row_keys))
    return curves, robot, jax.device_get(sample(variables, robot))


def test_every_head_and_objective_is_covered():
    objectives = {f"{s}/{o}" for s, made in config().streams.items() for o in made.objectives}
    assert objectives == set(SHARE)
    used = {name for stream in config().streams.values() for name in stream.heads}
    assert used == set(HEADS)
    assert {spec["type"] for spec in HEADS.values()} == set(plugin.names("heads"))


@pytest.mark.parametrize("name", SHARE)
def test_one_batch_is_overfitted(overfitted, name):
    losses = overfitted[0][name]
    assert np.all(np.isfinite(losses))
    assert np.mean(losses[-5:]) < SHARE[name] * losses[0], (losses[0], losses[-5:])


@pytest.mark.parametrize(
    "name, share",  # of the distance to other rows' chunks; 1 if the row is ignored
    [("regression", 0.4), ("flow", 0.4), ("tokens", 0.4), ("diffusion", 0.65), ("bins", 0.4)],
)
def test_a_sampled_chunk_is_its_own_rows(overfitted, name, share):
    """Flow's loss falls on noise alone; what it samples from new noise must come from the row."""
    _, batch, answers = overfitted
    wanted = batch.targets["action"][:, -1]  # [B, C, A]
    apart = np.abs(answers[name]["action"][:, None] - wanted[None]).mean(axis=(2, 3))  # [B, B]
    own, others = np.diag(apart).mean(), apart[~np.eye(ROWS, dtype=bool)].mean()
    assert own < share * others, (own, others)
    assert np.mean(apart.argmin(axis=1) == np.arange(ROWS)) > 0.8  # by chance: 1 of ROWS


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """A stream of captioned pictures: few enough to be told apart within seconds."""
    path = tmp_path_factory.mktemp("emoji") / "few.tar"
    with tarfile.open(collage.ASSETS / "twemoji.tar") as whole, tarfile.open(path, "w") as few:
        for member in whole.getmembers()[: 2 * PICTURES]:
            few.addfile(member, whole.extractfile(member))
    names = ("text", "point", "region_point", "region_name")
    source = dict(type="image_text", path=str(path), targets=names, regions=3, cut=True, holdout=0)
    return dict(few=dict(source=source, weight=1.0))


def test_losses_fall_on_emoji_captions(trainer, emoji):
    train, made, tokenizer, _ = trainer
    bodies = assemble.build.embodiments(made)
    spaces = assemble.build.action_spaces(bodies)
    context = assemble.source_context(made, "vl", bodies, spaces, tokenizer)
    # The robot's stream stands there for its shapes alone, as do an emoji's hand and action.
    robot, example = (_masked(synthetic.batch(made, s, tokenizer.vocabulary_size)) for s in STREAMS)
    with engine.Stream(mixture.Mixture.make(emoji, context), ROWS) as stream:

        def batches(number):
            row = next(stream)
            row["observation"]["proprio"] = example.observation.proprio
            row["observation"]["proprio_masks"] = example.observation.proprio_masks
            row["targets"] = {**example.targets, **row["targets"]}
            row["target_masks"] = {**example.target_masks, **row["target_masks"]}
            return {"robot": robot, "vl": types.Batch.make(**row)}

        curves, _ = train(batches, STEPS)
    assert set(curves) & set(SHARE) == {"vl/next_token", "vl/contrastive"}
    captioned, matched = curves["vl/next_token"], curves["vl/contrastive"]
    assert np.mean(captioned[-10:]) < 0.6 * np.mean(captioned[:3])
    assert np.mean(matched[-10:]) < 0.7 * np.log(ROWS)  # chance: one text of ROWS
    assert np.mean(curves["vl/contrastive/matched"][-10:]) > 3 / ROWS


def _masked(batch: types.Batch) -> types.Batch:
    """The batch with no reading and no target that counts."""
    seen = batch.observation
    blank = {name: np.zeros_like(mask) for name, mask in seen.proprio_masks.items()}
    return dataclasses.replace(
        batch,
        observation=dataclasses.replace(seen, proprio_masks=blank),
        target_masks={name: np.zeros_like(mask) for name, mask in batch.target_masks.items()},
    )
