"""The config of a fine-tuning is a function of the checkpoint's: what is kept, dropped, new."""

import dataclasses
import pathlib

import numpy as np
import pytest

from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.codecs import normalizer as normalizer_lib
from vla_jax.data import statistics, statistics_file
from vla_jax.embodiments import sawyer_cards, sawyer_cards_xyz, widowx

CARDS, XYZ, WIDOWX = (module.EMBODIMENT for module in (sawyer_cards, sawyer_cards_xyz, widowx))


@pytest.fixture(scope="module")
def finetune():
    from vla_jax.train import finetune

    return finetune


@pytest.fixture(scope="module")
def tiny():
    from tests.models import tiny

    return tiny


def request(finetune, **changes):
    given = dict(
        checkpoint="c", data="d", source="rlds", embodiment="sawyer_cards", stats="recompute"
    )
    return finetune.Request(**(given | changes))


def normalizer(**fields) -> str:
    """The JSON of statistics of one dataset, `cards`: field -> size."""
    entries = {}
    for field, size in fields.items():
        numbers = normalizer_lib.Statistics(9, *((value,) * size for value in (0, 1, -1, 1, -1, 1)))
        entries[field.replace("_", "/")] = normalizer_lib.Entry("zscore", numbers, (True,) * size)
    return normalizer_lib.Normalizer({"cards": entries}).to_json()


def meta(config, bodies=(CARDS,), stats=None):
    """What a checkpoint of `config` says of itself."""
    from vla_jax.train import checkpoint

    spaces = tuple(space for body in bodies for space in body.action_spaces)
    assets = checkpoint.Assets(normalizer=stats, action_spaces=spaces)
    return checkpoint.Meta(step=1, n={}, config=config, assets=assets, provenance={})


def test_the_same_body_keeps_everything(finetune, tiny):
    before = tiny.config()
    config = finetune.derive(meta(before), CARDS, request(finetune))
    assert config.init_from.fresh == () and config.init_from.checkpoint.endswith("/c")
    assert config.model == before.model
    assert list(config.streams) == ["robot"]
    was, now = before.streams["robot"], config.streams["robot"]
    assert (now.groups, now.readouts, now.image_sizes) == (
        was.groups,
        was.readouts,
        was.image_sizes,
    )
    assert now.heads == ("action", "point") and now.objectives == was.objectives
    assert (now.window, now.action_horizon) == (2, 3)
    assert config.text_tokenizer is None and config.freeze == ()


def test_a_new_view_and_space_get_organs_of_their_own(finetune, tiny):
    before = tiny.config()
    config = finetune.derive(meta(before), XYZ, request(finetune, embodiment="sawyer_cards_xyz"))
    stream = config.streams["robot"]
    assert stream.groups == ("language", "primary", "secondary", "proprio")
    assert stream.heads == ("action_sawyer_xyz",) and stream.readouts == ("action",)
    assert stream.image_sizes == dict(primary=(16, 16), secondary=(16, 16))
    made, like = config.model.tokenizers["secondary"], before.model.tokenizers["primary"]
    assert made == like | {"view": "secondary"}
    head = config.model.heads["action_sawyer_xyz"]
    assert head == dict(
        type="regression",
        action_space="sawyer_xyz",
        readout="action",
        proprio=("hand",),
        hidden=(8,),
    )
    assert config.init_from.fresh == (
        "params/tokenizers_secondary/.*",
        "params/positions_secondary/.*",
        "params/heads_action_sawyer_xyz/.*",
    )
    assert config.model.rules == before.model.rules  # the patterns speak of the new view too


def test_a_head_of_another_type_needs_a_readout_of_its_own(finetune, tiny):
    heads = dict(action=dict(type="flow", as_tokens=True, action_space="sawyer_xyz_gripper"))
    streams = dict(robot=dict(readouts=("point",)))
    before = tiny.config(model=dict(heads=heads), streams=streams)
    config = finetune.derive(meta(before), XYZ, request(finetune, action_head="regression"))
    assert config.streams["robot"].readouts == ("action_sawyer_xyz",)
    assert "params/positions_readout_action_sawyer_xyz/.*" in config.init_from.fresh
    tokens = finetune.derive(meta(before), XYZ, request(finetune))
    assert tokens.streams["robot"].readouts == ()
    assert tokens.model.heads["action_sawyer_xyz"]["as_tokens"]


@pytest.mark.parametrize("size, kept", [(3, True), (4, False)])
def test_a_head_of_readings_of_another_size_begins_anew(finetune, tiny, size, kept):
    before = tiny.config()
    heads = {**before.model.heads, "action": {**before.model.heads["action"], "proprio": ("hand",)}}
    before = dataclasses.replace(before, model=dataclasses.replace(before.model, heads=heads))
    hand = dataclasses.replace(CARDS.proprio[0], size=size)
    config = finetune.derive(
        meta(before), dataclasses.replace(CARDS, proprio=(hand,)), request(finetune)
    )
    assert ("action" in config.streams["robot"].heads) == kept
    assert (config.init_from.fresh == ()) == kept


def test_a_pretrained_checkpoint_lends_its_web_stream(finetune, tiny):
    both = tiny.config()
    before = dataclasses.replace(both, streams={"vl": both.streams["vl"]})
    asked = request(finetune, action_horizon=5, action_head="flow", window=3)
    config = finetune.derive(meta(before), CARDS, asked)
    stream = config.streams["robot"]
    assert stream.groups == ("language", "primary", "proprio")
    assert (stream.window, stream.action_horizon, stream.max_tokens) == (3, 5, 12)
    # `proprio` stands in the checkpoint's config, but no stream of it ever had one.
    assert "params/tokenizers_proprio/.*" in config.init_from.fresh
    assert stream.heads == ("action_sawyer_xyz_gripper",)
    assert config.model.heads["action_sawyer_xyz_gripper"]["type"] == "flow"


def test_another_body_drops_what_it_lacks(finetune, tiny):
    asked = request(finetune, embodiment="widowx", views=("wrist",))
    config = finetune.derive(meta(tiny.config()), WIDOWX, asked)
    assert config.streams["robot"].groups == ("language", "wrist", "proprio_ee")
    assert config.model.tokenizers["proprio_ee"] == dict(
        type="proprio", group="ee", size=7, hidden=(8,)
    )
    assert set(config.model.tokenizers) == {"language", "wrist", "proprio_ee"}


def test_a_changed_horizon_or_type_begins_the_head_anew(finetune, tiny):
    for changes in (dict(action_horizon=4), dict(action_head="flow")):
        config = finetune.derive(meta(tiny.config()), CARDS, request(finetune, **changes))
        assert config.streams["robot"].heads == ("action_sawyer_xyz_gripper",)


def test_heads_that_are_read_bring_their_targets(finetune, tiny):
    source = dict(type="rlds", path="p", waypoint_group="hand", point_view="primary")
    member = dict(demos=dict(source=source, weight=1.0))
    before = tiny.config(streams=dict(robot=dict(mixture=member)))
    config = finetune.derive(meta(before), CARDS, request(finetune))
    found = config.streams["robot"].mixture["demos"]["source"]
    assert (found["waypoint_group"], found["point_view"]) == ("hand", "primary")
    config = finetune.derive(meta(before), XYZ, request(finetune))  # a head that reads nothing
    assert "point_view" not in config.streams["robot"].mixture["demos"]["source"]


def test_data_settings_reach_the_source(finetune, tiny):
    asked = request(finetune, standardizer="oxe:bridge", episodes=3, holdout=0.0)
    config = finetune.derive(meta(tiny.config()), CARDS, asked)
    source = config.streams["robot"].mixture["demos"]["source"]
    assert source["standardizer"] == dict(type="oxe", row="bridge")
    assert source["episodes"] == 3 and pathlib.Path(source["path"]).is_absolute()
    assert config.streams["robot"].validation == {} and config.validation.every is None
    # What comes out is a config like any other.
    assert config_lib.from_json(config_lib.to_json(config)) == config


def test_statistics_of_the_checkpoint_must_fit(finetune, tiny):
    asked = request(finetune, stats="checkpoint")
    stored = meta(tiny.config(), stats=normalizer(action=4, proprio_hand=3))
    config = finetune.derive(stored, CARDS, asked)
    assert config.normalizer.stats == "checkpoint"
    assert config.streams["robot"].mixture["demos"]["source"]["dataset_key"] == "cards"
    with pytest.raises(plugin.UserError, match="use 'recompute'"):
        finetune.derive(stored, XYZ, asked)
    with pytest.raises(plugin.UserError, match="did you mean 'cards'"):
        finetune.derive(stored, CARDS, dataclasses.replace(asked, dataset_key="card"))
    with pytest.raises(plugin.UserError, match="--dataset-key"):
        finetune.derive(meta(tiny.config()), CARDS, asked)


def test_statistics_of_a_file(finetune, tiny, tmp_path):
    path = str(tmp_path / "stats.json")
    numbers = normalizer_lib.Statistics(9, *(((0.0,),) * 6))
    column = {"a": statistics.Column.whole(np.zeros((9, 1)))}
    keys = {key: {"fingerprint": column} for key in ("cards", "other")}
    one = {"cards": keys["cards"]}
    statistics_file.write(path, one, {"cards": {"a": numbers}})
    stored = meta(tiny.config())
    config = finetune.derive(stored, CARDS, request(finetune, stats=path))
    assert config.normalizer.stats == path
    source = config.streams["robot"].mixture["demos"]["source"]
    assert source["dataset_key"] == "cards", "the only one that the file has"
    with pytest.raises(plugin.UserError, match="did you mean 'cards'"):
        finetune.derive(stored, CARDS, request(finetune, stats=path, dataset_key="card"))
    statistics_file.write(path, keys, dict.fromkeys(keys, {"a": numbers}))
    config = finetune.derive(stored, CARDS, request(finetune, stats=path))
    assert config.streams["robot"].mixture["demos"]["source"]["dataset_key"] is None
    text = pathlib.Path(path).read_text()
    pathlib.Path(path).write_text(text.replace('"count": 9', '"count": 8'))
    with pytest.raises(plugin.UserError, match="edited or damaged"):
        finetune.derive(stored, CARDS, request(finetune, stats=path))


def test_choices_are_never_guessed(finetune, tiny):
    stored = meta(tiny.config())
    two = dataclasses.replace(CARDS, action_spaces=CARDS.action_spaces + XYZ.action_spaces)
    cases = (
        (CARDS, dict(stats="both"), "stats: unknown 'both'"),
        (CARDS, dict(mode="heads_only"), "did you mean 'head_only'"),
        (CARDS, dict(action_head="flw"), "did you mean 'flow'"),
        (CARDS, dict(views=("secondary",)), "unknown 'secondary'"),
        (two, {}, "action space of sawyer_cards: unknown 'None'"),
    )
    for body, changes, message in cases:
        with pytest.raises(plugin.UserError, match=message):
            finetune.derive(stored, body, request(finetune, **changes))
    chosen = finetune.derive(stored, two, request(finetune, action_space="sawyer_xyz"))
    assert chosen.streams["robot"].heads == ("action_sawyer_xyz",)
    # Whichever the data were recorded in.
    source = chosen.streams["robot"].mixture["demos"]["source"]
    assert source["convert"] == "sawyer_xyz"


def test_a_space_of_the_same_name_must_be_the_same(finetune, tiny):
    space = dataclasses.replace(CARDS.action_spaces[0], control_hz=5.0)
    body = dataclasses.replace(CARDS, action_spaces=(space,))
    with pytest.raises(plugin.UserError, match="rename it"):
        finetune.derive(meta(tiny.config()), body, request(finetune))


def test_rules_of_new_groups_follow_their_models():
    from vla_jax.nn import visibility
    from vla_jax.train import organs

    rules = (("primary", "primary", "now"), ("language", "*", "never"), ("*", "*", "past_or_now"))
    made = organs.extended(rules, ["language", "primary", "wrist"], {"wrist": "primary"})
    for query, key, wanted in (
        ("wrist", "wrist", "now"),
        ("wrist", "primary", "now"),
        ("primary", "wrist", "now"),
        ("language", "wrist", "never"),
        ("wrist", "language", "past_or_now"),
    ):
        assert visibility.rule(made, query, key) == wanted
    assert made[-3:] == rules and len(made) == 6
    # What no rule decides: nothing reads a readout, but its own group.
    made = organs.extended((), ["a", "readout_b"], {"a": "a", "readout_b": "readout_b"})
    assert visibility.rule(made, "a", "readout_b") == "never"
    assert visibility.rule(made, "readout_b", "a") == "past_or_now"
    assert visibility.rule(made, "readout_b", "readout_b") == "past_or_now"


def loaded(tiny, config):
    from vla_jax.train import checkpoint

    assets = checkpoint.Assets(text_tokenizer=tiny.WORDS.bytes, action_spaces=CARDS.action_spaces)
    found = dataclasses.replace(meta(config), assets=assets)
    return checkpoint.Loaded(variables=tiny.values(config), meta=found, folder=pathlib.Path("c"))


def test_every_parameter_is_accounted_for(finetune, tiny):
    before = loaded(tiny, tiny.config())
    config = finetune.derive(before.meta, XYZ, request(finetune, embodiment="sawyer_cards_xyz"))
    done = finetune.complete(config, before, "full")
    assert done.config.freeze == ()
    organs = {path.split("/")[1] for path in done.report.missing}
    assert organs == {
        "tokenizers_secondary",
        "positions_secondary",
        "heads_action_sawyer_xyz",
    }
    assert {path.split("/")[1] for path in done.report.unused} == {
        "heads_action",
        "heads_point",
        "positions_readout_point",
    }
    # head_only: what was loaded stands still.
    frozen = finetune.complete(config, before, "head_only").config.freeze
    trained = (*done.config.init_from.fresh, "params/positions_readout_action/.*")
    assert frozen == (*((row, False) for row in trained), (".*", True))


def test_head_only_of_the_same_robot_trains_its_head(finetune, tiny):
    before = loaded(tiny, tiny.config())
    config = finetune.derive(before.meta, CARDS, request(finetune))
    done = finetune.complete(config, before, "head_only")
    assert not done.report.missing
    trained = [row for row, frozen in done.config.freeze if not frozen]
    assert trained == ["params/heads_action/.*", "params/positions_readout_action/.*"]


def test_another_window_begins_position_tables_anew_and_nothing_else(finetune, tiny):
    before = loaded(tiny, tiny.config())
    config = finetune.derive(before.meta, CARDS, request(finetune, window=3))
    report = finetune.complete(config, before, "full").report
    assert set(report.missing) == {
        f"params/positions_{name}/table"
        for name in ("primary", "proprio", "readout_action", "readout_point")
    }


def test_another_shape_of_an_old_organ_is_refused(finetune, tiny):
    before = loaded(tiny, tiny.config())
    config = finetune.derive(before.meta, CARDS, request(finetune))
    wider = dict(config.model.trunk, mlp=24)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, trunk=wider))
    with pytest.raises(plugin.UserError, match="params/trunk/.*checkpoint has shape"):
        finetune.complete(config, before, "full")


def test_find_body_refuses_what_is_no_embodiment(finetune, tmp_path):
    path = tmp_path / "robot.py"
    path.write_text("EMBODIMENT = 3\n")
    with pytest.raises(plugin.UserError, match="EMBODIMENT is a int"):
        finetune.find_body(str(path))
    assert finetune.find_body("widowx") == ("widowx", WIDOWX)
    assert np.all([finetune.find_body("sawyer_cards_xyz")[1] == XYZ])
