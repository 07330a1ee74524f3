"""A config.json of Octo or CrossFormer in this project's words: from ModuleSpecs to plug-ins.

Both name modules by import path ({"module": "octo.model…", "name": "ImageTokenizer"}); only the
last name counts here, so that moved and fine-tuned modules are found too. What they take from an
example batch (which cameras there are, their sizes, the length of an instruction) is taken from the
one that lies beside every checkpoint.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vla_jax import plugin, types
from vla_jax.models.importers import _project, _statistics

STREAM = "robot"
# Encoders of Octo's vit_encoders.py by the last name of their ModuleSpec: ours, and what differs.
ENCODERS = {
    "SmallStem": ("small_stem", dict(patch=32)),
    "SmallStem8": ("small_stem", dict(patch=16, widths=(32, 96, 192))),
    "SmallStem16": ("small_stem", dict(patch=16)),
    "SmallStem32": ("small_stem", dict(patch=32)),
    "PatchEncoder": ("patchify", {}),
    "ViTResnet": ("resnet", dict(stages=())),
    "ResNet26FILM": ("resnet", {}),
    "ResNet26": ("resnet", {}),
}
RENAMED = {
    "small_stem": dict(patch_size="patch", features="widths", num_features="features"),
    "patchify": dict(patch_size="patch", num_features="features"),
    "resnet": dict(num_layers="stages"),
}
OLD_NAMES = dict(pred_horizon="action_horizon")  # of kwargs, in checkpoints of Octo 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What the translation reads besides config.json."""

    observation: Mapping[str, tuple[int, ...]]  # name -> shape [1, W, …] of the example batch
    task: Mapping[str, tuple[int, ...]]  # name -> shape [1, …]; language ids by "language"
    encoder: Mapping[str, Any] | None  # spec of the text encoder, from its parameters


class Translation:
    """The organs of a native config, and its tables."""

    def __init__(self, project: _project.Project, theirs: Mapping[str, Any], facts: Facts):
        self.project, self._facts, self._model = project, facts, theirs["model"]
        self.window = int(theirs.get("window_size") or _window(facts))
        self.tokenizers: dict[str, dict] = {}
        self.told: list[str] = []  # groups that others read and the trunk does not
        tasks, seen = (
            (self._model.get(table) or {}).items()
            for table in ("task_tokenizers", "observation_tokenizers")
        )
        self.tasks = [self._task(name, spec) for name, spec in tasks]
        self.seen = [self._observed(name, spec) for name, spec in seen]
        if self._model.get("repeat_task_tokens", False):
            self.seen += [self._repeated(name) for name in self.tasks]

    # ----------------------------------------------------------------------------- tokenizers

    def _task(self, name: str, spec: Mapping) -> str:
        kind, kwargs = spec["name"], arguments(spec)
        if kind == "LanguageTokenizer":
            encoder = self._facts.encoder if kwargs.get("encoder") else None
            if kwargs.get("encoder") and encoder is None:
                raise plugin.UserError(
                    f"{self.project.name} checkpoint: config.json names the text encoder "
                    f"{kwargs['encoder']!r} of {name!r}, but {self.project.root}/task_tokenizers_"
                    f"{name}/hf_model/… is missing among the parameters; it was saved without its "
                    "encoder"
                )
            there = "language" if encoder else "language_instruction"
            if there not in self._facts.task:
                raise plugin.UserError(
                    f"{self.project.name} config, task tokenizer {name!r}: the example batch has "
                    f"no {there}, only {sorted(self._facts.task)}"
                )
            shape = self._facts.task[there]  # ids [1, T], an embedding [1, F] or [1, T, F]
            made = dict(
                type="encoded_language",
                encoder=encoder,
                max_tokens=1 if not encoder and len(shape) == 2 else shape[1],
                finetune=bool(encoder and kwargs.get("finetune_encoder", False)),
                attend_padding=True,
                embedding_size=None if encoder else shape[-1],
            )
        else:
            raise self._unknown("task_tokenizers", name, kind, ("LanguageTokenizer",))
        return self._add(name, made)

    def _observed(self, name: str, spec: Mapping) -> str:
        kind, kwargs = spec["name"], arguments(spec)
        if kind == "ImageTokenizer":
            made = self._image(name, kwargs)
        elif kind == "LowdimObsTokenizer":
            made = self._lowdim(name, kwargs)
        else:
            known = ("ImageTokenizer", "LowdimObsTokenizer")
            raise self._unknown("observation_tokenizers", name, kind, known)
        return self._add(name, made)

    def _repeated(self, name: str) -> str:
        tokens = self.tokenizers[name]["max_tokens"]
        return self._add(
            f"repeat_{name}", dict(type="repeat", repeats=name, tokens=tokens, masked=False)
        )

    def _telling(self) -> list[str]:
        """The groups whose stem is the instruction's embedding, made where no task token is it."""
        if not self.tasks and not self.told:
            made = dict(
                type="encoded_language",
                encoder=None,
                max_tokens=1,
                embedding_size=self._facts.task["language_instruction"][-1],
                in_trunk=False,
                masked=False,
                embedded_by=self.project.embedded_by,
            )
            self.told.append(self._add("language", made))
        return self.tasks or self.told

    def _unknown(self, table: str, name: str, kind: str, known: Sequence[str]):
        where = f"{self.project.name} config, {table}.{name}"
        return plugin.UserError(plugin.unknown(where, kind, known))

    def _add(self, name: str, spec: dict) -> str:
        name = name if name not in self.tokenizers else f"seen_{name}"
        self.tokenizers[name] = spec
        return name

    def _image(self, name: str, kwargs: Mapping) -> dict[str, Any]:
        """An ImageTokenizer: its keys are regexes over the names of the example batch."""
        stacked = kwargs.get("obs_stack_keys", ("image_.*", "depth_.*"))
        views = _matching(stacked, self._facts.observation)
        goals = _matching(kwargs.get("task_stack_keys", ()), self._facts.task)
        film = _matching(kwargs.get("task_film_keys", ()), self._facts.task)
        where = f"{self.project.name} config, observation tokenizer {name!r}"
        if not views:
            raise plugin.UserError(
                f"{where}: none of {sorted(self._facts.observation)} in the example batch matches "
                f"{list(stacked)}"
            )
        if film and film != ["language_instruction"]:
            raise plugin.UserError(f"{where}: FiLM by {film}; expected language_instruction")
        sizes = {self._facts.observation[view][2:4] for view in views}
        sizes |= {self._facts.task[goal][1:3] for goal in goals}
        if len(sizes) > 1:
            raise plugin.UserError(f"{where}: stacks pictures of several sizes, {sorted(sizes)}")
        return dict(
            type="encoded_image",
            encoder=_encoder(where, kwargs["encoder"]),
            views=tuple(_view(where, view) for view in views),
            goals=tuple(_view(where, goal) for goal in goals),
            image_size=tuple(sizes.pop()),
            token_learner=kwargs.get("num_tokens", 8) if kwargs.get("use_token_learner") else None,
            reads=tuple(self._telling()) if film else (),
        )

    def _lowdim(self, name: str, kwargs: Mapping) -> dict[str, Any]:
        names = sorted(self._facts.observation)
        found = [n for pattern in kwargs.get("obs_keys", ()) for n in names if re.match(pattern, n)]
        groups = tuple(_statistics.readings(found))
        if not groups or len(groups) < len(found):
            raise plugin.UserError(
                f"{self.project.name} config, observation tokenizer {name!r}: reads {found}; "
                f"expected readings of the body, proprio or proprio_…, of the example batch's "
                f"{sorted(self._facts.observation)}"
            )
        size = sum(self._facts.observation[name][-1] for name in found)
        bins = None
        if kwargs.get("discretize"):
            bins = dict(
                count=int(kwargs.get("n_bins", 256)),
                spacing=kwargs.get("bin_type", "uniform"),
                low=float(kwargs.get("low", 0)),
                high=float(kwargs.get("high", 1)),
                beyond="first",
            )
        return dict(
            type="lowdim",
            groups=groups,
            size=size,
            bins=bins,
            masked=self.project.masked_readings,
        )

    # -------------------------------------------------------------------------------- the rest

    @property
    def readouts(self) -> dict[str, int]:
        """Name -> tokens of each readout."""
        return dict(self._model.get("readouts") or {})

    def rules(self) -> tuple[tuple[str, str, str], ...]:
        """Octo's attention rules (block_transformer.py) between our groups."""
        among = tuple((query, key, "all") for query in self.tasks for key in self.tasks)
        return (
            *((f"readout_{name}",) * 2 + ("past_or_now",) for name in self.readouts),
            ("*", "readout_*", "never"),
            *among,
            *((name, "*", "never") for name in self.tasks),
            *(("*", name, "all") for name in self.tasks),
            ("*", "*", "past_or_now"),
        )

    def trunk(self) -> dict[str, Any]:
        """The trunk's sizes."""
        sizes = self._model["transformer_kwargs"]
        dropout = float(sizes.get("dropout_rate") or 0.0)
        return dict(
            width=int(self._model["token_embedding_size"]),
            depth=int(sizes["num_layers"]),
            heads=int(sizes["num_attention_heads"]),
            mlp=int(sizes["mlp_dim"]),
            **(dict(dropout=dropout) if dropout else {}),
            **(dict(position="every_layer") if sizes.get("repeat_pos_enc") else {}),
        )

    def left_out(self, heads: Mapping[str, Mapping]) -> tuple[str, ...]:
        """What of their config has no counterpart here; it matters in training alone."""
        rates = {"attention_dropout_rate of the transformer": self._model["transformer_kwargs"]}
        for table in ("task_tokenizers", "observation_tokenizers"):
            specs = (self._model.get(table) or {}).items()
            rates |= {f"dropout_rate of the tokenizer {n}": spec["kwargs"] for n, spec in specs}
        rates |= {f"dropout_rate of the head {n}": spec["kwargs"] for n, spec in heads.items()}
        return tuple(
            f"{said} ({found[said.split()[0]]}): trained on without it"
            for said, found in rates.items()
            if found.get(said.split()[0])
        )

    def legacy(self) -> dict[str, Any]:
        """The options that keep their numbers."""
        correct = self._model.get("use_correct_attention", not self.project.shifted)
        return dict(
            shifted=not correct,
            unseeing="mean",
            readouts=True,
            oldest=True,
        )


def arguments(spec: Mapping) -> dict[str, Any]:
    """The keyword arguments of a ModuleSpec under their newest names."""
    if spec.get("args"):
        raise plugin.UserError(
            f"config.json: {spec['name']} has positional arguments {spec['args']}; name them"
        )
    return {OLD_NAMES.get(name, name): value for name, value in spec["kwargs"].items()}


def _matching(patterns: Sequence[str], names: Mapping[str, Any]) -> list[str]:
    """The names that begin with a match of one of Octo's regexes, sorted as Octo stacks them."""
    return sorted({n for n in names for pattern in patterns if re.match(pattern, n)})


def _view(where: str, name: str) -> str:
    """image_primary -> primary; UserError for a picture that is no view of ours."""
    view = name.removeprefix("image_")
    if view not in types.VIEWS or view == name:
        raise plugin.UserError(plugin.unknown(where, name, [f"image_{v}" for v in types.VIEWS]))
    return view


def _encoder(where: str, spec: Mapping) -> dict[str, Any]:
    """The spec of an image encoder in `backbones/`; FiLM is turned on by the tokenizer's reads."""
    if spec["name"] not in ENCODERS:
        raise plugin.UserError(plugin.unknown(f"{where}, encoder", spec["name"], ENCODERS))
    kind, made = ENCODERS[spec["name"]]
    made, names = dict(made, type=kind), RENAMED[kind] | dict(img_norm_type="normalize")
    for name, value in arguments(spec).items():
        if name == "use_film":
            continue
        made[names.get(name, name)] = tuple(value) if isinstance(value, list) else value
    if kind == "small_stem":
        made = _small_stem(where, made)
    if kind == "resnet":
        made["width"] = int(64 * made.get("width", 1))  # Octo's is a factor
    return made


def _small_stem(where: str, made: dict[str, Any]) -> dict[str, Any]:
    """A SmallStem's spec: its `patch_size` tells the last kernel, its convolutions halve each."""
    for name, usual in (("kernel_sizes", 3), ("strides", 2), ("padding", 1)):
        if any(value != usual for value in made.pop(name, ())):
            raise plugin.UserError(f"{where}: a SmallStem whose {name} are not all {usual}")
    widths = made.setdefault("widths", (32, 96, 192, 384))
    return made | dict(patch=max(1, made["patch"] // 16) * 2 ** len(widths))


def _window(facts: Facts) -> int:
    return next(iter(facts.observation.values()))[1]
