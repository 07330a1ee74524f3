"""Stand-alone modules of modules.npz: MODULE/{params/…, in0/…, kw/…, out}.

What a module is, its parameters tell; only what has none (a fixed Fourier table, how pictures are
normalized) is told by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tools.octo_golden.golden import Golden
from vla_jax import plugin, trees, types
from vla_jax.models.importers import _params
from vla_jax.nn import layout as layouts
from vla_jax.nn import pooling, score, token_learner, trunk

FILE = "modules.npz"
CONTEXT = types.Context(name="golden", width=64)
GIVEN = "given to our module: its parameters, or what it was called with"
ATTENTION = "MultiHeadDotProductAttention_0"


def compare(golden: Golden) -> None:
    """Every module of the file; one that this house does not have stays unaccounted for."""
    for name in sorted({name.split("/")[0] for name in golden.files.get(FILE, {})}):
        golden.attempt(_module, name)


def _module(golden: Golden, name: str) -> None:
    paths = [path for path in golden.names(f"{name}/", FILE) if path != f"{name}/out"]
    parts = trees.unflatten(
        {
            path.removeprefix(f"{name}/").rstrip("/"): golden.take(path, FILE, GIVEN)
            for path in paths
        }
    )
    params = parts.get("params", {})
    out = golden.files[FILE][f"{name}/out"]
    if "encoder_norm" in params:
        got = _transformer(params, parts)
    elif "probe" in params:
        got = _map(params, parts["in0"])
    elif "MAPHead_0" in params:
        heads = params["MAPHead_0"][ATTENTION]["query"]["kernel"].shape[1]
        module = token_learner.TokenLearner(out.shape[-2], heads)
        theirs = "octo_transformer/observation_tokenizers_x/TokenLearner_0"
        got = _apply(module, theirs, "tokenizers_x/learner", params, parts["in0"])
    elif name.startswith("fourier"):
        got = _fourier(params, parts["in0"], out.shape[-1])
    else:
        got = _encoder(name, params, parts)
    golden.compare(f"{name}/out", got, file=FILE)


def _map(params: Mapping[str, Any], given: Any) -> np.ndarray:
    """A MAPHead, of tokens or of a TokenGroup {tokens, mask}."""
    given = (given["tokens"], given["mask"]) if isinstance(given, Mapping) else (given,)
    module = pooling.AttentionPool(
        probes=params["probe"].shape[1],
        heads=params[ATTENTION]["query"]["kernel"].shape[1],
        hidden=params["MlpBlock_0"]["Dense_0"]["bias"].shape[0],
        unseeing="mean",
    )
    return _apply(module, "heads_x/map_head", "heads_x/pool/map", params, *given)


def _fourier(params: Mapping[str, Any], x: np.ndarray, features: int) -> np.ndarray:
    module = score.FourierFeatures(features, learned=bool(params))
    variables = {"params": {"frequency": params["kernel"][:, 0]}} if params else {}
    return np.asarray(module.apply(variables, x[..., 0]))


def _encoder(name: str, params: Mapping[str, Any], parts: Mapping[str, Any]) -> np.ndarray:
    """An image encoder, by the layers it has."""
    film = parts.get("kw", {}).get("cond_var")
    spec: dict[str, Any] = dict(film=film is not None)
    convolutions = sorted(key for key in params if key.startswith("StdConv_"))
    if convolutions:
        kernel, theirs = params["embedding"]["kernel"], "SmallStem_0"
        widths = tuple(params[key]["bias"].shape[0] for key in convolutions)
        patch = kernel.shape[0] * 2 ** len(widths)
        spec |= dict(type="small_stem", patch=patch, widths=widths, features=kernel.shape[-1])
    elif "conv_root" in params:
        blocks, theirs = [key for key in params if key.startswith("block")], "ViTResnet_0"
        stages = tuple(len(params[f"block{i + 1}"]) for i in range(len(blocks)))
        spec |= dict(type="resnet", stages=stages, width=params["conv_root"]["kernel"].shape[-1])
    else:
        kernel, theirs = params["embedding"]["kernel"], "PatchEncoder_0"
        spec |= dict(type="patchify", patch=kernel.shape[0], features=kernel.shape[-1])
    if "imagenet" in name:
        spec["normalize"] = "imagenet"
    module = plugin.build("backbones", spec, CONTEXT)
    prefix = f"octo_transformer/observation_tokenizers_x/{theirs}"
    given = () if film is None else (film,)
    return _apply(module, prefix, "tokenizers_x/encoder", params, parts["in0"], *given)


def _transformer(params: Mapping[str, Any], parts: Mapping[str, Any]) -> np.ndarray:
    """A Transformer over x [B, L, D] and one mask for all rows, with or without positions."""
    x, mask = parts["in0"], parts["in1"]
    seen = mask.reshape(-1, *mask.shape[-2:])[0]
    if not (mask == seen).all():
        raise ValueError("its mask differs from row to row")
    if "posembed_input" in params:
        x = x + params["posembed_input"]["pos_embedding"]
    blocks = [key for key in params if key.startswith("encoderblock_")]
    first = params[blocks[0]]
    length, width = x.shape[1:]
    groups = [layouts.Group(f"t{i}", tokens=1) for i in range(length)]
    if (seen == np.tri(length, dtype=bool)).all():
        rules: tuple = (("*", "*", "causal_position"),)
    else:
        pairs = ((f"t{i}", f"t{j}", "all") for i, j in np.argwhere(seen))
        rules = (*pairs, ("*", "*", "never"))
    module = trunk.Trunk(
        width=width,
        depth=len(blocks),
        heads=first[ATTENTION]["query"]["kernel"].shape[1],
        mlp=first["MlpBlock_0"]["Dense_0"]["bias"].shape[0],
        unseeing="mean",
        rules=rules,
    )
    theirs = "octo_transformer/BlockTransformer_0/Transformer_0"
    kept = {key: tree for key, tree in params.items() if key != "posembed_input"}
    given = {"trunk": x}, layouts.Layout.make(groups, 1), np.ones(x.shape[:2], bool)
    return np.asarray(module.apply(_placed(theirs, "trunk", kept), *given)[0]["trunk"])


def _placed(theirs: str, ours: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of a module of ours, through the importer's own table."""
    flat = {f"{theirs}/{path}": leaf for path, leaf in trees.flatten(params).items()}
    placed, unused = _params.place(flat)
    if unused:
        raise ValueError(f"the importer has no place for {list(unused)}")
    prefix = f"params/{ours}/"
    return {"params": trees.unflatten({k.removeprefix(prefix): v for k, v in placed.items()})}


def _apply(module, theirs: str, ours: str, params: Mapping[str, Any], *given) -> np.ndarray:
    return np.asarray(module.apply(_placed(theirs, ours, params), *map(jnp.asarray, given)))
