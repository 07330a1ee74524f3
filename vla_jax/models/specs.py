"""What a plug-in's spec says of it, by the names of its arguments; nothing is built.

Fine-tuning to another body, a policy and random batches must know what an organ reads before it is
run. The names mean the same in every plug-in, in yours as in ours, defaults included:

    tokenizer  view, views           cameras that it reads; several are stacked
               goals                 cameras of the goal pictures that it reads beside them
               image_size            (height, width) of each picture
               group, groups, size   proprio groups, and how many numbers they have together
               encoder, finetune     finetune=False: no gradient enters the encoder
    head       target                what it answers with, where it has a choice
               action_space          the action space of its answer: such a head acts
               action_horizon        C of its answer
               readout               the readout that it reads
               image, groups         token groups that it reads
               proprio, relative_to  proprio groups that it reads
               reads, detach         other heads whose answers it is given
               as_tokens             its actions are tokens of the trunk, the group NAME_actions

All other arguments of a head are its own, and a new head like it takes them over; but for those in
its file's `IMPORTED`, which weights made elsewhere need and new ones should not have.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from vla_jax import plugin, types

Spec = Mapping[str, Any]
# Arguments of a head that belong to its place in the network, not to the head.
PLACE = (
    "action_space", "action_horizon", "readout", "image", "groups", "proprio", "relative_to",
    "reads", "detach",
)  # fmt: skip


def arguments(folder: str, spec: Spec) -> dict[str, Any]:
    """The arguments of a spec, the defaults of its `make` where it gives none."""
    given = {name: value for name, value in spec.items() if name != "type"}
    return {
        name: given[name] if name in given else parameter.default
        for name, parameter in _parameters(folder, spec["type"]).items()
        if name in given or parameter.default is not parameter.empty
    } | given


def accepts(folder: str, type_: str) -> tuple[str, ...]:
    """The names of the arguments that a plug-in takes."""
    return tuple(_parameters(folder, type_))


def _parameters(folder: str, type_: str) -> dict[str, inspect.Parameter]:
    make = plugin.module(folder, type_).make
    return dict(list(inspect.signature(make).parameters.items())[1:])


# ------------------------------------------------------------------------------------ tokenizers


def views(tokenizer: Spec) -> tuple[str, ...]:
    """The cameras that a tokenizer reads."""
    return _names(arguments("tokenizers", tokenizer), "view", "views")


def readings(tokenizer: Spec) -> tuple[str, ...]:
    """The proprio groups that a tokenizer reads."""
    return _names(arguments("tokenizers", tokenizer), "group", "groups")


def embedded(tokenizers: Iterable[Spec]) -> Spec | None:
    """The tokenizer that reads the instruction as an embedding made elsewhere, if there is one."""
    found = (s for s in tokenizers if s.get("embedding_size") and s.get("encoder") is None)
    return next(found, None)


def of_view(tokenizer: Spec, view: str) -> dict[str, Any]:
    """The spec of a tokenizer like this one, of one other view."""
    known = accepts("tokenizers", tokenizer["type"])
    changes: dict[str, Any] = dict(views=(view,)) if "views" in known else dict(view=view)
    if "goals" in known and arguments("tokenizers", tokenizer)["goals"]:
        changes["goals"] = (view,)
    return {**tokenizer, **changes}


def of_reading(tokenizer: Spec, group: types.ProprioGroup) -> dict[str, Any]:
    """The spec of a tokenizer like this one, of one other proprio group."""
    known = accepts("tokenizers", tokenizer["type"])
    which = dict(groups=(group.name,)) if "groups" in known else dict(group=group.name)
    return {**tokenizer, **which, "size": group.size}


def frozen(name: str, tokenizer: Spec) -> tuple[tuple[str, bool], ...]:
    """Rows of config.freeze: parameters of the tokenizer `name` that no gradient ever reaches."""
    found = arguments("tokenizers", tokenizer)
    if found.get("encoder") and found.get("finetune") is False:
        return ((rf"params/tokenizers_{name}/encoder/.*", True),)
    return ()


# ----------------------------------------------------------------------------------------- heads


def acts(head: Spec) -> bool:
    """Whether a head answers with an action."""
    if "action_space" not in accepts("heads", head["type"]):
        return False
    return arguments("heads", head).get("target", "action") == "action"


def acting() -> tuple[str, ...]:
    """The types of heads in this repository that act, sorted."""
    return tuple(name for name in plugin.names("heads") if acts(dict(type=name)))


def like(head: Spec) -> dict[str, Any]:
    """What a new head takes over of one of the same type: all but its place in the network."""
    imported = getattr(plugin.module("heads", head["type"]), "IMPORTED", ())
    return {name: value for name, value in head.items() if name not in (*PLACE, *imported)}


def head_readings(head: Spec) -> tuple[str, ...]:
    """The proprio groups that a head reads."""
    return _names(arguments("heads", head), "relative_to", "proprio")


def token_groups(head: Spec) -> tuple[str, ...]:
    """The token groups that a head reads beside its readouts."""
    return _names(arguments("heads", head), "image", "groups")


def readouts(head: Spec) -> tuple[str, ...]:
    """The readouts that a head reads."""
    found = arguments("heads", head)
    named = _names(found, *(name for name in found if name.endswith("readout")))
    return named + tuple(
        name.removeprefix("readout_") for name in token_groups(head) if name.startswith("readout_")
    )


def readout_tokens(head: Spec, shape: tuple[int, int]) -> int | None:
    """How many tokens a head of chunks [C, A] = `shape` needs of its readout; None: any number.

    A head that needs a number says it in its file, as `heads/bins.py` does.
    """
    module = plugin.module("heads", head["type"])
    if not hasattr(module, "readout_tokens"):
        return None
    return module.readout_tokens(arguments("heads", head), shape)


def _names(found: Mapping[str, Any], *which: str) -> tuple[str, ...]:
    """The names under any of the arguments `which`, each a name, several, or None."""
    named: list[str] = []
    for argument in which:
        value = found.get(argument)
        named += [value] if isinstance(value, str) else value or ()
    return tuple(named)
