"""A small run on recorded episodes: window 2, language, two proprio groups of two robots."""

import dataclasses
import functools
import pathlib
import types as python_types

import numpy as np

from tests.data import conftest as data_lib
from vla_jax import config as config_lib
from vla_jax.codecs import text_tokenizer

# The robot of tests/data, as a user's embodiment file.
ROBOT = "from tests.data.conftest import ARM as EMBODIMENT\n"
SEEN = np.array([True, False, True, True, False, True, True])  # steps with a picture


def episodes(count: int = 5) -> list[dict]:
    masks = {"steps/observation/image_masks/primary": SEEN}
    return [data_lib.episode(i, **masks) for i in range(count)]


def config(
    folder: pathlib.Path, robot: pathlib.Path, words: pathlib.Path
) -> config_lib.TrainConfig:
    member = dict(arm=dict(source=dict(type="rlds", path=str(folder), holdout=0.2), weight=1.0))
    tree = dict(
        steps=1,
        embodiments=(str(robot),),
        text_tokenizer=str(words),
        model=dict(
            trunk=dict(width=16, depth=1, heads=2, mlp=16),
            shared=dict(text_embedding={}),
            tokenizers=dict(
                language=dict(type="language", max_tokens=12),
                primary=dict(
                    type="image_patch",
                    view="primary",
                    image_size=(24, 24),
                    stem="patch",
                    grid_stride=12,
                    widths=(16,),
                ),
                proprio=dict(type="proprio", group="hand", size=3, hidden=(8,)),
            ),
            readouts=dict(action=1),
            heads=dict(
                action=dict(
                    type="regression", readout="action", action_space="xyz_gripper", hidden=(8,)
                )
            ),
            rules=(("*", "readout_*", "never"), ("*", "*", "past_or_now")),
        ),
        streams=dict(
            robot=dict(
                batch_size=8,
                window=2,
                action_horizon=3,
                groups=("language", "primary", "proprio"),
                readouts=("action",),
                heads=("action",),
                objectives=dict(action=dict(type="action", head="action")),
                max_tokens=12,
                image_sizes=dict(primary=(24, 24)),
                mixture=member,
            )
        ),
        writers=("jsonl",),
    )
    return config_lib.parse(config_lib.TrainConfig, tree)


@functools.cache
def words() -> text_tokenizer.TextTokenizer:
    return text_tokenizer.TextTokenizer.train(["touch the cat", "touch the dog"])


def run(root: pathlib.Path) -> python_types.SimpleNamespace:
    """A checkpoint of parameters drawn at random: `.workdir`, `.data`, the run's `.assembly`."""
    import jax

    from vla_jax.models import synthetic
    from vla_jax.train import assemble, checkpoint
    from vla_jax.train import state as states

    data = data_lib.write_folder(root / "arm_data" / "1.0.0", episodes())
    robot, model = root / "robot.py", root / "words.model"
    robot.write_text(ROBOT)
    words().save(model)
    made = config(data, robot, model)
    assembly = assemble.assemble(made)
    examples = synthetic.batches(made, assembly.vocabulary_size)
    shapes = jax.eval_shape(lambda: dict(assembly.network.init(jax.random.key(0), examples)))
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), shapes)
    state = states.TrainState(
        step=np.int32(1), trained=values, frozen={}, opt_state={"count": np.zeros(1)}, ema=None
    )
    saver = checkpoint.Checkpoints(str(root / "run"), made, assembly.assets())
    saver.save(1, state, {"robot": 8})
    saver.close()
    for path in (robot, model):  # a checkpoint needs its folder alone
        path.unlink()
    return python_types.SimpleNamespace(
        workdir=str(root / "run"), data=str(data), assembly=assembly
    )


def observation(seed: int = 0, **changes) -> dict:
    """What the robot may sense at one tick."""
    rng = np.random.default_rng(seed)
    made = {
        "images": {"primary": rng.integers(0, 256, (24, 24, 3), np.uint8)},
        "proprio": {"hand": rng.normal(size=3).astype(np.float32)},
    }
    return made | changes


def two_robots(loaded):
    """The checkpoint `loaded` with a second robot: its space, statistics, a head of its own."""
    import jax

    from vla_jax.codecs import normalizer as normalizer_lib
    from vla_jax.types import ActionGroup, ActionSpace

    group = ActionGroup(name="xy", size=2, quantity="position", representation="delta")
    narrow = ActionSpace(name="xy", groups=(group,), control_hz=5.0)
    numbers = normalizer_lib.Statistics(9, *((value,) * 2 for value in (7, 1, 0, 9, 0, 9)))
    table = normalizer_lib.Normalizer.from_json(loaded.normalizer)
    other = {"action": normalizer_lib.Entry("zscore", numbers, (True,) * 2)}
    table = normalizer_lib.Normalizer({**table.entries, "other": other})
    config = loaded.config
    heads = config.model.heads | {
        "narrow": dict(type="regression", readout="action", action_space="xy", hidden=(8,))
    }
    stream = dataclasses.replace(config.streams["robot"], heads=("action", "narrow"))
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, heads=heads),
        streams={"robot": stream},
    )
    params = dict(loaded.variables["params"])
    head = jax.tree.map(np.array, params["heads_action"])
    last = max(head["mlp"], key=lambda name: name)
    head["mlp"][last] = {
        "kernel": np.zeros((8, 3 * 2), np.float32),
        "bias": np.arange(6, dtype=np.float32),
    }
    params["heads_narrow"] = head
    assets = dataclasses.replace(
        loaded.meta.assets,
        normalizer=table.to_json(),
        action_spaces=(*loaded.action_spaces, narrow),
    )
    made = dataclasses.replace(loaded.meta, config=config, assets=assets)
    return dataclasses.replace(loaded, variables={"params": params}, meta=made)
