"""From a config (and what a checkpoint stores beside it) to the network, without touching data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vla_jax import config as config_lib
from vla_jax import plugin, types
from vla_jax.codecs import normalizer as normalizer_lib
from vla_jax.codecs import text_tokenizer as text_tokenizer_lib
from vla_jax.models import vla
from vla_jax.nn import attention_kernels, visibility
from vla_jax.nn import layout as layouts

PROPRIO = "proprio/"  # before a group's name in the normalizer's fields


def embodiments(config: config_lib.TrainConfig) -> tuple[types.Embodiment, ...]:
    """The robot bodies the config names, in order; a path to a ``.py`` file is a user's own."""
    found = []
    for name in config.embodiments:
        if name.endswith(".py"):
            found.append(plugin.load_attribute(name, "EMBODIMENT"))
        else:
            found.append(plugin.module("embodiments", name).EMBODIMENT)
    return tuple(found)


def action_spaces(bodies: tuple[types.Embodiment, ...]) -> tuple[types.ActionSpace, ...]:
    """The table that `Batch.action_space` indexes: every body's action spaces, in config order."""
    spaces = tuple(space for body in bodies for space in body.action_spaces)
    names = [space.name for space in spaces]
    if len(set(names)) != len(names):
        raise plugin.UserError(
            f"config.embodiments: action spaces {names} are not unique; rename one."
        )
    return spaces


def constants(normalizer: normalizer_lib.Normalizer) -> Mapping[str, tuple]:
    """Proprio group → (shift, scale) per dataset key, for heads that compute in SI units."""
    fields = {field for entries in normalizer.entries.values() for field in entries}
    return {
        field.removeprefix(PROPRIO): normalizer.constants(field)
        for field in sorted(fields)
        if field.startswith(PROPRIO)
    }


def identity_constants(bodies: tuple[types.Embodiment, ...]) -> Mapping[str, tuple]:
    """What stands for `constants` where only shapes count: `--dry-run`, `vla smoke`."""
    return {
        group.name: (((0.0,) * group.size,), ((1.0,) * group.size,))
        for body in bodies
        for group in body.proprio
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """The network as train/ and policy/ see it: `init`, `apply`, `sample` over plain dicts."""

    module: vla.VLA

    def init(self, key: jax.Array, batches: Mapping[str, types.Batch]) -> dict[str, Any]:
        """{"params": …} of all streams; `batches` give the shapes."""
        keys = {
            name: dict.fromkeys(
                self.module.streams[name].heads, jax.random.split(key, batch.row_id.shape[0])
            )
            for name, batch in batches.items()
        }
        # Parameters do not depend on how attention is computed, and shapes are asked for anywhere.
        return self.plain().module.init(key, batches, keys, method="initialize")

    def apply(self, variables, batch: types.Batch, stream: str, keys: Mapping[str, jax.Array]):
        """(answers, errors) of the stream's heads; `keys` holds one key per row for each head."""
        return self.module.apply(variables, batch, stream, keys)

    def sample(self, variables, batch: types.Batch, stream: str, keys: Mapping[str, Any]):
        """The heads' answers for the newest step of each row."""
        return self.module.apply(variables, batch, stream, keys, method="sample")

    def plain(self) -> Network:
        """The same network, on any platform: with no kernel of attention that only one has."""
        model = self.module.model
        if "attention" not in model.trunk:
            return self
        trunk = {**model.trunk, "attention": attention_kernels.plain(model.trunk["attention"])}
        return Network(self.module.clone(model=dataclasses.replace(model, trunk=trunk)))

    def encode(self, variables, batch: types.Batch, stream: str) -> dict[str, types.Output]:
        """{group: Output}: the stream's tokens after the trunk, without any head."""
        return self.module.apply(variables, batch, stream, method="encode")

    def text_encoder(self, stream: str) -> str | None:
        """The stream's task group that a frozen text encoder reads, if there is one."""
        encoders = self._text_encoders()
        frozen = (n for n in self.module.streams[stream].groups if encoders.get(n) is False)
        return next(frozen, None)

    def _text_encoders(self) -> dict[str, bool]:
        """Task group -> whether its text encoder is fine-tuned, for those that have one."""
        tokenizers = self.module.bind({}).tokenizers
        return {
            name: tokenizer.finetune
            for name, tokenizer in tokenizers.items()
            if hasattr(tokenizer, "embed") and tokenizer.encoder is not None
        }

    @functools.partial(jax.jit, static_argnums=(0, 2))
    def embed_text(self, variables, group: str, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """float32 [B, T, F]: what the encoder of a task group says of ids and mask [B, T]; jitted.

        A batch whose task holds it as `language_embedding`, with the same mask, needs no encoder.
        UserError for a group that has no encoder.
        """
        known = self._text_encoders()
        if group not in known:
            raise plugin.UserError(plugin.unknown("embed_text: text encoder", group, known))

        def embed(vla, ids, mask):
            return vla.tokenizers[group].embed(ids, mask)

        return self.module.apply(variables, ids, mask, method=embed).astype(np.float32)

    def layout(self, stream: str) -> layouts.Layout:
        """The stream's layout of tokens, those of heads included."""
        return self.module.bind({}).layout(stream, head_tokens=True)

    def check(self, objectives: Mapping[str, Mapping[str, tuple]]) -> None:
        """UserError when an objective and what its stream's tokens can see do not go together."""
        bound = self.module.bind({})
        for stream, named in objectives.items():
            self._check_chunks(bound, stream)
            self._check_head_tokens(bound, stream)
            groups, reads = bound.layout(stream).groups, bound.conditioning(stream)
            reaches = functools.partial(_reaches, groups, self.module.model.rules, reads)
            for objective, _ in named.values():
                objective.check(reaches)

    def _check_chunks(self, bound: vla.VLA, stream: str) -> None:
        """UserError when a head's chunk is longer than those of the stream's batches."""
        settings = self.module.streams[stream]
        for name in settings.heads:
            head = bound.heads[name]
            settled = {field.name for field in dataclasses.fields(head)}  # others run its setup
            shape = head.shape if "shape" in settled else ()
            if len(shape) == 2 and shape[0] > settings.action_horizon:
                raise plugin.UserError(
                    f"streams.{stream}.action_horizon: {settings.action_horizon}, but its head "
                    f"{name!r} answers with chunks of {shape[0]}; give "
                    f"heads.{name}.action_horizon, or streams that share a head the same horizon"
                )

    def _check_head_tokens(self, bound: vla.VLA, stream: str) -> None:
        """UserError when training would show tokens of heads that are not there in sampling.

        A policy samples the newest step only, after all other tokens have been through the trunk.
        """
        whole = bound.layout(stream, head_tokens=True)
        others = bound.layout(stream).groups
        made = [group.name for group in whole.groups if group not in others]
        seen = visibility.mask(whole, visibility.make(self.module.model.rules))
        for name in made:
            for group in others:
                if seen[np.ix_(whole.slot(group.name).ravel(), whole.slot(name).ravel())].any():
                    raise plugin.UserError(
                        f"config.model.rules: {group.name!r} sees the tokens {name!r} of a head, "
                        "which are not there when a policy is asked; add the row "
                        f"('*', {name!r}, 'never') below that of the head's own tokens"
                    )
            for query in made:
                earlier = whole.slot(name)[:-1].ravel()
                if seen[np.ix_(whole.slot(query)[-1], earlier)].any():
                    raise plugin.UserError(
                        f"config.model.rules: {query!r} sees the tokens {name!r} of earlier steps, "
                        "which are not there when a policy is asked; add the row "
                        f"({query!r}, {name!r}, 'now')"
                    )


def _reaches(groups, rules, reads, source: str, target: str) -> bool:
    return visibility.reaches(groups, visibility.make(rules), source, target, reads)


def network(
    config: config_lib.TrainConfig,
    *,
    spaces: tuple[types.ActionSpace, ...],
    text_tokenizer: text_tokenizer_lib.TextTokenizer | None,
    proprio_constants: Mapping[str, tuple],
) -> Network:
    """The network of the config's streams.

    `spaces`: the table of action spaces; `proprio_constants`: see `constants`.
    """
    context = make_context(config, spaces, text_tokenizer, proprio_constants)
    return Network(vla.VLA(model=config.model, streams=config.streams, context=context))


def make_context(config, spaces, text_tokenizer, proprio_constants) -> types.Context:
    """What every organ of the network is told; only `name` and `shared` are each one's own."""
    return types.Context(
        name="vla",
        width=config.model.trunk["width"],
        action_horizon=max(stream.action_horizon for stream in config.streams.values()),
        action_size=action_size(spaces),
        action_spaces=spaces,
        vocabulary_size=text_tokenizer.vocabulary_size if text_tokenizer else 0,
        text_tokenizer=text_tokenizer,
        normalizers=proprio_constants,
    )


def action_size(spaces: tuple[types.ActionSpace, ...]) -> int:
    """A_max, the width to which every batch's actions are padded (1 where no robot is named)."""
    return max((space.size for space in spaces), default=1)


def objectives(
    config: config_lib.TrainConfig, context: types.Context
) -> dict[str, dict[str, tuple]]:
    """{stream: {name: (objective, weight)}} of the config; a weight may be a schedule."""
    built: dict[str, dict[str, tuple]] = {}
    for stream_name, stream in config.streams.items():
        built[stream_name] = {}
        for name, spec in stream.objectives.items():
            arguments = {key: value for key, value in spec.items() if key != "weight"}
            named = dataclasses.replace(context, name=f"{stream_name}.{name}")
            objective = plugin.build("objectives", arguments, named)
            if objective.head not in stream.heads:
                where = f"config.streams.{stream_name}.objectives.{name}.head"
                raise plugin.UserError(plugin.unknown(where, objective.head, stream.heads))
            built[stream_name][name] = (objective, spec["weight"] if "weight" in spec else 1.0)
    return built
