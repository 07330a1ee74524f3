"""The trunk: the transformer that all tokens meet in.

    {expert: [B, L_e, D_e]} ──▶ depth x │ norm → query, key, value   each expert its own weights
                                        │ attention over all tokens in layout order
                                        │ out → + → norm → MLP → +       each expert its own weights
                            ──▶ final norm ──▶ {expert: [B, L_e, D_e]}

Pre-norm layers (ViT), one scan over parameters stacked [layer, …]; unrolling is `unroll=n` of the
same scan, so the parameters never change shape. A layer is a pure function: nothing is sown, random
keys are arguments. Several experts that share only attention: pi0 (Black et al. 2024).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vla_jax import plugin
from vla_jax.nn import attention, linear, mlp, norms, positions, visibility
from vla_jax.nn import layout as layouts
from vla_jax.parallel import mesh

Tokens = dict[str, jax.Array]  # expert -> [B, L_e, D_e]
POSITIONS = ("none", "rope", "every_layer")
# What the backward pass need not compute again: all, what weight matmuls gave, a layer's input.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens seen so far; S is the layout's length, unseen slots invalid."""

    k: jax.Array  # [layer, B, S, K, H]
    v: jax.Array  # [layer, B, S, K, H]
    valid: jax.Array  # bool [B, S]
    position: jax.Array  # int32 [B, S]
    length: jax.Array  # int32 []: one more than the last slot written


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What all layers share."""

    experts: tuple[tuple[str, int, int], ...]  # name, width D, MLP width F
    heads: int
    kv_heads: int
    head_dim: int
    norm: str
    position: str
    activation: str
    dropout: float
    unseeing: str
    attention: str
    dtype: Any


class Expert(nn.Module):
    """One expert's half of a layer: what comes before attention and what comes after."""

    sizes: Sizes
    width: int
    mlp: int

    def setup(self):
        """Makes norms, projections and MLP; a condition's projections only if one is given."""
        s, dtype = self.sizes, self.sizes.dtype

        def into(heads):
            shape = (self.width, heads, s.head_dim)
            return linear.Einsum("BLD,DNH->BLNH", shape, dtype, bias_shape=shape[1:])

        self.attention_norm = norms.make(s.norm, dtype)
        self.query, self.key, self.value = into(s.heads), into(s.kv_heads), into(s.kv_heads)
        self.out = linear.Einsum(
            "BLNH,NHD->BLD", (s.heads, s.head_dim, self.width), dtype, bias_shape=(self.width,)
        )
        self.mlp_norm = norms.make(s.norm, dtype)
        self.feed_forward = mlp.Mlp((self.mlp,), self.width, s.activation, dtype, name="mlp")
        self.attention_condition = modulation(self.width, dtype)
        self.mlp_condition = modulation(self.width, dtype)

    def before(
        self, x: jax.Array, cond: jax.Array | None, offset: jax.Array | None
    ) -> tuple[jax.Array, ...]:
        """Query [B, L, N, H], key and value [B, L, K, H] of x [B, L, D].

        `offset` [B or 1, L, D] says where the tokens stand; values do not know it.
        """
        x = self.attention_norm(x)
        if cond is not None:
            x = norms.modulate(x, self.attention_condition(cond))
        placed = x if offset is None else x + offset.astype(x.dtype)
        qkv = self.query(placed), self.key(placed), self.value(x)
        return tuple(mesh.constrain(y, "batch", None, "tensor", None) for y in qkv)

    def after(
        self, x: jax.Array, mixed: jax.Array, cond: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        """[B, L, D]: x plus what attention brought [B, L, N, H], plus the MLP."""
        keys = (None, None) if key is None else (_fold(key, 0), _fold(key, 1))
        x = x + _dropout(self.out(mixed), self.sizes.dropout, keys[0])
        x = mesh.constrain(x, "batch", None, None)
        y = self.mlp_norm(x)
        if cond is not None:
            y = norms.modulate(y, self.mlp_condition(cond))
        x = x + _dropout(self.feed_forward(y), self.sizes.dropout, keys[1])
        return mesh.constrain(x, "batch", None, None)


class Layer(nn.Module):
    """One layer over all experts: attention runs over their concatenation in layout order."""

    sizes: Sizes
    layout: layouts.Layout
    rules: visibility.Rules
    slots: tuple[int, ...] | None  # the places of the tokens if not all and known while tracing

    @nn.compact
    def __call__(self, tokens: Tokens, scanned: tuple, shared: dict) -> tuple[Tokens, Any]:
        index, cached = scanned
        cond, offsets = shared["cond"] or {}, shared["offsets"] or {}
        slots = shared["slots"] if self.slots is None else np.asarray(self.slots, np.int32)
        experts = {
            name: Expert(self.sizes, width, hidden, name=name)
            for name, width, hidden in self.sizes.experts
            if name in tokens
        }
        qkv = {
            name: e.before(tokens[name], cond.get(name), offsets.get(name))
            for name, e in experts.items()
        }
        order = _order(self.layout, self.slots, tuple(tokens))
        query, key, value = (_interleave([qkv[e][i] for e in tokens], order) for i in range(3))
        if self.sizes.position == "rope":
            query = positions.rotate(query, shared["position"])
            key = positions.rotate(key, shared["position"])
        if cached is not None:
            cached = tuple(_write(old, new, slots) for old, new in zip(cached, (key, value)))
            key, value = cached
        mixed = attention.attention(
            query, key, value, self.layout, self.rules, shared["valid"], slots,
            self.sizes.unseeing, self.sizes.attention,
        )  # fmt: skip
        keys = None if shared["key"] is None else _fold(shared["key"], index)
        lengths = [tokens[e].shape[1] for e in tokens]
        parts = dict(zip(tokens, _separate(mixed, order, lengths)))
        out = {
            name: e.after(tokens[name], parts[name], cond.get(name), _expert_key(keys, i))
            for i, (name, e) in enumerate(experts.items())
        }
        return {name: out[name] for name in tokens}, cached


class Trunk(nn.Module):
    """A transformer over token groups; see the module's drawing.

    `experts` are further ones, {name: {"width": D, "mlp": F}}, beside the default one, `trunk`.
    `position` is "none" (tokens bring learned positions), "rope", or "every_layer": learned ones
    are given as `offsets` and added to what queries and keys are made of, in every layer (DETR,
    Carion et al. 2020; CrossFormer). `remat` says what a layer keeps for the backward pass: "none"
    (all), "dots", "full"; see REMAT. `attention`, `unseeing`: see attention.py.
    """

    width: int
    depth: int
    heads: int
    mlp: int
    kv_heads: int | None = None
    head_dim: int | None = None
    norm: str = "layer"
    position: str = "none"
    activation: str = "gelu"
    dropout: float = 0.0
    remat: str = "none"
    unroll: int = 1
    unseeing: str = "zeros"
    attention: str = "auto"
    dtype: Any = jnp.float32
    rules: tuple = ()
    experts: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)

    @nn.compact
    def __call__(
        self,
        tokens: Tokens,
        layout: layouts.Layout,
        valid: jax.Array,
        key: jax.Array | None = None,
        cond: dict[str, jax.Array] | None = None,
        cache: Cache | None = None,
        slots: np.ndarray | None = None,
        offsets: Tokens | None = None,
    ) -> tuple[Tokens, Cache | None]:
        """({expert: [B, L_e, D_e]} after the final norm, the cache with these tokens written).

        `valid` is bool [B, L] of the tokens given. `key` [B], one per row, turns dropout on. `cond`
        is {expert: [B, D_c] or [B, L_e, D_c]}: scale and shift after each norm of that expert
        (starting at none). Without a cache the tokens are the whole layout. With one
        (`empty_cache`) they may be a part: `slots` are their static places; without `slots` they
        follow `cache.length`, which may be traced, and belong to one expert. They attend to what
        the cache holds and to each other; a slot written again is replaced. `offsets`
        {expert: [B or 1, L_e, D_e]} are the tokens' positions where `position` is "every_layer".
        Raises UserError when tokens, layout and sizes do not fit.
        """
        sizes, rules = self._sizes(), visibility.make(self.rules)
        _check(sizes, layout, tokens, valid, cache, slots)
        _check_offsets(self.position, tokens, offsets)
        static = None if slots is None else tuple(int(s) for s in slots)
        places = _places(valid.shape[1], cache, slots)
        seen, position = _valid_and_position(layout, valid, cache, places)
        shared = dict(
            valid=seen,
            position=position if places is None else position[:, places],
            slots=places if static is None else None,  # static ones stay numpy, as a field of Layer
            cond=cond,
            offsets=offsets,
            key=key if self.dropout else None,
        )
        run = self._layers()(sizes, layout, rules, static, name="layers")
        tokens = {
            name: mesh.constrain(x.astype(self.dtype), "batch", None, None)
            for name, x in tokens.items()
        }
        kv = None if cache is None else (cache.k, cache.v)
        tokens, kv = run(tokens, (jnp.arange(self.depth), kv), shared)
        tokens = {name: self._finish(name, x, (cond or {}).get(name)) for name, x in tokens.items()}
        if cache is not None:
            end = layout.length if places is None else jnp.max(jnp.asarray(places)) + 1
            length = jnp.maximum(cache.length, end).astype(jnp.int32)
            cache = Cache(kv[0], kv[1], seen, position, length)
        return tokens, cache

    def _finish(self, name: str, x: jax.Array, cond: jax.Array | None) -> jax.Array:
        """The expert's tokens [B, L_e, D] after its final norm."""
        x = norms.make(self.norm, self.dtype, name=f"final_norm_{name}")(x)
        if cond is not None:
            projection = modulation(x.shape[-1], self.dtype, name=f"final_condition_{name}")
            x = norms.modulate(x, projection(cond))
        return x

    def empty_cache(self, layout: layouts.Layout, batch_size: int) -> Cache:
        """A cache with room for a layout's tokens, none of them seen."""
        sizes, S = self._sizes(), layout.length
        shape = (self.depth, batch_size, S, sizes.kv_heads, sizes.head_dim)
        return Cache(
            k=jnp.zeros(shape, self.dtype),
            v=jnp.zeros(shape, self.dtype),
            valid=jnp.zeros((batch_size, S), bool),
            position=jnp.zeros((batch_size, S), jnp.int32),
            length=jnp.zeros((), jnp.int32),
        )

    def _sizes(self) -> Sizes:
        kv_heads, head_dim = self.kv_heads or self.heads, self.head_dim or self.width // self.heads
        if self.head_dim is None and self.width % self.heads:
            raise plugin.UserError(
                f"trunk: width {self.width} does not divide into {self.heads} heads"
            )
        if self.heads % kv_heads:
            raise plugin.UserError(
                f"trunk: {self.heads} heads do not divide over {kv_heads} kv_heads"
            )
        if self.position not in POSITIONS:
            raise plugin.UserError(plugin.unknown("trunk.position", self.position, POSITIONS))
        experts = [("trunk", self.width, self.mlp)]
        experts += [(name, e["width"], e["mlp"]) for name, e in self.experts.items()]
        return Sizes(
            tuple(experts), self.heads, kv_heads, head_dim, self.norm, self.position,
            self.activation, self.dropout, self.unseeing, self.attention, self.dtype,
        )  # fmt: skip

    def _layers(self):
        layer = Layer
        if self.remat not in REMAT:
            raise plugin.UserError(plugin.unknown("trunk.remat", self.remat, REMAT))
        if self.remat != "none":
            layer = nn.remat(layer, prevent_cse=False, policy=REMAT[self.remat])
        return nn.scan(
            layer,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=self.depth,
            unroll=self.unroll,
        )


def modulation(width: int, dtype: Any, name: str | None = None) -> linear.Dense:
    """The projection [..., D_c] → [..., 2D] of a condition, zero at the start."""
    return linear.Dense(2 * width, dtype=dtype, kernel_init=nn.initializers.zeros_init(), name=name)


def _check(sizes, layout, tokens, valid, cache, slots) -> None:
    widths = {name: width for name, width, _ in sizes.experts}
    for name, x in tokens.items():
        known = [expert for expert in layout.experts if expert in widths]
        if name not in known:
            raise plugin.UserError(plugin.unknown("trunk: tokens of expert", name, known))
        if x.shape[-1] != widths[name]:
            raise plugin.UserError(
                f"trunk: tokens of expert {name!r} have width {x.shape[-1]}, not {widths[name]}"
            )
    count = sum(x.shape[1] for x in tokens.values())
    if valid.shape[1] != count:
        raise plugin.UserError(f"trunk: {count} tokens, but valid has shape {valid.shape}")
    if cache is None and slots is not None:
        raise plugin.UserError("trunk: slots given without a cache; make one with empty_cache")
    expected = layout.length if slots is None else len(slots)
    if count != expected and not (cache is not None and slots is None and len(tokens) == 1):
        raise plugin.UserError(
            f"trunk: {count} tokens for {expected} places of the layout; give a cache, and static "
            "slots when there are several experts"
        )


def _check_offsets(position: str, tokens: Tokens, offsets: Tokens | None) -> None:
    if (offsets is not None) != (position == "every_layer"):
        raise plugin.UserError(
            f"trunk: position={position!r}, and offsets are {'' if offsets else 'not '}given; they "
            "belong to 'every_layer'"
        )
    for name, x in tokens.items() if offsets is not None else ():
        shape = None if name not in offsets else offsets[name].shape
        if shape is None or shape[1:] != x.shape[1:] or shape[0] not in (1, x.shape[0]):
            raise plugin.UserError(
                f"trunk: offsets of expert {name!r} have shape {shape}, its tokens {x.shape}"
            )


def _places(count: int, cache: Cache | None, slots: np.ndarray | None):
    """The tokens' places: None (whole layout), static numpy, or traced, after the cached ones."""
    if slots is not None:
        return np.asarray(slots, np.int32)
    if cache is None or count == cache.valid.shape[1]:
        return None
    return cache.length + jnp.arange(count, dtype=jnp.int32)


def _valid_and_position(layout, valid, cache, places) -> tuple[jax.Array, jax.Array]:
    """(bool [B, S], int32 [B, S]): which keys are real, and where each token stands."""
    if places is not None:
        valid = cache.valid.at[:, places].set(valid)
    if layout.packed:
        return valid, jnp.maximum(jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1, 0)
    return valid, jnp.broadcast_to(jnp.asarray(layout.position)[None], valid.shape)


def _order(layout, slots, names: tuple[str, ...]) -> np.ndarray | None:
    """Where each token in layout order lies in the experts' concatenation; None for one expert."""
    if len(names) == 1:
        return None
    places = np.arange(layout.length) if slots is None else np.asarray(slots)
    owner = layout.expert[places]
    lies = [np.flatnonzero(owner == layout.experts.index(name)) for name in names]
    return np.argsort(np.concatenate(lies)).astype(np.int32)


def _interleave(parts: list[jax.Array], order: np.ndarray | None) -> jax.Array:
    """[B, L, …] in layout order, from the experts' [B, L_e, …]."""
    return parts[0] if order is None else jnp.concatenate(parts, axis=1)[:, order]


def _separate(x: jax.Array, order: np.ndarray | None, lengths: list[int]) -> list[jax.Array]:
    """The inverse of `_interleave`."""
    if order is None:
        return [x]
    return jnp.split(x[:, np.argsort(order)], np.cumsum(lengths)[:-1].tolist(), axis=1)


def _write(cached: jax.Array, new: jax.Array, slots) -> jax.Array:
    """The cache [B, S, K, H] with `new` [B, L, K, H] at its slots."""
    return new if slots is None else cached.at[:, slots].set(new)


def _expert_key(key: jax.Array | None, index: int) -> jax.Array | None:
    return None if key is None else _fold(key, index)


def _fold(key: jax.Array, number) -> jax.Array:
    """One key per row [B], each folded with `number`."""
    return jax.vmap(jax.random.fold_in, (0, None))(key, number)


def _dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of x [B, L, D], row by row from its own key [B]."""
    if key is None or rate == 0.0:
        return x
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - rate, x.shape[1:]))(key)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
