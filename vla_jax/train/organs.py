"""Which organs a fine-tuned network keeps of its checkpoint, which it drops, which are new.

A new organ is modelled on one that is there: a view's tokenizer on the primary view's, a proprio
group's on another's, an action head on one of the same type; visibility rules follow. What an
organ reads, and what a new one takes over, its spec says: models/specs.py. Nothing here touches
parameters; `finetune.py` does.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from vla_jax import config as config_lib
from vla_jax import plugin, types
from vla_jax.data import members
from vla_jax.models import specs as facts
from vla_jax.nn import visibility


def pattern(folder: str, name: str) -> str:
    """The regex of an organ's parameter paths, as models/vla.py names its modules."""
    return f"params/{folder}_{re.escape(name)}/.*"


def alike(one: types.ActionSpace | None, other: types.ActionSpace) -> bool:
    """Whether two action spaces mean the same, whatever they are called."""
    return one is not None and dataclasses.replace(one, name=other.name) == other


class Organs:
    """The organs chosen so far; `fresh` holds the regexes of parameters that begin anew.

    Views and proprio groups are added before the action head, which may read their tokens.

    Args:
      before: the checkpoint's config.
      spaces: the checkpoint's action spaces.
      stream: name of the stream to begin from; the first one where the checkpoint lacks it.
    """

    def __init__(
        self,
        before: config_lib.TrainConfig,
        spaces: Sequence[types.ActionSpace],
        stream: str = "robot",
    ):
        self.before, self.spaces = before, {space.name: space for space in spaces}
        self.template = before.streams.get(stream) or next(iter(before.streams.values()))
        self.action_horizon = max(s.action_horizon for s in before.streams.values())
        self.used_groups = {name for s in before.streams.values() for name in s.groups}
        specs = before.model.tokenizers
        self.of_views = {n: facts.views(specs[n]) for n in self._names() if facts.views(specs[n])}
        self.of_body = {
            n: facts.readings(specs[n]) for n in self._names() if facts.readings(specs[n])
        }
        of_task = [n for n in self.template.groups if n not in {*self.of_views, *self.of_body}]
        self.tokenizers = {name: specs[name] for name in of_task}
        conditioning = self.template.conditioning
        self.conditioning = {n: conditioning[n] for n in of_task if n in conditioning}
        self.image_sizes: dict[str, tuple[int, int]] = {}
        self.readouts: dict[str, int] = {}
        self.heads: dict[str, dict] = {}
        self.objectives: dict[str, dict] = {}
        self.targets: dict[str, str] = {}  # the data's waypoint_group and point_view
        self.like: dict[str, str] = {}  # new token group -> the one whose rules it follows
        self.fresh: list[str] = []
        self.kept_action = False

    # ----------------------------------------------------------------------------- tokenizers

    def add_views(self, views: Sequence[str]) -> None:
        """The checkpoint's tokenizers of these views, and a fresh one for each view that is left.

        A tokenizer of several views stays where all of them are there. A fresh one is like that of
        the primary view, a further wrist's like that of a wrist.
        """
        if views and not self.of_views:
            raise plugin.UserError("finetune: the checkpoint has no tokenizer of images to copy")
        left = self._keep(self.of_views, views, lambda name: True)
        for view in left:
            model = self._model_of_view(view)
            name = _free(view, self.before.model.tokenizers)
            self._new_group(name, facts.of_view(self.before.model.tokenizers[model], view), model)
        for name, spec in self.tokenizers.items():
            for view in facts.views(spec):
                self.image_sizes[view] = self._image_size(view, name)
                known = name in self.template.groups
                model = name if known else self.like.get(name) or self._model_of_view(view)
                if model in self.template.conditioning:
                    self.conditioning[name] = self.template.conditioning[model]

    def add_proprio(self, groups: Iterable[types.ProprioGroup]) -> None:
        """A tokenizer per group: the checkpoint's for the same name and size, or a fresh one."""
        groups = {group.name: group for group in groups}
        specs = self.before.model.tokenizers

        def fits(name: str) -> bool:
            size = sum(groups[group].size for group in self.of_body[name])
            return facts.arguments("tokenizers", specs[name]).get("size") == size

        model = next(iter(self.of_body), None)
        for group in self._keep(self.of_body, groups, fits):
            spec = specs[model] if model else dict(type="proprio")
            like = model or next(iter(self.of_views), None)
            name = _free(f"proprio_{group}", specs)
            self._new_group(name, facts.of_reading(spec, groups[group]), like)

    def order(self) -> tuple[str, ...]:
        """The groups in the template's order; a new one stands after the last of its kind."""

        def kind(name: str) -> tuple[bool, bool]:
            spec = self.tokenizers[name]
            return bool(facts.views(spec)), bool(facts.readings(spec))

        found = [name for name in self.template.groups if name in self.tokenizers]
        for name in self.tokenizers:
            if name not in found:
                alike = [i for i, other in enumerate(found) if kind(other) == kind(name)]
                found.insert(alike[-1] + 1 if alike else len(found), name)
        return tuple(found)

    def _names(self) -> tuple[str, ...]:
        """The checkpoint's tokenizers: the template's, those of other streams, unused ones."""
        names = (*self.template.groups, *sorted(self.used_groups), *self.before.model.tokenizers)
        return tuple(dict.fromkeys(names))

    def _keep(self, known: Mapping[str, Sequence[str]], offered: Iterable[str], fits) -> list[str]:
        """Keeps the tokenizers `known` whose inputs are `offered` and that fit; what is left over.

        One that is not the template's is kept for inputs that no other reads.
        """
        left = list(offered)
        every = set(left)
        for name, inputs in known.items():
            needed = name in self.template.groups or set(inputs) <= set(left)
            if set(inputs) <= every and needed and fits(name):
                self.tokenizers[name] = self.before.model.tokenizers[name]
                left = [item for item in left if item not in inputs]
                if name not in self.used_groups:  # in the config, but no stream trained it
                    self._fresh_group(name)
        return left

    def _new_group(self, name: str, spec: dict, like: str | None) -> None:
        self.tokenizers[name] = spec
        self.like[name] = like or name
        self._fresh_group(name)

    def _fresh_group(self, name: str) -> None:
        self.fresh += [pattern("tokenizers", name), pattern("positions", name)]

    def _model_of_view(self, view: str) -> str:
        """The checkpoint's tokenizer that one of a new view is modelled on; one of a view alone."""
        for wanted in (view.split("_")[-1], "primary"):  # left_wrist: wrist
            for alone in (True, False):
                for name, views in self.of_views.items():
                    if wanted in views and (len(views) == 1 or not alone):
                        return name
        return next(iter(self.of_views))

    def _image_size(self, view: str, name: str) -> tuple[int, int]:
        """(height, width) of the view of tokenizer `name`, else of the one it is modelled on."""
        spec = facts.arguments("tokenizers", self.tokenizers[name])
        if "image_size" in spec:
            return tuple(spec["image_size"])
        for candidate in (view, *self.of_views.get(self.like.get(name, name), ())):
            for stream in (self.template, *self.before.streams.values()):
                if candidate in stream.image_sizes:
                    return stream.image_sizes[candidate]
        raise plugin.UserError(f"finetune: no stream of the checkpoint shows what {name!r} reads")

    # -------------------------------------------------------------------------------- the head

    def add_action(
        self,
        space: types.ActionSpace,
        groups: Sequence[types.ProprioGroup],
        head_type: str | None = None,
        action_horizon: int | None = None,
    ) -> None:
        """The action head: the checkpoint's if it means the same on this body, or a fresh one.

        `groups` are the body's proprio groups; a fresh head is given their readings. `head_type`
        (a plug-in of heads/ that acts) and `action_horizon` C default to the checkpoint's.
        """
        specs = self.before.model.heads
        used = {name for s in self.before.streams.values() for name in s.heads}
        ordered = dict.fromkeys((*self.template.heads, *sorted(used)))
        acting = [name for name in ordered if facts.acts(specs[name])]
        for name in acting:
            same_type = head_type in (None, specs[name]["type"])
            if same_type and self._means_the_same(name, space, groups, action_horizon):
                self._keep_action(name, space)
                return
        model = next((n for n in acting if head_type in (None, specs[n]["type"])), None)
        type_ = head_type or (specs[model]["type"] if model else "regression")
        spec = facts.like(specs[model]) if model else {}
        spec |= dict(type=type_, action_space=space.name)
        name = _free(f"action_{space.name}", {**specs, **self.before.model.readouts})
        self.heads[name] = spec
        horizon = action_horizon or self.template.action_horizon
        self._let_read(name, model or next(iter(acting), None), (horizon, space.size), groups)
        self.fresh.append(pattern("heads", name))
        self.objectives["action"] = dict(type="action", head=name, action_space=space.name)

    def _let_read(self, name: str, model: str | None, shape, groups) -> None:
        """Gives the fresh head `name` what the head `model` reads of the trunk, and readings.

        A readout that the checkpoint trained is kept, where the new head can do with its tokens.
        """
        spec, heads = self.heads[name], self.before.model.heads
        if spec.get("as_tokens"):
            self.like[f"{name}_actions"] = f"{model}_actions"
            return
        accepted = facts.accepts("heads", spec["type"])
        if "proprio" in accepted:
            spec["proprio"] = tuple(group.name for group in groups)
        read = heads[model].get("groups") if model else None
        read = self._still(read) if read and "groups" in accepted else ()
        wanted = facts.readout_tokens(spec, shape)
        readouts = self.before.model.readouts
        if read and wanted is None:
            spec["groups"] = read
            self.readouts |= {readout: readouts[readout] for readout in facts.readouts(spec)}
            return
        old = heads[model].get("readout") if model else None
        if old in self.template.readouts and wanted in (None, readouts[old]):
            spec["readout"], self.readouts[old] = old, readouts[old]
            return
        like = old or next(iter(readouts), None)
        self.readouts[name] = wanted or (readouts[like] if like else 1)
        self.like[f"readout_{name}"] = f"readout_{like or name}"
        self.fresh.append(pattern("positions", f"readout_{name}"))
        spec["readout"] = name

    def _still(self, groups: Iterable[str]) -> tuple[str, ...]:
        """Those of the token `groups` that are there, and new ones modelled on one of them."""
        groups = set(groups)
        found = [n for n in self.order() if n in groups or self.like.get(n) in groups]
        return tuple(found + sorted(n for n in groups if n.startswith("readout_")))

    def _means_the_same(self, name: str, space, groups, action_horizon) -> bool:
        specs = self.before.model.heads
        if name not in self.template.heads:
            return False
        only = next(iter(self.spaces)) if len(self.spaces) == 1 else None
        if not alike(self.spaces.get(specs[name].get("action_space") or only), space):
            return False
        own = specs[name].get("action_horizon")
        wanted = action_horizon or own or self.template.action_horizon
        if (own or self.action_horizon) != wanted:
            return False
        return all(self._can_read(specs[head], groups) for head in self._chain(name))

    def _can_read(self, head: Mapping, groups: Sequence[types.ProprioGroup]) -> bool:
        """Whether all that a head of the checkpoint reads is there and of its old size."""
        tokenizers = self.before.model.tokenizers
        sizes = {
            read[0]: facts.arguments("tokenizers", tokenizers[name]).get("size")
            for name, read in self.of_body.items()
            if len(read) == 1
        }
        fits = {group.name for group in groups if sizes.get(group.name, group.size) == group.size}
        if not set(facts.head_readings(head)) <= fits:
            return False
        if head.get("groups"):
            return bool(self._still(head["groups"]))
        return all(name in self.tokenizers for name in facts.token_groups(head))

    def _chain(self, name: str) -> list[str]:
        """The heads that `name` reads, directly or not, and `name`, in the template's order."""
        specs, needed, frontier = self.before.model.heads, {name}, [name]
        while frontier:
            new = set(specs[frontier.pop()].get("reads", ())) - needed
            needed |= new
            frontier += sorted(new)
        return [head for head in self.template.heads if head in needed]

    def _keep_action(self, name: str, space: types.ActionSpace) -> None:
        self.kept_action = True
        self.heads = {head: dict(self.before.model.heads[head]) for head in self._chain(name)}
        read = {readout for spec in self.heads.values() for readout in facts.readouts(spec)}
        kept = [readout for readout in self.template.readouts if readout in read]
        self.readouts = {readout: self.before.model.readouts[readout] for readout in kept}
        self.heads[name]["action_space"] = space.name
        for spec in self.heads.values():
            if spec.get("groups"):
                spec["groups"] = self._still(spec["groups"])
        for objective, spec in self.template.objectives.items():
            if spec.get("head") in self.heads:
                named = dict(action_space=space.name) if spec.get("action_space") else {}
                self.objectives[objective] = {**spec, **named}
        if len(self.heads) > 1:  # what the other heads are trained on
            mixture = self.template.mixture
            for member in members.expand("mixture", mixture).values() if mixture else ():
                for field in ("waypoint_group", "point_view"):
                    if member.source.get(field):
                        self.targets.setdefault(field, member.source[field])

    # ---------------------------------------------------------------------------- what comes out

    def model(self) -> config_lib.ModelConfig:
        """The checkpoint's trunk with the organs chosen."""
        names = [*self.order(), *(f"readout_{name}" for name in self.readouts)]
        names += [name for name in self.like if name not in names]
        return dataclasses.replace(
            self.before.model,
            tokenizers=self.tokenizers,
            readouts=self.readouts,
            heads=self.heads,
            rules=extended(self.before.model.rules, names, self.like),
        )

    def stream(self, **changes) -> config_lib.StreamConfig:
        """The stream of the organs chosen; `changes` are its other fields, None = as before."""
        given = {name: value for name, value in changes.items() if value is not None}
        return config_lib.StreamConfig(
            groups=self.order(),
            conditioning=self.conditioning,
            readouts=tuple(self.readouts),
            heads=tuple(self.heads),
            objectives=self.objectives,
            max_tokens=self.template.max_tokens,
            image_sizes=self.image_sizes,
            resize=self.template.resize,
            **{
                "window": self.template.window,
                "action_horizon": self.template.action_horizon,
                **given,
            },
        )


def extended(
    rules: Sequence[tuple[str, str, str]], names: Sequence[str], like: Mapping[str, str]
) -> tuple[tuple[str, str, str], ...]:
    """`rules` with rows in front so that each new group of `names` sees and is seen as its model.

    `like` maps new groups to the groups they are modelled on (or to themselves). What no rule
    decides follows the usual order: everything sees the past and now, nothing reads a readout.
    """
    rules = visibility.make(rules)

    def decided(query: str, key: str) -> str | None:
        try:
            return visibility.rule(rules, query, key)
        except plugin.UserError:
            return None

    rows = []
    for query in names:
        for key in names:
            if query not in like and key not in like:
                continue
            usual = "never" if key.startswith("readout_") and query != key else "past_or_now"
            found = decided(query, key)
            wanted = decided(like.get(query, query), like.get(key, key)) or found or usual
            if wanted != found:
                rows.append((query, key, wanted))
    return (*rows, *rules)


def _free(name: str, taken: Iterable[str]) -> str:
    """`name`, or the first of name_2, name_3, … that is not `taken`."""
    found, number = name, 2
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    return found
