"""One network from organs: tokenizers → one trunk → readouts → heads that may read one another.

A stream (``robot``, ``vl``) names its groups, readouts and heads; `init` builds the union of what the
streams use, from the config alone. The token sequence of a stream with a window of 2:

    ┌─ task (no time) ─┐┌──────────────── t = 0 ─────────────────┐┌──────────── t = 1 ────────────┐
    │ language         ││ primary │ proprio │ readout_point │ …  ││ primary │ proprio │ readout_… │
    └──────────────────┘└────────────────────────────────────────┘└───────────────────────────────┘

Which token sees which is a short list of rules between groups (`nn/visibility.py`), by default: the
task sees itself, observations see the task and the past, readouts see everything up to now, and
nothing reads a readout. Heads answer in the order of their `reads`: a pointing answer can inform a
waypoint, a waypoint the action (chain of thought in its smallest form).

Architecture: Octo (Ghosh et al. 2024), with the heads' `reads` added.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vla_jax import config as config_lib
from vla_jax import plugin, types
from vla_jax.nn import embedding, grounding, layout, positions, trunk

DEFAULT_RULES = (
    # (query pattern, key pattern, rule): first match wins, an unmatched pair is an error.
    ("readout_*", "readout_*", "same_past_or_now"),
    ("*", "readout_*", "never"),
)


class VLA(nn.Module):
    """The network of all streams; `__call__` trains, `sample` acts."""

    model: config_lib.ModelConfig
    streams: Mapping[str, config_lib.StreamConfig]
    context: types.Context  # action spaces, text tokenizer, normalizers; name and shared are set here

    def setup(self):
        base = dataclasses.replace(
            self.context, width=self.model.trunk["width"], dtype=jnp.dtype(self.model.dtype)
        )
        self.shared = self._build_shared(base)
        context = dataclasses.replace(base, shared=self.shared)

        def make(folder, table, used):
            missing = sorted(set(used) - set(table))
            if missing:
                raise plugin.UserError(plugin.unknown(f"config.model.{folder}", missing[0], table))
            named = {name: dataclasses.replace(context, name=name) for name in table if name in used}
            return {name: plugin.build(folder, table[name], c) for name, c in named.items()}

        self.tokenizers = make("tokenizers", self.model.tokenizers, self._used("groups"))
        self.heads = make("heads", self.model.heads, self._used("heads"))
        self.positions = {
            name: positions.Learned(steps=steps, tokens=count, width=base.width, dtype=base.dtype)
            for name, (steps, count) in self._tables().items()
        }
        self.trunk = trunk.Trunk(**self.model.trunk, rules=self.model.rules, dtype=base.dtype)

    def _build_shared(self, base: types.Context) -> dict[str, nn.Module]:
        built = {}
        for name, spec in self.model.shared.items():
            if name == "text_embedding":
                built[name] = embedding.make(base, **spec)
            elif name == "grounding":
                built[name] = grounding.make(base, **spec)
            else:
                raise plugin.UserError(
                    plugin.unknown("config.model.shared", name, ("text_embedding", "grounding"))
                )
        return built

    def _used(self, field: str) -> set[str]:
        return {name for stream in self.streams.values() for name in getattr(stream, field)}

    def _tables(self) -> dict[str, tuple[int, int]]:
        """Group -> (steps, tokens) of its position table; the longest window of any stream counts."""
        tables: dict[str, tuple[int, int]] = {}
        for stream in self.streams.values():
            for name in stream.groups:
                tokenizer = self.tokenizers[name]
                steps = stream.window if tokenizer.per_step else 0
                tables[name] = (max(steps, tables.get(name, (0, 0))[0]), tokenizer.num_tokens)
            for name in stream.readouts:
                steps = max(stream.window, tables.get(f"readout_{name}", (0, 0))[0])
                tables[f"readout_{name}"] = (steps, self.model.readouts[name])
        return tables

    # ------------------------------------------------------------------------------- training

    def __call__(self, batch: types.Batch, stream: str, keys: Mapping[str, jax.Array]):
        """(answers, errors) of the stream's heads, by head name; errors are per row, never reduced.

        `keys` maps a head's name to one random key per row, [B].
        """
        groups = self._tokenize(batch, stream)
        extra, cond, carries = {}, {}, {}
        for name in self.head_order(stream):
            made, head_cond, carries[name] = self.heads[name].tokens(batch, keys.get(name))
            extra |= made
            cond |= head_cond or {}
        outputs, _ = self._forward(batch, stream, groups, extra, cond or None)
        answers, errors = {}, {}
        for name in self.head_order(stream):
            head = self.heads[name]
            answers[name], errors[name] = head(
                outputs, self._read(head, answers), batch, carries[name]
            )
        return answers, errors

    def initialize(self, batches: Mapping[str, types.Batch], keys: Mapping[str, Mapping]):
        """Runs every stream once, so that `init` makes the union of their parameters."""
        return {name: self(batch, name, keys[name]) for name, batch in batches.items()}

    # --------------------------------------------------------------------------------- acting

    def sample(self, batch: types.Batch, stream: str, keys: Mapping[str, Any]):
        """The answers of the stream's heads for the newest step of each row: {head: {name: [B, …]}}.

        `keys` maps a head to its keys [B] or, where the head draws noise, to the noise itself.
        """
        groups = self._tokenize(batch, stream)
        decoding = any(self.heads[name].decodes for name in self.head_order(stream))
        outputs, cache = self._forward(batch, stream, groups, {}, None, cached=decoding)
        decode = functools.partial(self._decode, batch, stream) if decoding else None
        answers = {}
        for name in self.head_order(stream):
            head = self.heads[name]
            answers[name], cache = head.sample(
                outputs, self._read(head, answers), batch, cache, decode, keys.get(name)
            )
        return answers

    # ----------------------------------------------------------------------------- the pieces

    def head_order(self, stream: str) -> tuple[str, ...]:
        """The stream's heads so that each stands after those it reads; a cycle is an error."""
        reads = {name: tuple(self.heads[name].reads) for name in self.streams[stream].heads}
        return order_by_reads(f"streams.{stream}.heads", reads)

    def layout(self, stream: str) -> layout.Layout:
        """The stream's static layout of tokens, without tokens that heads add in training."""
        return self._layout(stream, {})

    def _layout(self, stream: str, extra: Mapping[str, int]) -> layout.Layout:
        config = self.streams[stream]
        groups = []
        for name in config.groups:
            tokenizer = self.tokenizers[name]
            steps = config.window if tokenizer.per_step else 0
            groups.append(layout.Group(name=name, tokens=tokenizer.num_tokens, steps=steps))
        for name in config.readouts:
            count = self.model.readouts[name]
            groups.append(layout.Group(name=f"readout_{name}", tokens=count, steps=config.window))
        for name, count in extra.items():
            groups.append(layout.Group(name=name, tokens=count, steps=config.window))
        return layout.Layout.make(groups, config.window)

    def _tokenize(self, batch: types.Batch, stream: str) -> dict[str, types.TokenGroup]:
        config = self.streams[stream]
        reads = {
            name: tuple(config.conditioning.get(name, self.tokenizers[name].reads))
            for name in config.groups
        }
        built: dict[str, types.TokenGroup] = {}
        for name in order_by_reads(f"streams.{stream}.groups", reads):
            built[name] = self.tokenizers[name](batch, {other: built[other] for other in reads[name]})
        return {name: built[name] for name in config.groups}

    def _read(self, head: nn.Module, answers: Mapping[str, dict]) -> dict[str, dict]:
        stop = jax.lax.stop_gradient
        return {
            name: jax.tree.map(stop, answers[name]) if name in head.detach else answers[name]
            for name in head.reads
        }

    def _forward(self, batch, stream, groups, extra, cond, cached=False):
        """Runs the trunk over all groups: ({group: Output}, cache or None)."""
        config = self.streams[stream]
        mask = batch.observation.timestep_mask  # [B, W]
        tokens = {
            name: group.tokens + self.positions[name](config.window) for name, group in groups.items()
        }
        valid = {name: group.valid for name, group in groups.items()}
        for name in config.readouts:
            table = self.positions[f"readout_{name}"](config.window)  # [1, W, R, D]
            tokens[f"readout_{name}"] = jnp.broadcast_to(table, (mask.shape[0], *table.shape[1:]))
            count = self.model.readouts[name]
            valid[f"readout_{name}"] = jnp.broadcast_to(mask[..., None], (*mask.shape, count))
        for name, made in extra.items():
            tokens[name] = made
            valid[name] = jnp.broadcast_to(mask[..., None], made.shape[:3])
        plan = self._layout(stream, {name: made.shape[2] for name, made in extra.items()})
        joined, joined_valid = join(plan, tokens, valid)
        joined, cache = self.trunk(joined, plan, joined_valid, cond=cond, cache=cached or None)
        final = split(plan, joined)
        outputs = {}
        for name, value in final.items():
            group = groups.get(name)
            outputs[name] = types.Output(
                stem=group.stem if group else None,
                final=value,
                valid=valid[name],
                grid=group.grid if group else None,
            )
        return outputs, cache

    def _decode(self, batch, stream, groups, cond, cache):
        """Runs head tokens {name: [B, n, D]} of the newest step over the cached trunk."""
        added = {name: made.shape[1] for name, made in groups.items()}
        plan = self._layout(stream, added)
        tokens = jnp.concatenate(list(groups.values()), axis=1)
        slots = np.concatenate([plan.slot(name)[-1] for name in groups])
        valid = jnp.ones(tokens.shape[:2], bool)
        final, cache = self.trunk.decode(tokens, plan, slots, valid, cond=cond, cache=cache)
        ends = np.cumsum(list(added.values()))[:-1]
        parts = jnp.split(final, ends, axis=1)
        return dict(zip(added, parts, strict=True)), cache


def order_by_reads(where: str, reads: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Names in an order in which each stands after those it reads; stable, cycles are errors."""
    done: list[str] = []

    def visit(name, path):
        if name in path:
            raise plugin.UserError(f"{where}: {' → '.join((*path, name))} read in a circle; break it.")
        for other in reads[name]:
            if other not in reads:
                raise plugin.UserError(plugin.unknown(f"{where}.{name}.reads", other, reads))
            visit(other, (*path, name))
        if name not in done:
            done.append(name)

    for name in reads:
        visit(name, ())
    return tuple(done)


def join(plan: layout.Layout, tokens: Mapping[str, Any], valid: Mapping[str, Any]):
    """Groups → ({expert: [B, L_e, D]}, valid [B, L]) in layout order."""
    joined = {}
    for expert in plan.experts:
        names = [group.name for group in plan.groups if group.expert == expert]
        joined[expert] = _in_order(plan, names, tokens)
    return joined, _in_order(plan, [group.name for group in plan.groups], valid)


def _in_order(plan, names, values):
    steps = {group.name: group.steps for group in plan.groups}
    parts = [values[name] for name in names if not steps[name]]
    timed = [values[name] for name in names if steps[name]]
    if timed:
        stacked = jnp.concatenate(timed, axis=2)  # [B, W, m, …]
        parts.append(stacked.reshape(stacked.shape[0], -1, *stacked.shape[3:]))
    return jnp.concatenate(parts, axis=1)


def split(plan: layout.Layout, joined: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The inverse of `join`: {group: [B, n, D] or [B, W, n, D]}."""
    out = {}
    for expert, tokens in joined.items():
        groups = [group for group in plan.groups if group.expert == expert]
        start = 0
        for group in (g for g in groups if not g.steps):
            out[group.name] = tokens[:, start : start + group.tokens]
            start += group.tokens
        timed = [group for group in groups if group.steps]
        if timed:
            rest = tokens[:, start:].reshape(tokens.shape[0], timed[0].steps, -1, tokens.shape[-1])
            ends = np.cumsum([group.tokens for group in timed])[:-1]
            parts = jnp.split(rest, ends, axis=2)
            out |= {group.name: part for group, part in zip(timed, parts, strict=True)}
    return {group.name: out[group.name] for group in plan.groups}
