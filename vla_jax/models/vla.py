"""One network from organs: tokenizers → one trunk → readouts → heads that may read one another.

A stream (``robot``, ``vl``) names its groups, readouts and heads; `init` builds the union of what
the streams use, from the config alone. The token sequence of a stream with a window of 2:

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
from vla_jax.nn import embedding, grounding, positions, trunk
from vla_jax.nn import layout as layouts

DROPOUT = "trunk/dropout"  # the name of the trunk's random keys among those of heads


class VLA(nn.Module):
    """The network of all streams; `__call__` trains, `sample` acts."""

    model: config_lib.ModelConfig
    streams: Mapping[str, config_lib.StreamConfig]
    # Action spaces, text tokenizer, normalizers; each organ's name and `shared` are set here.
    context: types.Context

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
            named = {
                name: dataclasses.replace(context, name=name) for name in table if name in used
            }
            return {name: plugin.build(folder, table[name], c) for name, c in named.items()}

        self.tokenizers = make("tokenizers", self.model.tokenizers, self._used("groups"))
        self.heads = make("heads", self.model.heads, self._used("heads"))
        self.positions = {
            name: positions.Learned(
                tokens=count,
                width=base.width,
                steps=max(steps, self.model.max_window) if steps else 0,
                dtype=base.dtype,
                oldest=self.model.legacy.oldest,
            )
            for name, (steps, count) in self._tables().items()
        }
        self.trunk = trunk.Trunk(
            **self.model.trunk,
            rules=self.model.rules,
            unseeing=self.model.legacy.unseeing,
            dtype=base.dtype,
        )

    def _build_shared(self, base: types.Context) -> dict[str, nn.Module]:
        makers = {"text_embedding": _text_embedding, "grounding": _grounding}
        for name in self.model.shared:
            if name not in makers:
                raise plugin.UserError(plugin.unknown("config.model.shared", name, makers))
        built = {}
        for name, spec in self.model.shared.items():
            plugin.check_arguments(f"config.model.shared.{name}", makers[name], spec)
            built[name] = makers[name](base, **spec)
        return built

    def _used(self, field: str) -> set[str]:
        return {name for stream in self.streams.values() for name in getattr(stream, field)}

    def _tables(self) -> dict[str, tuple[int, int]]:
        """Group -> (steps, tokens) of its position table, for the longest window of any stream."""
        tables: dict[str, tuple[int, int]] = {}
        for stream in self.streams.values():
            for name in stream.groups:
                tokenizer = self.tokenizers[name]
                if repeats(tokenizer) or not tokenizer.num_tokens:
                    continue  # its tokens bring the position of the group that they repeat
                steps = stream.window if tokenizer.per_step else 0
                tables[name] = (max(steps, tables.get(name, (0, 0))[0]), tokenizer.num_tokens)
            for name in stream.readouts:
                if name not in self.model.readouts:
                    where, known = "config.model.readouts", self.model.readouts
                    raise plugin.UserError(plugin.unknown(where, name, known))
                steps = max(stream.window, tables.get(f"readout_{name}", (0, 0))[0])
                tables[f"readout_{name}"] = (steps, self.model.readouts[name])
        return tables

    # ------------------------------------------------------------------------------- training

    def __call__(self, batch: types.Batch, stream: str, keys: Mapping[str, jax.Array]):
        """(answers, errors) of the stream's heads, by head name; errors are per row, never reduced.

        `keys` maps a head's name to one random key per row, [B]; the trunk's under DROPOUT turns
        its dropout on.
        """
        groups = self._tokenize(batch, stream)
        extra, cond, carries = {}, {}, {}
        for name in self.head_order(stream):
            made, head_cond, carries[name] = self.heads[name].tokens(batch, keys.get(name))
            extra |= made
            cond |= head_cond or {}
        key = keys.get(DROPOUT)
        outputs, _ = self._forward(batch, stream, groups, extra, cond or None, key=key)
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

    def encode(self, batch: types.Batch, stream: str) -> dict[str, types.Output]:
        """{group: Output}: every token of the stream after the trunk; no head is asked."""
        return self._forward(batch, stream, self._tokenize(batch, stream), {}, None)[0]

    # --------------------------------------------------------------------------------- acting

    def sample(self, batch: types.Batch, stream: str, keys: Mapping[str, Any]):
        """The heads' answers for the newest step of each row: {head: {name: [B, …]}}.

        `keys` maps a head to its keys [B] or, where the head draws noise, to the noise itself.
        """
        groups = self._tokenize(batch, stream)
        order = self.head_order(stream)
        decoding = any(self.heads[name].decodes for name in order)
        outputs, cache = self._forward(batch, stream, groups, {}, None, cached=decoding)
        decode = functools.partial(self._decode, stream) if decoding else None
        answers = {}
        for name in order:
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

    def layout(self, stream: str, head_tokens: bool = False) -> layouts.Layout:
        """The stream's static layout; `head_tokens` adds those of heads (noisy actions)."""
        config = self.streams[stream]
        groups = []
        for name in config.groups:
            tokenizer = self.tokenizers[name]
            steps = config.window if tokenizer.per_step else 0
            if tokenizer.num_tokens:  # else other tokenizers read it, and the trunk never does
                groups.append(layouts.Group(name=name, tokens=tokenizer.num_tokens, steps=steps))
        for name in config.readouts:
            count = self.model.readouts[name]
            groups.append(layouts.Group(f"readout_{name}", tokens=count, steps=config.window))
        for head in config.heads if head_tokens else ():
            for name, count in self.heads[head].token_groups.items():
                groups.append(layouts.Group(name, tokens=count, steps=config.window))
        return layouts.Layout.make(groups, config.window, shifted=self.model.legacy.shifted)

    def conditioning(self, stream: str) -> dict[str, tuple[str, ...]]:
        """Group → the groups its tokenizer reads in this stream (the stream may say otherwise)."""
        config = self.streams[stream]
        for name in config.conditioning:
            if name not in config.groups:
                where = f"config.streams.{stream}.conditioning"
                raise plugin.UserError(plugin.unknown(where, name, config.groups))
        return {
            name: tuple(
                config.conditioning[name]
                if name in config.conditioning
                else self.tokenizers[name].reads
            )
            for name in config.groups
        }

    def _tokenize(self, batch: types.Batch, stream: str) -> dict[str, types.TokenGroup]:
        reads = self.conditioning(stream)
        built: dict[str, types.TokenGroup] = {}
        for name in order_by_reads(f"streams.{stream}.groups", reads):
            built[name] = self.tokenizers[name](
                batch, {other: built[other] for other in reads[name]}
            )
        return {name: built[name] for name in self.streams[stream].groups}

    def _read(self, head: nn.Module, answers: Mapping[str, dict]) -> dict[str, dict]:
        stop = jax.lax.stop_gradient
        return {
            name: jax.tree.map(stop, answers[name]) if name in head.detach else answers[name]
            for name in head.reads
        }

    def _forward(self, batch, stream, groups, extra, cond, cached=False, key=None):
        """Runs the trunk over all groups: ({group: Output}, cache or None).

        `extra` are the tokens that heads add in training. With `cached`, the layout keeps room for
        them and the cache can be decoded from.
        """
        mask = batch.observation.timestep_mask  # [B, W]
        part = self.layout(stream, head_tokens=bool(extra))
        groups = {name: group for name, group in groups.items() if self.tokenizers[name].num_tokens}
        tokens, tables = self._placed(stream, groups, mask)
        valid = {name: group.valid for name, group in groups.items()}
        for name, made in (tokens | extra).items():
            if name not in valid:
                real = jnp.ones_like(mask) if self.model.legacy.readouts else mask
                valid[name] = jnp.broadcast_to(real[..., None], made.shape[:3])
        tokens |= extra
        offsets = None
        if tables:  # tokens of heads bring their own positions, once
            tables |= {name: jnp.zeros_like(made[:1]) for name, made in extra.items()}
            offsets = layouts.join(part, tables)
        whole, cache, slots = part, None, None
        if cached:
            whole = self.layout(stream, head_tokens=True)
            cache = self.trunk.empty_cache(whole, mask.shape[0])
            slots = np.sort(np.concatenate([whole.slot(g.name).reshape(-1) for g in part.groups]))
        joined, cache = self.trunk(
            layouts.join(part, tokens),
            whole,
            layouts.join_valid(part, valid),
            key=key,
            cond=cond,
            cache=cache,
            slots=slots,
            offsets=offsets,
        )
        outputs = {}
        for name in tokens:
            group = groups[name] if name in groups else None
            outputs[name] = types.Output(
                stem=group.stem if group else None,
                final=layouts.pick(part, joined, name),
                valid=valid[name],
                grid=group.grid if group else None,
            )
        return outputs, cache

    def _placed(self, stream: str, groups: Mapping[str, types.TokenGroup], mask: jax.Array):
        """({group: tokens}, {group: positions [1, (W,) n, D]}): of groups and readouts.

        The tokens have their positions in them already, and there are no others, unless the trunk
        adds them in every layer.
        """
        config, apart = self.streams[stream], self.trunk.position == "every_layer"
        tokens, tables = {}, {}
        for name, group in groups.items():
            repeated = repeats(self.tokenizers[name])
            table = self.positions[repeated or name](config.window)[None]  # [1, n, D], [1, W, n, D]
            table = table[:, None] if repeated else table
            tokens[name] = group.tokens if apart else group.tokens + table
            if apart:
                tables[name] = jnp.broadcast_to(table, (1, *group.tokens.shape[1:]))
        for name in (f"readout_{name}" for name in config.readouts):
            table = self.positions[name](config.window)[None]  # [1, W, R, D]
            shown = jnp.zeros_like(table) if apart else table
            tokens[name] = jnp.broadcast_to(shown, (mask.shape[0], *table.shape[1:]))
            if apart:
                tables[name] = table
        return tokens, tables

    def _decode(self, stream, groups, cond, cache):
        """({group: [B, n, D]}, cache) of head tokens {group: [B, n, D]} of the newest step."""
        whole = self.layout(stream, head_tokens=True)
        order = sorted(groups, key=lambda name: int(whole.slot(name)[-1][0]))
        tokens: dict[str, list] = {}
        for name in order:
            tokens.setdefault(whole.find(name).expert, []).append(groups[name])
        slots = np.concatenate([whole.slot(name)[-1] for name in order])
        batch_size = next(iter(groups.values())).shape[0]
        given = {expert: jnp.concatenate(parts, axis=1) for expert, parts in tokens.items()}
        apart = self.trunk.position == "every_layer"
        joined, cache = self.trunk(
            given,
            whole,
            jnp.ones((batch_size, len(slots)), bool),
            cond=cond,
            cache=cache,
            slots=slots,
            offsets={e: jnp.zeros_like(x[:1]) for e, x in given.items()} if apart else None,
        )
        outputs, start = {}, dict.fromkeys(joined, 0)
        for name in order:
            expert, count = whole.find(name).expert, groups[name].shape[1]
            outputs[name] = joined[expert][:, start[expert] : start[expert] + count]
            start[expert] += count
        return outputs, cache


def repeats(tokenizer: nn.Module) -> str | None:
    """The task group whose tokens a tokenizer shows again at every step, positions included."""
    return getattr(tokenizer, "repeats", None)


def _text_embedding(context: types.Context, *, pool: str = "mean", templates: tuple[str, ...] = ()):
    """The piece embeddings; `templates` ("touch the {name}") are left out when a text is pooled."""
    if context.text_tokenizer is None:
        raise plugin.UserError("config.model.shared.text_embedding needs config.text_tokenizer.")
    begins = []
    for template in templates:
        before, found, after = template.partition("{name}")
        if not found or after.strip():
            raise plugin.UserError(
                f"config.model.shared.text_embedding.templates: {template!r} should end in {{name}}"
            )
        begins.append(tuple(context.text_tokenizer.encode(before.strip())))
    return embedding.TextEmbedding(
        vocabulary_size=context.vocabulary_size,
        width=context.width,
        pool=pool,
        templates=tuple(begins),
        dtype=context.dtype,
    )


def _grounding(context: types.Context, *, dim: int = 128):
    return grounding.Grounding(dim=dim, dtype=context.dtype)


def order_by_reads(where: str, reads: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Names in an order in which each stands after those it reads; stable, cycles are errors."""
    done: list[str] = []

    def visit(name, path):
        if name in path:
            raise plugin.UserError(
                f"{where}: {' → '.join((*path, name))} read in a circle; break it."
            )
        for other in reads[name]:
            if other not in reads:
                raise plugin.UserError(plugin.unknown(f"{where}.{name}.reads", other, reads))
            visit(other, (*path, name))
        if name not in done:
            done.append(name)

    for name in reads:
        visit(name, ())
    return tuple(done)
