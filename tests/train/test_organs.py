"""Organs that Octo brought: stacked views, goals, repeated texts, lowdim, heads over groups."""

import dataclasses

import pytest

from vla_jax import config as config_lib
from vla_jax.embodiments import widowx
from vla_jax.types import ActionGroup, ActionSpace, Embodiment, ProprioGroup

(OXE,) = widowx.EMBODIMENT.action_spaces
OCTO = dataclasses.replace(OXE, name="octo")
JOINTS = ActionSpace(
    name="joints",
    groups=(ActionGroup(name="joints", size=14, quantity="position", representation="absolute"),),
    control_hz=20.0,
)
BODY = Embodiment(
    name="bimanual",
    joints=(),
    joint_limits=(),
    control_hz=20.0,
    views=("primary", "left_wrist"),
    proprio=(ProprioGroup(name="joints", size=14, unit="rad", meaning="joint angles"),),
    action_spaces=(JOINTS,),
)
STEM = dict(type="small_stem", patch=8, widths=(8, 8), features=16, groups=4)
READ = dict(type="action", head="action", action_space="octo", weight=7.0)


def image(*views, size=(16, 16), **more) -> dict:
    made = dict(type="encoded_image", encoder=STEM, views=views, image_size=size)
    return made | more


def config(head: dict, readouts: dict, tokenizers: dict | None = None) -> config_lib.TrainConfig:
    """What `vla import octo` makes, small: language, primary, wrist, the language again."""
    t5 = dict(type="t5", vocabulary_size=600, width=8, depth=1, heads=2, head_dim=4, mlp=8)
    words = dict(type="encoded_language", encoder=t5, max_tokens=4, attend_padding=True)
    made = tokenizers or dict(
        language=words,
        primary=image("primary", goals=("primary",), size=(32, 32)),
        wrist=image("wrist", goals=("wrist",)),
        repeat_language=dict(type="repeat", repeats="language", tokens=4, masked=False),
    )
    sizes = {view: spec["image_size"] for spec in made.values() for view in spec.get("views", ())}
    tree = dict(
        steps=1,
        model=dict(
            trunk=dict(width=16, depth=1, heads=2, mlp=16),
            tokenizers=made,
            readouts=readouts,
            heads=dict(action=dict(head, action_space="octo", action_horizon=2)),
            rules=(
                *((f"readout_{name}",) * 2 + ("past_or_now",) for name in readouts),
                ("*", "readout_*", "never"),
                ("language", "language", "all"),
                ("language", "*", "never"),
                ("*", "language", "all"),
                ("*", "*", "past_or_now"),
            ),
            max_window=10,
            legacy=dict(unseeing="mean", readouts=True, oldest=True),
        ),
        streams=dict(
            robot=dict(
                batch_size=1,
                groups=tuple(made),
                window=2,
                action_horizon=2,
                readouts=tuple(readouts),
                heads=("action",),
                objectives=dict(action=READ),
                resize="tensorflow",
                max_tokens=4,
                image_sizes=sizes,
            )
        ),
        normalizer=dict(modes=(("*", "zscore"),)),
    )
    return config_lib.parse(config_lib.TrainConfig, tree)


DIFFUSION = dict(type="diffusion", readout="action", pool="mean", hidden=8, masked="given")


@pytest.fixture(scope="module")
def derive():
    from vla_jax.train import checkpoint, finetune

    def run(before, body=BODY, **changes):
        assets = checkpoint.Assets(action_spaces=(OCTO,))
        meta = checkpoint.Meta(step=1, n={}, config=before, assets=assets, provenance={})
        given = (
            dict(checkpoint="c", data="d", source="rlds", embodiment=body.name, stats="recompute")
            | changes
        )
        return finetune.derive(meta, body, finetune.Request(**given))

    return run


def test_another_space_and_other_cameras(derive):
    before = config(DIFFUSION, dict(action=1))
    after = derive(before)
    stream, made, old = after.streams["robot"], after.model.tokenizers, before.model.tokenizers
    assert stream.groups == (
        "language",
        "primary",
        "left_wrist",
        "repeat_language",
        "proprio_joints",
    )
    assert all(made[name] == old[name] for name in ("language", "primary", "repeat_language"))
    # A further wrist is like the wrist, in views, goals and size.
    assert made["left_wrist"] == image("left_wrist", goals=("left_wrist",))
    assert stream.image_sizes == dict(primary=(32, 32), left_wrist=(16, 16))
    assert made["proprio_joints"] == dict(type="proprio", group="joints", size=14)
    # The head is new and like the old one, without what Octo's weights needed; its readout stays.
    assert after.model.heads == dict(
        action_joints=dict(
            type="diffusion",
            readout="action",
            pool="mean",
            hidden=8,
            action_space="joints",
            proprio=("joints",),
        )
    )
    assert after.model.readouts == dict(action=1)
    new = ("tokenizers_left_wrist", "positions_left_wrist")
    new += ("tokenizers_proprio_joints", "positions_proprio_joints", "heads_action_joints")
    assert after.init_from.fresh == tuple(f"params/{name}/.*" for name in new)
    assert (stream.resize, stream.window, stream.action_horizon) == ("tensorflow", 2, 2)
    assert after.model.legacy == before.model.legacy and after.model.rules == before.model.rules
    assert after.freeze == (("params/tokenizers_language/encoder/.*", True),)
    # A fresh head is given numbers in [-1, 1].
    assert after.normalizer.modes == config_lib.NormalizerConfig().modes


def test_a_space_of_another_name_is_the_same(derive):
    after = derive(config(DIFFUSION, dict(action=1)), widowx.EMBODIMENT, views=("primary", "wrist"))
    head = after.model.heads["action"]
    assert head == dict(DIFFUSION, action_space="ee_delta_gripper", action_horizon=2)
    read = after.streams["robot"].objectives["action"]
    assert read == dict(READ, action_space="ee_delta_gripper")
    assert after.normalizer.modes == (("*", "zscore"),)  # as it was trained
    assert {path.split("/")[1] for path in after.init_from.fresh} == {
        "tokenizers_proprio_ee",
        "positions_proprio_ee",
    }
    slower = dataclasses.replace(OXE, control_hz=2.0)
    body = dataclasses.replace(widowx.EMBODIMENT, action_spaces=(slower,))
    assert "action" not in derive(config(DIFFUSION, dict(action=1)), body).model.heads


def test_stacked_views_stay_together_or_go(derive):
    tokenizers = dict(
        image=image("primary", "wrist", goals=("primary", "wrist")),
        small=image("primary"),
        proprio=dict(type="lowdim", groups=("ee",), size=7),
    )
    head = dict(type="regression", groups=("image", "small", "proprio"), pool="map", hidden=())
    before = config(head, {}, tokenizers)
    body = dataclasses.replace(widowx.EMBODIMENT, views=("primary", "wrist", "secondary"))
    after = derive(before, body)
    assert after.streams["robot"].groups == ("image", "small", "secondary", "proprio")
    assert after.model.tokenizers["secondary"] == image("secondary")
    # The head means the same, over the groups that there are.
    groups = ("image", "small", "secondary", "proprio")
    assert after.model.heads["action"]["groups"] == groups and after.streams["robot"].heads
    after = derive(before, body, views=("primary",))
    assert after.streams["robot"].groups == ("small", "proprio")
    assert after.model.heads["action"]["groups"] == ("small", "proprio")
    after = derive(before)
    assert after.streams["robot"].groups == ("small", "left_wrist", "proprio_joints")
    assert after.model.tokenizers["left_wrist"] == image("left_wrist", goals=("left_wrist",))
    joints = after.model.tokenizers["proprio_joints"]
    assert joints == dict(type="lowdim", groups=("joints",), size=14)
    head = after.model.heads["action_joints"]
    assert head["groups"] == after.streams["robot"].groups and "readout" not in head
    assert after.model.readouts == {}


@pytest.mark.parametrize(
    "tokens_per, pool, readouts",
    [
        ("dimension", None, dict(action_joints=28)),
        ("step", None, dict(action=2)),  # as many as before
        ("dimension", "map", dict(action=2)),
    ],
)
def test_bins_say_how_many_tokens_they_need(derive, tokens_per, pool, readouts):
    head = dict(type="bins", readout="action", tokens_per=tokens_per, low=0.0, high=1.0)
    head |= dict(pool=pool) if pool else {}
    after = derive(config(head, dict(action=14 if tokens_per == "dimension" and not pool else 2)))
    assert after.model.readouts == readouts
    made = after.model.heads["action_joints"]
    assert made["readout"] in readouts and "proprio" not in made
    assert "low" not in made and "high" not in made  # bins of our numbers, not of Octo's
    fresh = "params/positions_readout_action_joints/.*" in after.init_from.fresh
    assert fresh == ("action_joints" in readouts)


def test_any_head_that_acts_may_be_asked_for(derive):
    before = config(DIFFUSION, dict(action=1))
    for kind in ("regression", "flow", "bins", "vla_jax.heads.flow"):
        made = derive(before, action_head=kind).model.heads["action_joints"]
        assert made["type"] == kind and made["readout"] == "action" and "hidden" not in made
