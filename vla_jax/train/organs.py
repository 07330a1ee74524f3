"""Which organs a fine-tuned network keeps of its checkpoint, which it drops, which are new.

A new organ is modelled on one that is there: a view's tokenizer on the primary view's, a proprio
group's on another's, an action head on one of the same type; visibility rules follow. Nothing here
touches parameters; `finetune.py` does.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from vla_jax import config as config_lib
from vla_jax import plugin, types
from vla_jax.nn import visibility

# What a new action head takes over from the checkpoint's head of the same type.
CARRIED = ("hidden", "activation", "loss", "steps", "time", "as_tokens")


def pattern(folder: str, name: str) -> str:
    """The regex of an organ's parameter paths, as models/vla.py names its modules."""
    return f"params/{folder}_{re.escape(name)}/.*"


def acts(spec: Mapping) -> bool:
    """Whether a head's spec says that it answers with an action."""
    if spec["type"] == "regression":
        return spec.get("target", "action") == "action"
    return spec["type"] == "flow" or "action_space" in spec


class Organs:
    """The organs chosen so far; `fresh` holds the regexes of parameters that begin anew.

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
        of_task = [n for n in self.template.groups if not {"view", "group"} & set(specs[n])]
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
        """A tokenizer per view: the checkpoint's own, or a fresh one like its primary view's."""
        images, specs = self._known("view"), self.before.model.tokenizers
        if views and not images:
            raise plugin.UserError("finetune: the checkpoint has no tokenizer of images to copy")
        model = images.get("primary") or next(iter(images.values()), None)
        for view in views:
            name = images.get(view)
            if name is None:
                name = _free(view, specs)
                self._new_group(name, {**specs[model], "view": view}, model)
            else:
                self._old_group(name)
            reads = self.template.conditioning.get(name, self.template.conditioning.get(model))
            if reads is not None:
                self.conditioning[name] = reads
            self.image_sizes[view] = self._image_size(name, model)

    def add_proprio(self, groups: Iterable[types.ProprioGroup]) -> None:
        """A tokenizer per group: the checkpoint's for the same name and size, or a fresh one."""
        known, specs = self._known("group"), self.before.model.tokenizers
        model = next(iter(known.values()), None)
        for group in groups:
            name = known.get(group.name)
            if name is not None and specs[name].get("size") == group.size:
                self._old_group(name)
                continue
            spec = dict(specs[model]) if model else dict(type="proprio")
            spec |= dict(group=group.name, size=group.size)
            like = model or next(iter(self._known("view").values()), None)
            self._new_group(_free(f"proprio_{group.name}", specs), spec, like)

    def order(self) -> tuple[str, ...]:
        """The groups in the template's order; a new one stands after the last of its kind."""

        def kind(name: str) -> str:
            return next((k for k in ("view", "group") if k in self.tokenizers[name]), "")

        found = [name for name in self.template.groups if name in self.tokenizers]
        for name in self.tokenizers:
            if name not in found:
                alike = [i for i, other in enumerate(found) if kind(other) == kind(name)]
                found.insert(alike[-1] + 1 if alike else len(found), name)
        return tuple(found)

    def _known(self, field: str) -> dict[str, str]:
        """View (or proprio group) -> the checkpoint's tokenizer of it, the template's first."""
        specs, found = self.before.model.tokenizers, {}
        for name in (*self.template.groups, *sorted(self.used_groups), *specs):
            if field in specs[name]:
                found.setdefault(specs[name][field], name)
        return found

    def _old_group(self, name: str) -> None:
        self.tokenizers[name] = self.before.model.tokenizers[name]
        if name not in self.used_groups:  # named in the config, but no stream trained it
            self._fresh_group(name)

    def _new_group(self, name: str, spec: dict, like: str | None) -> None:
        self.tokenizers[name] = spec
        self.like[name] = like or name
        self._fresh_group(name)

    def _fresh_group(self, name: str) -> None:
        self.fresh += [pattern("tokenizers", name), pattern("positions", name)]

    def _image_size(self, name: str, model: str) -> tuple[int, int]:
        """(height, width) of the view of tokenizer `name`, else of the one it is modelled on."""
        specs = self.before.model.tokenizers
        for candidate in (name, model):
            view = specs[candidate]["view"] if candidate in specs else None
            for stream in (self.template, *self.before.streams.values()):
                if view in stream.image_sizes:
                    return stream.image_sizes[view]
        raise plugin.UserError(f"finetune: no stream of the checkpoint shows what {model!r} reads")

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
        (regression or flow) and `action_horizon` C default to the checkpoint's.
        """
        specs = self.before.model.heads
        used = {name for s in self.before.streams.values() for name in s.heads}
        ordered = dict.fromkeys((*self.template.heads, *sorted(used)))
        acting = [name for name in ordered if acts(specs[name])]
        for name in acting:
            same_type = head_type in (None, specs[name]["type"])
            if same_type and self._means_the_same(name, space, groups, action_horizon):
                self._keep_action(name, space)
                return
        model = next((n for n in acting if head_type in (None, specs[n]["type"])), None)
        type_ = head_type or (specs[model]["type"] if model else "regression")
        self._new_action(type_, model, space, groups)

    def _new_action(self, type_: str, model: str | None, space, groups) -> None:
        specs, readouts = self.before.model.heads, self.before.model.readouts
        name = _free(f"action_{space.name}", {**specs, **readouts})
        spec = {k: v for k, v in specs[model].items() if k in CARRIED} if model else {}
        spec |= dict(type=type_, action_space=space.name)
        if spec.get("as_tokens"):
            self.like[f"{name}_actions"] = f"{model}_actions"
        else:
            spec |= dict(readout=name, proprio=tuple(group.name for group in groups))
            old = (specs[model].get("readout") if model else None) or next(iter(readouts), None)
            self.readouts[name] = readouts[old] if old else 1
            self.like[f"readout_{name}"] = f"readout_{old or name}"
            self.fresh.append(pattern("positions", f"readout_{name}"))
        self.heads[name] = spec
        self.fresh.append(pattern("heads", name))
        self.objectives["action"] = dict(type="action", head=name, action_space=space.name)

    def _means_the_same(self, name: str, space, groups, action_horizon) -> bool:
        specs = self.before.model.heads
        if name not in self.template.heads:
            return False
        only = next(iter(self.spaces)) if len(self.spaces) == 1 else None
        mine = specs[name].get("action_space") or only
        if self.spaces.get(mine) != space:
            return False
        chain = [specs[head] for head in self._chain(name)]
        wanted = {group for spec in chain for group in spec.get("proprio", ())}
        wanted |= {spec["relative_to"] for spec in chain if spec.get("relative_to")}
        same = (specs[name].get("action_horizon") or self.action_horizon) == (
            action_horizon or self.template.action_horizon
        )
        tokenizers = self.before.model.tokenizers.values()
        sizes = {spec["group"]: spec.get("size") for spec in tokenizers if "group" in spec}
        fits = {group.name for group in groups if sizes.get(group.name, group.size) == group.size}
        return same and wanted <= fits

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
        named = {v for spec in self.heads.values() for v in spec.values() if isinstance(v, str)}
        kept = [readout for readout in self.template.readouts if readout in named]
        self.readouts = {readout: self.before.model.readouts[readout] for readout in kept}
        self.heads[name]["action_space"] = space.name
        for objective, spec in self.template.objectives.items():
            if spec.get("head") in self.heads:
                self.objectives[objective] = spec
        if len(self.heads) > 1:  # what the other heads are trained on
            for member in self.template.mixture.values():
                for field in ("waypoint_group", "point_view"):
                    if member.get("source", {}).get(field):
                        self.targets.setdefault(field, member["source"][field])

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
