"""Stand-alone modules of modules.npz: MODULE/{params/…, in0/…, kw/…, out}; and what is left out."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from tools.octo_golden.golden import Golden
from vla_jax import plugin, trees, types
from vla_jax.models.importers import _octo_params
from vla_jax.nn import pooling, score, token_learner

FILE = "modules.npz"
CONTEXT = types.Context(name="golden", width=64)


def compare(golden: Golden) -> None:
    """Every module that this house has; reasons for the rest."""
    modules = sorted({name.split("/")[0] for name in golden.files.get(FILE, {})})
    for name in modules:
        parts = trees.unflatten(
            {
                path.removeprefix(f"{name}/").rstrip("/"): leaf
                for path, leaf in golden.files[FILE].items()
                if path.startswith(f"{name}/")
            }
        )
        got = _run(name, parts)
        if got is None:
            golden.excuse(f"{name}/", "no stand-alone module of ours does this", FILE)
            continue
        golden.compare(f"{name}/out", got, file=FILE)
        golden.used |= {f"{FILE}:{n}" for n in golden.names(f"{name}/", FILE) if n != f"{name}/out"}
    golden.excuse("prng/", "random bits are injected, never drawn as Octo draws them")
    golden.excuse("train_dropout", "dropout follows Octo's own random bits")
    for name in golden.files.get("intermediates_item0.npz", {}):
        why = "inside modules whose outputs are compared (outputs.npz)"
        golden.excuse(name, why, "intermediates_item0.npz")


def _run(name: str, parts: dict[str, Any]) -> np.ndarray | None:
    """What our module says of the stored input, None where there is none."""
    if name.startswith(("patch_encoder", "small_stem", "vit_resnet")):
        return _encoder(name, parts)
    if name.startswith("map_head"):
        given = parts["in0"]
        module = pooling.AttentionPool(probes=parts["params"]["probe"].shape[1], unseeing="mean")
        return _apply(
            module, "heads_x/map_head", "heads_x/pool/map", parts, given["tokens"], given["mask"]
        )
    if name.startswith("token_learner"):
        module = token_learner.TokenLearner(parts["out"].shape[-2])
        theirs = "octo_transformer/observation_tokenizers_x/TokenLearner_0"
        return _apply(module, theirs, "tokenizers_x/learner", parts, parts["in0"])
    if name.startswith("fourier"):
        learned = "params" in parts
        module = score.FourierFeatures(parts["out"].shape[-1], learned)
        x = parts["in0"][..., 0]
        variables = {"params": {"frequency": parts["params"]["kernel"][:, 0]}} if learned else {}
        return np.asarray(module.apply(variables, x))
    return None


def _encoder(name: str, parts: dict[str, Any]) -> np.ndarray:
    params, film = parts["params"], parts.get("kw", {}).get("cond_var")
    spec: dict[str, Any] = dict(film=film is not None)
    if name.startswith("patch_encoder"):
        kernel, theirs = params["embedding"]["kernel"], "PatchEncoder_0"
        spec |= dict(type="patchify", patch=kernel.shape[0], features=kernel.shape[-1])
    elif name.startswith("small_stem"):
        widths = [
            params[f"StdConv_{i}"]["bias"].shape[0] for i in range(4) if f"StdConv_{i}" in params
        ]
        kernel, theirs = params["embedding"]["kernel"], "SmallStem_0"
        patch = kernel.shape[0] * 2 ** len(widths)
        spec |= dict(
            type="small_stem", patch=patch, widths=tuple(widths), features=kernel.shape[-1]
        )
    else:
        theirs, blocks = "ViTResnet_0", [key for key in params if key.startswith("block")]
        stages = tuple(len(params[f"block{i + 1}"]) for i in range(len(blocks)))
        width = params["conv_root"]["kernel"].shape[-1]
        spec |= dict(type="resnet", stages=stages, width=width)
    if "imagenet" in name:
        spec["normalize"] = "imagenet"
    module = plugin.build("backbones", spec, CONTEXT)
    prefix = f"octo_transformer/observation_tokenizers_x/{theirs}"
    given = () if film is None else (film,)
    return _apply(module, prefix, "tokenizers_x/encoder", parts, parts["in0"], *given)


def _apply(module, theirs: str, ours: str, parts: dict[str, Any], *given) -> np.ndarray:
    """The module's answer with parameters that come through the importer's own table."""
    flat = {f"{theirs}/{path}": leaf for path, leaf in trees.flatten(parts["params"]).items()}
    placed, unused = _octo_params.place(flat)
    if unused:
        raise plugin.UserError(f"modules.npz: the importer has no place for {list(unused)}")
    prefix = f"params/{ours}/"
    variables = trees.unflatten({path.removeprefix(prefix): leaf for path, leaf in placed.items()})
    return np.asarray(module.apply({"params": variables}, *map(jnp.asarray, given)))
