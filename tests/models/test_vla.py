"""Organs assembled: streams, order, caching, conditioning, and what the check refuses."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from vla_jax import plugin

FLOW = dict(type="flow", action_space="sawyer_xyz_gripper", as_tokens=True, steps=1)


@pytest.fixture(scope="module")
def flow(tiny):
    """A network whose action head denoises tokens in the trunk, and its parameters."""
    heads = dict(action=FLOW)
    config = tiny.config(model=dict(heads=heads))
    return config, tiny.network(config), tiny.values(config)


def organs(shapes) -> set[str]:
    return set(shapes["params"])


def test_init_makes_the_union_of_the_streams(tiny):
    both = tiny.shapes(tiny.config())
    config = tiny.config()
    alone = {
        name: tiny.shapes(dataclasses.replace(config, streams={name: stream}))
        for name, stream in config.streams.items()
    }
    assert organs(both) == organs(alone["robot"]) | organs(alone["vl"])
    assert not any("proprio" in name or "action" in name for name in organs(alone["vl"]))
    table = both["params"]["positions_primary"]["table"]
    assert table.shape == (2, 4, 16)  # the longest window of any stream
    assert alone["vl"]["params"]["positions_primary"]["table"].shape == (1, 4, 16)
    assert both["params"]["positions_language"]["table"].shape == (1, 16)


def test_layout_follows_the_config(tiny, flow):
    layout = tiny.network(tiny.config()).layout("robot")
    names = [group.name for group in layout.groups]
    assert names == ["language", "primary", "proprio", "readout_point", "readout_action"]
    assert layout.length == 1 + 2 * (4 + 1 + 1 + 1)
    # Tokens that a head brings stand last.
    assert flow[1].layout("robot").groups[-1].name == "action_actions"


def test_heads_answer_after_those_they_read(tiny):
    module = tiny.network(tiny.config()).module.bind({})
    assert module.head_order("robot") == ("point", "action")
    assert module.head_order("vl") == ("point",)


def test_a_circle_of_reads_is_refused(tiny):
    heads = dict(
        point=dict(type="pointing", readout="point", reads=("action",)),
        action=dict(type="regression", readout="action", reads=("point",)),
    )
    with pytest.raises(plugin.UserError, match="action → point → action read in a circle"):
        tiny.shapes(tiny.config(model=dict(heads=heads)))


def test_unknown_names_are_refused(tiny):
    cases = (
        (dict(streams=dict(vl=dict(heads=("pint",)))), "did you mean 'point'"),
        (dict(streams=dict(vl=dict(readouts=("pint",)))), "did you mean 'point'"),
        (dict(streams=dict(vl=dict(groups=("language", "primry")))), "did you mean 'primary'"),
        (dict(streams=dict(vl=dict(conditioning=dict(secondary=())))), "'secondary'"),
        (dict(model=dict(shared=dict(text_embeding={}))), "did you mean 'text_embedding'"),
    )
    for changes, message in cases:
        with pytest.raises(plugin.UserError, match=message):
            tiny.shapes(tiny.config(**changes))


def full_pass(module, batch, noise):
    """One Euler step of the newest actions from `noise`, the whole sequence in one pass."""
    head = module.heads["action"]
    noisy = jax.numpy.stack([noise * 0.5, noise], axis=1)  # [B, W, C, A]; the older is not seen
    tokens = head._embed(noisy, jax.numpy.zeros(noisy.shape[:2]))
    groups = module._tokenize(batch, "robot")
    outputs, _ = module._forward(batch, "robot", groups, {"action_actions": tokens}, None)
    return noise + head.velocity_out(outputs["action_actions"].final)[:, -1]


def two_ways(network) -> tuple:
    """Functions of (variables, batch, noise): a chunk over the cache, and that of one pass."""
    sample = lambda variables, batch, given: network.sample(variables, batch, "robot", given)  # noqa: E731
    full = functools.partial(network.module.apply, method=full_pass)
    return jax.jit(sample), jax.jit(full)


@pytest.fixture(scope="module")
def flow_ways(flow):
    return two_ways(flow[1])


@pytest.mark.parametrize("past", [True, False])
def test_decoding_over_the_cache_equals_the_full_pass(tiny, flow, flow_ways, past):
    config, _, variables = flow
    batch = tiny.batches(config)["robot"]
    if not past:  # the first step of an episode: half of the window is padding
        seen = batch.observation
        mask = np.array([[False, True]] * 2)
        seen = dataclasses.replace(
            seen,
            timestep_mask=mask,
            image_masks={"primary": mask},
            proprio_masks={"hand": mask},
        )
        batch = dataclasses.replace(batch, observation=seen)
    decodes_as_in_one_pass(tiny, flow_ways, variables, batch)


@pytest.mark.slow
def test_decoding_where_every_layer_adds_positions(tiny):
    config = tiny.config(model=dict(heads=dict(action=FLOW), trunk=dict(position="every_layer")))
    network, batch = tiny.network(config), tiny.batches(config)["robot"]
    decodes_as_in_one_pass(tiny, two_ways(network), tiny.values(config), batch)


def decodes_as_in_one_pass(tiny, ways, variables, batch) -> None:
    noise = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    given = {"action": noise, "point": tiny.keys(["point"])["point"]}
    sample, full = ways
    sampled = sample(variables, batch, given)["action"]["action"]
    expected = full(variables, batch, noise)
    np.testing.assert_allclose(sampled, expected, rtol=2e-5, atol=2e-5)


def test_a_stream_may_take_the_task_out_of_the_image_tokens(tiny):
    def tokens(module, batch):
        return module._tokenize(batch, "vl")["primary"].tokens

    def of_two_texts(conditioning):
        config = tiny.config(streams=dict(vl=dict(conditioning=conditioning)))
        variables, batch = tiny.values(config), tiny.batches(config)["vl"]
        compiled = jax.jit(functools.partial(tiny.network(config).module.apply, method=tokens))
        texts = ("touch the cat", "touch the dog")
        return [np.asarray(compiled(variables, tiny.say(batch, text))) for text in texts]

    with_task = of_two_texts({})
    assert np.abs(with_task[0] - with_task[1]).max() > 1e-3
    np.testing.assert_array_equal(*of_two_texts({"primary": ()}))


def contrastive(tiny, rules, conditioning):
    config = tiny.config(
        model=dict(
            readouts=dict(point=1, action=1, image=1, text=1),
            heads=dict(clip=dict(type="contrastive")),
            rules=rules,
        ),
        streams=dict(
            vl=dict(
                readouts=("image", "text"),
                heads=("clip",),
                objectives=dict(
                    clip=dict(type="contrastive", head="clip"),
                    point=dict(type="contrastive", head="clip"),  # in place of tiny's
                ),
                conditioning=conditioning,
            )
        ),
    )
    from vla_jax.models import build

    context = build.make_context(config, (), tiny.WORDS, {})
    vl_only = dataclasses.replace(config, streams={"vl": config.streams["vl"]})
    tiny.network(vl_only).check(build.objectives(vl_only, context))


def test_a_contrastive_objective_needs_two_blind_readouts(tiny):
    apart = (
        ("readout_image", "primary", "past_or_now"),
        ("readout_text", "language", "all"),
        ("primary", "primary", "past_or_now"),
        ("language", "language", "all"),
        ("*", "*", "never"),
    )
    contrastive(tiny, apart, {"primary": ()})
    with pytest.raises(plugin.UserError, match="'language' reaches"):  # through the FiLM
        contrastive(tiny, apart, {})
    mixed = (("primary", "language", "all"), *apart)
    with pytest.raises(plugin.UserError, match="'language' reaches"):  # through the trunk
        contrastive(tiny, mixed, {"primary": ()})
    with pytest.raises(plugin.UserError, match="'primary' reaches"):
        contrastive(tiny, (("readout_text", "primary", "past_or_now"), *apart), {"primary": ()})


@pytest.mark.parametrize(
    "row, message",
    [
        (("*_actions", "*_actions", "past_or_now"), "'action_actions' of earlier steps.*'now'"),
        (("readout_action", "*_actions", "now"), "'readout_action' sees the tokens.*'never'"),
    ],
)
def test_tokens_that_are_not_there_in_sampling_stay_unseen(tiny, row, message):
    config = tiny.config(model=dict(heads=dict(action=FLOW)))
    tiny.network(config).check({"robot": {}})
    rules = (row, *config.model.rules)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, rules=rules))
    with pytest.raises(plugin.UserError, match=message):
        tiny.network(config).check({"robot": {}})


def test_dropout_of_the_trunk_is_for_training(tiny):
    from vla_jax.models import vla
    from vla_jax.train import step

    config = tiny.config(model=dict(trunk=dict(dropout=0.5)))
    network, batch, values = tiny.network(config), tiny.batches(config), tiny.values(config)
    heads = tiny.keys(config.streams["vl"].heads)
    dropped = heads | {vla.DROPOUT: tiny.keys(("trunk",))["trunk"]}

    @jax.jit
    def answers(values):
        return [
            network.apply(values, batch["vl"], "vl", keys)[0]["point"]["probs"]
            for keys in (heads, dropped)
        ]

    quiet, noisy = answers(values)
    assert np.abs(noisy - quiet).max() > 1e-3

    seen = {}

    def apply(*inputs):  # stands for the network: who is given a key for the trunk?
        seen[where] = set(inputs[3])
        raise StopIteration

    for where, made in (("train", step.make_train_step), ("eval", step.make_eval_step)):
        more = (None, config) if where == "train" else (config,)
        run = made(apply, dict(robot={}), *more)
        state = jax.eval_shape(lambda: _state(values)) if where == "train" else values
        with pytest.raises(StopIteration):
            jax.eval_shape(run, state, batch)
    assert seen["train"] - seen["eval"] == {vla.DROPOUT}


def _state(values):
    from vla_jax.train import state as states

    zero = np.zeros((), np.int32)
    return states.TrainState(step=zero, trained=values, frozen={}, opt_state={}, ema=None)
