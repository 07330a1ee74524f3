"""A small built-in config for `vla smoke --plugin FOLDER=TYPE`: one robot, one stream.

    language │ primary │ hand │ (the tokenizer) │ readout_action
    heads: plain (regression), and the head in question; objectives: action, and one for it

A plug-in gets its `DEBUG`, and for arguments without a default that `DEBUG` does not give, what
this config has under the usual names (`view`, `group`, `readout`, `action_space`, `names`, …).
Each gets an objective.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import jax

from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.models import build, synthetic
from vla_jax.train import smoke

FOLDERS = ("tokenizers", "heads", "objectives", "embodiments")
BODY = "sawyer_cards"
# What the arguments of a plug-in are usually called, and what they are here.
KNOWN = dict(
    view="primary",
    image="primary",
    image_group="primary",
    image_size=(24, 24),
    readout="action",
    image_readout="action",
    text_readout="action",
    head="plain",
    names=("red fox", "blue dog"),
    max_tokens=8,
    tokens=8,
)
SIZED = ("max_tokens", "image_size", "tokens")  # given here whatever their defaults
# The objective of a head by the names of its errors.
OBJECTIVES = {
    ("action",): "action",
    ("waypoint",): "waypoint",
    ("cross_entropy", "l1"): "pointing",
    ("cross_entropy", "wrong"): "region_text",
    ("cross_entropy",): "next_token",
}


def config(request: str) -> config_lib.TrainConfig:
    """The built-in config with the plug-in of "FOLDER=TYPE" in it.

    Raises UserError for an unknown folder or type, arguments that cannot be filled, and a head
    whose errors fit no objective.
    """
    folder, equals, type_ = request.partition("=")
    if not equals or folder not in FOLDERS:
        hint = plugin.unknown("--plugin", folder, FOLDERS)
        raise plugin.UserError(f"{hint} Expected FOLDER=TYPE, like heads=my_lab.mamba.")
    try:
        return _laid(folder, type_, window=2)
    except plugin.UserError as error:
        try:  # some organs know one step only
            return _laid(folder, type_, window=1)
        except plugin.UserError:
            raise error from None


def _laid(folder: str, type_: str, window: int) -> config_lib.TrainConfig:
    base = _base(type_ if folder == "embodiments" else BODY, window)
    if folder == "embodiments":
        return _parse(base)
    spec = _spec(folder, type_, base)
    if folder == "tokenizers":
        base["model"]["tokenizers"]["plugin"] = spec
        base["streams"]["robot"]["groups"] += ("plugin",)
    elif folder == "objectives":
        _lay_objective(base, spec)
    else:
        _lay_head(base, spec)
    return _parse(base)


def _parse(tree: Mapping) -> config_lib.TrainConfig:
    return config_lib.parse(config_lib.TrainConfig, tree)


def _base(body: str, window: int) -> dict[str, Any]:
    """The built-in config as nested tables."""
    embodiment = build.embodiments(_Named((body,)))[0]
    view, space = embodiment.views[0], embodiment.action_spaces[0]
    hand = {
        group.name: dict(type="proprio", group=group.name, size=group.size)
        for group in embodiment.proprio
    }
    return dict(
        steps=smoke.STEPS,
        embodiments=(body,),
        model=dict(
            trunk=dict(width=32, depth=2, heads=4, mlp=64),
            shared=dict(text_embedding={}, grounding=dict(dim=8)),
            tokenizers=dict(
                language=dict(type="language", mode="pieces", max_tokens=8),
                primary=dict(type="image_patch", view=view),
                **hand,
            ),
            readouts=dict(action=1),
            heads=dict(plain=dict(type="regression", readout="action", action_space=space.name)),
            rules=(
                ("readout_*", "readout_*", "past_or_now"),
                ("*_text", "*_text", "causal_position"),
                ("*_actions", "*_actions", "now"),
                ("*", "readout_*", "never"),
                ("*", "*_text", "never"),
                ("*", "*_actions", "never"),
                ("*", "language", "all"),
                ("language", "*", "never"),
                ("*", "*", "past_or_now"),
            ),
        ),
        streams=dict(
            robot=dict(
                batch_size=smoke.ROWS,
                window=window,
                action_horizon=4,
                max_tokens=8,
                groups=("language", "primary", *hand),
                readouts=("action",),
                heads=("plain",),
                objectives=dict(action=dict(type="action", head="plain", action_space=space.name)),
                image_sizes={view: (24, 24)},
            )
        ),
        optimizer=dict(lr=1e-3),
    )


class _Named:
    """What `build.embodiments` reads of a config."""

    def __init__(self, names: tuple[str, ...]):
        self.embodiments = names


def _spec(folder: str, type_: str, base: Mapping) -> dict[str, Any]:
    """The plug-in's spec: DEBUG, and known values for its arguments without a default."""
    module = plugin.module(folder, type_)
    spec = smoke.debug(folder, dict(type=type_))
    space = base["model"]["heads"]["plain"]["action_space"]
    group = base["streams"]["robot"]["groups"][-1]
    size = base["model"]["tokenizers"][group].get("size", 1)
    known = {**KNOWN, "action_space": space, "group": group, "groups": (group,), "size": size}
    for name, parameter in list(inspect.signature(module.make).parameters.items())[1:]:
        open_ended = parameter.kind is parameter.VAR_KEYWORD
        needed = parameter.default is parameter.empty or name in SIZED
        if name in spec or open_ended or not needed:
            continue
        if name not in known:
            raise plugin.UserError(
                f"{folder}.{type_}: its argument {name!r} has no default and `vla smoke` does not "
                f"know what to give ({', '.join(sorted(known))} it does); put it into DEBUG, or "
                "use --config with a config of your own."
            )
        spec[name] = known[name]
    return spec


def _lay_head(base: dict, spec: dict) -> None:
    """Adds the head, and the objective that its errors fit."""
    _add_head(base, spec)
    answer, errors = _seen(base)["plugin"]
    names = tuple(sorted(errors))
    objectives = base["streams"]["robot"]["objectives"]
    if {"image", "text", "scale", "bias"} <= set(answer):
        objectives["plugin"] = dict(type="contrastive", head="plugin")
    elif names in OBJECTIVES:
        objectives["plugin"] = dict(type=OBJECTIVES[names], head="plugin")
    else:
        raise plugin.UserError(
            f"heads.{spec['type']}: its errors {list(names)} fit no objective "
            f"({[list(known) for known in OBJECTIVES]}); use --config with its own objective."
        )


def _add_head(base: dict, spec: dict) -> None:
    """Adds the head, and the readouts that it asks for."""
    robot = base["streams"]["robot"]
    accepted = inspect.signature(plugin.module("heads", spec["type"]).make).parameters
    if "readout" in accepted and not spec.get("as_tokens"):
        spec.setdefault("readout", "action")
    if "action_space" in accepted:
        spec.setdefault("action_space", base["model"]["heads"]["plain"]["action_space"])
    if {"image_readout", "text_readout"} <= set(accepted):
        # Two readouts, each of which sees one side only.
        base["model"]["readouts"] |= dict(image=1, text=1)
        spec |= dict(image_readout="image", text_readout="text")
        robot["readouts"] += ("image", "text")
        base["model"]["rules"] = (
            ("readout_image", "primary", "past_or_now"),
            ("readout_image", "*", "never"),
            ("readout_text", "language", "all"),
            ("readout_text", "*", "never"),
            ("primary", "language", "never"),
            ("primary", "hand", "never"),
            *base["model"]["rules"],
        )
    base["model"]["heads"]["plugin"] = spec
    robot["heads"] += ("plugin",)


def _lay_objective(base: dict, spec: dict) -> None:
    """Adds the objective over the first head of the heads folder whose errors it takes."""
    refused = {}
    candidates = [(type_, {}) for type_ in plugin.names("heads")]
    for type_, more in (*candidates, ("regression", dict(target="waypoint"))):
        tree = _base(BODY, base["streams"]["robot"]["window"])
        try:
            _add_head(tree, {**_spec("heads", type_, tree), **more})
            tree["streams"]["robot"]["objectives"]["plugin"] = {**spec, "head": "plugin"}
            _seen(tree, objective=True)
        except ValueError as error:  # a UserError, or shapes that do not fit
            refused[f"{type_} {more or ''}".strip()] = str(error)
            continue
        base.update(tree)
        return
    raise plugin.UserError(
        f"objectives.{spec['type']}: takes the errors of no built-in head: {refused}; use --config."
    )


def _seen(tree: Mapping, objective: bool = False) -> dict[str, tuple]:
    """{head: (answer, errors)} as shapes; with `objective`, the one called plugin is run too."""
    small = smoke.shrink(_parse(tree), {})
    tokenizer, _ = smoke.text_tokenizer(small)
    network, objectives = smoke.parts(small, tokenizer)
    batches = synthetic.batches(small, tokenizer.vocabulary_size)

    def run(key):
        keys = dict.fromkeys(small.streams["robot"].heads, jax.random.split(key, smoke.ROWS))
        variables = network.init(key, batches)
        answers, errors = network.apply(variables, batches["robot"], "robot", keys)
        if objective:
            made, _ = objectives["robot"]["plugin"]
            made.mask(batches["robot"])
            made(answers, errors, batches["robot"])
        return answers, errors

    answers, errors = jax.eval_shape(run, jax.random.key(0))
    return {name: (answers[name], errors[name]) for name in answers}
