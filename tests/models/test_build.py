"""From a config to bodies, tables and objectives, without data."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from vla_jax import config as config_lib
from vla_jax import plugin, types
from vla_jax.codecs import normalizer as normalizer_lib


@pytest.fixture(scope="module")
def build():
    from vla_jax.models import build

    return build


@pytest.fixture
def own(tmp_path) -> pathlib.Path:
    """A user's embodiment file: the card Sawyer's action space under another name of the body."""
    path = tmp_path / "my_robot.py"
    path.write_text(
        "import dataclasses\nfrom vla_jax.embodiments import sawyer_cards\n"
        "EMBODIMENT = dataclasses.replace(sawyer_cards.EMBODIMENT, name='mine')\n"
    )
    return path


def test_embodiments_by_name_and_by_file(build, tiny, own):
    bodies = build.embodiments(tiny.config(embodiments=("widowx", str(own))))
    assert [body.name for body in bodies] == ["widowx", "mine"]
    with pytest.raises(plugin.UserError, match="did you mean 'widowx'"):
        build.embodiments(tiny.config(embodiments=("widowxx",)))
    with pytest.raises(plugin.UserError, match="no such file"):
        build.embodiments(tiny.config(embodiments=("nowhere.py",)))


def test_action_spaces_are_a_table_of_unique_names(build, tiny, own):
    bodies = build.embodiments(tiny.config(embodiments=("widowx", "sawyer_cards_xyz")))
    spaces = build.action_spaces(bodies)
    assert [space.name for space in spaces] == ["ee_delta_gripper", "sawyer_xyz"]
    assert build.action_size(spaces) == 7 and build.action_size(()) == 1
    twice = build.embodiments(tiny.config(embodiments=("sawyer_cards", str(own))))
    with pytest.raises(plugin.UserError, match="not unique"):
        build.action_spaces(twice)


def test_constants_are_identity_without_and_si_with_statistics(build, tiny):
    bodies = build.embodiments(tiny.config())
    shift, scale = build.identity_constants(bodies)["hand"]
    assert shift == ((0.0,) * 3,) and scale == ((1.0,) * 3,)
    numbers = dict(mean=(1.0,) * 3, std=(2.0,) * 3, q01=(0.0,) * 3, q99=(1.0,) * 3)
    statistics = normalizer_lib.Statistics(9, min=(0.0,) * 3, max=(5.0,) * 3, **numbers)
    entry = normalizer_lib.Entry("zscore", statistics, (True,) * 3, unit_scale=(0.01,) * 3)
    table = normalizer_lib.Normalizer({"d": {"proprio/hand": entry}})
    shift, scale = build.constants(table)["hand"]
    np.testing.assert_allclose(shift, [[0.01] * 3])
    np.testing.assert_allclose(scale, [[0.02] * 3])
    assert build.constants(normalizer_lib.Normalizer({"d": {}})) == {}


def test_objectives_carry_their_weight_and_know_their_head(build, tiny):
    config = tiny.config()
    context = build.make_context(config, build.action_spaces(build.embodiments(config)), None, {})
    made = build.objectives(config, context)
    assert {name: weight for name, (_, weight) in made["robot"].items()} == dict(
        action=2.0, point=1.0
    )
    assert made["robot"]["action"][0].head == "action"
    config = tiny.config(
        streams=dict(vl=dict(objectives=dict(p=dict(type="pointing", head="pont"))))
    )
    with pytest.raises(plugin.UserError, match=r"streams\.vl\.objectives\.p\.head.*'point'"):
        build.objectives(config, context)


@pytest.mark.parametrize("name, stands_in", [("splash", "structured"), ("cudnn", "chunked")])
def test_a_kernel_of_attention_stays_where_it_was_trained(tiny, name, stands_in):
    """Parameters are made and shapes are asked for anywhere; training is refused."""
    config = tiny.config(model=dict(trunk=dict(attention=name), dtype="bfloat16"))
    network, batch = tiny.network(config), tiny.batches(config)["robot"]
    arguments = tiny.shapes(config), batch, tiny.keys(config.streams["robot"].heads)
    with pytest.raises(plugin.UserError, match=f"'{name}': got platform 'cpu'.*{stands_in}"):
        jax.eval_shape(lambda *a: network.apply(a[0], a[1], "robot", a[2]), *arguments)
    plain = network.plain()
    assert plain.module.model.trunk["attention"] == stands_in
    jax.eval_shape(lambda *a: plain.apply(a[0], a[1], "robot", a[2]), *arguments)
    assert tiny.network(tiny.config()).plain().module.model == tiny.config().model


def test_context_takes_the_longest_horizon(build, tiny):
    config = tiny.config(streams=dict(vl=dict(action_horizon=7)))
    spaces = build.action_spaces(build.embodiments(config))
    context = build.make_context(config, spaces, tiny.WORDS, {})
    assert isinstance(context, types.Context)
    assert (context.action_horizon, context.action_size, context.width) == (7, 4, 16)
    assert context.vocabulary_size == tiny.WORDS.vocabulary_size


ENCODED = dict(type="encoded_language", max_tokens=12)
ENCODER = dict(
    type="t5", vocabulary_size=60, width=8, depth=1, heads=2, head_dim=4, mlp=8, buckets=8
)


def worded(tiny, **language):
    """The config with another tokenizer of the instruction, and only the regression head."""
    tree = tiny.tree(streams=dict(robot=dict(heads=("action",), readouts=("action",))))
    tree["model"]["tokenizers"]["language"] = {**ENCODED, **language}
    tree["model"]["tokenizers"]["primary"].update(film=None)
    tree["model"]["heads"]["action"].update(reads=())
    del tree["streams"]["vl"], tree["streams"]["robot"]["objectives"]["point"]
    return config_lib.parse(config_lib.TrainConfig, tree)


def test_what_an_encoder_says_can_be_kept(tiny):
    config = worded(tiny, encoder=ENCODER)
    network, batch = tiny.network(config), tiny.batches(config)["robot"]
    variables = tiny.values(config)
    assert "encoder" in variables["params"]["tokenizers_language"]
    ids, mask = batch.task.values["language"], batch.task.masks["language"]
    said = np.asarray(network.embed_text(variables, "language", ids, mask))
    assert said.shape == (2, 12, 8) and said.dtype == np.float32
    task = types.Task.make(values={"language_embedding": said}, masks={"language_embedding": mask})
    keys = tiny.keys(["action"])
    sample = jax.jit(lambda variables, batch: network.sample(variables, batch, "robot", keys))
    answers = [
        sample(variables, dataclasses.replace(batch, task=asked)) for asked in (batch.task, task)
    ]
    np.testing.assert_allclose(*(a["action"]["action"] for a in answers), atol=1e-5)
    with pytest.raises(plugin.UserError, match="text encoder: unknown 'primary'"):
        network.embed_text(variables, "primary", ids, mask)


@pytest.mark.parametrize("tokens", (1, 12))
def test_random_batches_bring_the_embedding_that_a_tokenizer_asks_for(tiny, tokens):
    config = worded(tiny, encoder=None, embedding_size=5, max_tokens=tokens)
    task = tiny.batches(config)["robot"].task
    lead = (2,) if tokens == 1 else (2, tokens)
    assert task.values["language_embedding"].shape == (*lead, 5)
    assert task.masks["language_embedding"].shape == lead
    assert tiny.shapes(config)["params"]["tokenizers_language"]["project"]["kernel"].shape[0] == 5
