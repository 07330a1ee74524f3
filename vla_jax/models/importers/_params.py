"""Where each parameter of a checkpoint goes: a first-match table of regexes over its paths.

A row is (Octo's path, our path); CrossFormer's paths are Octo's but for their root (_project.py).
What a pattern calls `layer` becomes the leading axis of a stacked parameter. Shapes are the same
but for axes of size 1 (see LEADING). Octo's paths: octo_module.py, transformer.py, tokenizers.py,
vit_encoders.py, action_heads.py, diffusion.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from vla_jax import plugin
from vla_jax.models.importers import _project

LAYER = r"octo_transformer/BlockTransformer_0/Transformer_0/encoderblock_(?P<layer>\d+)"
OURS = "params/trunk/layers/trunk"
SEEN = r"octo_transformer/observation_tokenizers_(\w+)"
STEM, ENCODER = SEEN + r"/SmallStem\d*_0", r"params/tokenizers_\1/encoder"
PATCHES, LEARNER = SEEN + r"/PatchEncoder_0", SEEN + r"/TokenLearner_0"
RESNET = SEEN + r"/(?:ViTResnet|ResNet26FILM|ResNet26)_0"
UNIT, OUR_UNIT = RESNET + r"/block(\d+)/unit(\d+)", ENCODER + r"/stage_\2_unit_\3"
ATTEND = r"MultiHeadDotProductAttention_0"
NOISE = r"heads_(\w+)/diffusion_model"


def _pool(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """The rows of a MAPHead."""
    return (
        (theirs + r"/probe", ours + r"/probe"),
        (theirs + rf"/{ATTEND}/(query|key|value|out)/(\w+)", ours + r"/\2/\3"),
        (theirs + r"/LayerNorm_0/(\w+)", ours + r"/norm/\2"),
        (theirs + r"/MlpBlock_0/Dense_0/(\w+)", ours + r"/mlp/hidden_0/\2"),
        (theirs + r"/MlpBlock_0/Dense_1/(\w+)", ours + r"/mlp/out/\2"),
    )


ROWS: tuple[tuple[str, str], ...] = (
    # ------------------------------------------------------------------------------------ trunk
    (LAYER + r"/LayerNorm_0/(\w+)", OURS + r"/attention_norm/\2"),
    (LAYER + rf"/{ATTEND}/(query|key|value|out)/(\w+)", OURS + r"/\2/\3"),
    (LAYER + r"/LayerNorm_1/(\w+)", OURS + r"/mlp_norm/\2"),
    (LAYER + r"/MlpBlock_0/Dense_0/(\w+)", OURS + r"/mlp/hidden_0/\2"),
    (LAYER + r"/MlpBlock_0/Dense_1/(\w+)", OURS + r"/mlp/out/\2"),
    (
        r"octo_transformer/BlockTransformer_0/Transformer_0/encoder_norm/(\w+)",
        r"params/trunk/final_norm_trunk/\1",
    ),
    # ------------------------------------------------------------------- positions, projections
    (r"octo_transformer/(?:obs|task)_(\w+)_pos_embedding", r"params/positions_\1/table"),
    (r"octo_transformer/(readout_\w+)_pos_embedding", r"params/positions_\1/table"),
    (r"octo_transformer/(?:obs|task)_(\w+)_projection/(\w+)", r"params/tokenizers_\1/project/\2"),
    # --------------------------------------------------------------------------- image encoders
    (STEM + r"/StdConv_(\d)/(\w+)", ENCODER + r"/conv_\2/\3"),
    (STEM + r"/GroupNorm_(\d)/(\w+)", ENCODER + r"/norm_\2/\3"),
    (STEM + r"/embedding/(\w+)", ENCODER + r"/embed/\2"),
    (STEM + r"/FilmConditioning_0/Dense_0/(\w+)", ENCODER + r"/film/scale/\2"),
    (STEM + r"/FilmConditioning_0/Dense_1/(\w+)", ENCODER + r"/film/shift/\2"),
    (PATCHES + r"/embedding/(\w+)", ENCODER + r"/embed/\2"),
    (PATCHES + r"/FilmConditioning_0/Dense_0/(\w+)", ENCODER + r"/film/scale/\2"),
    (PATCHES + r"/FilmConditioning_0/Dense_1/(\w+)", ENCODER + r"/film/shift/\2"),
    (RESNET + r"/conv_root/kernel", ENCODER + r"/conv_root/kernel"),
    (RESNET + r"/gn_root/(\w+)", ENCODER + r"/norm_root/\2"),
    (UNIT + r"/conv(\d)/kernel", OUR_UNIT + r"/conv_\4/kernel"),
    (UNIT + r"/conv_proj/kernel", OUR_UNIT + r"/conv_skip/kernel"),
    (UNIT + r"/gn(\d)/(\w+)", OUR_UNIT + r"/norm_\4/\5"),
    (UNIT + r"/gn_proj/(\w+)", OUR_UNIT + r"/norm_skip/\4"),
    (RESNET + r"/FilmConditioning_(\d+)/Dense_0/(\w+)", ENCODER + r"/film_\2/scale/\3"),
    (RESNET + r"/FilmConditioning_(\d+)/Dense_1/(\w+)", ENCODER + r"/film_\2/shift/\3"),
    (LEARNER + r"/pos_embed", r"params/tokenizers_\1/learner/positions/table"),
    (LEARNER + r"/LayerNorm_0/(\w+)", r"params/tokenizers_\1/learner/norm/\2"),
    *_pool(LEARNER + r"/MAPHead_0", r"params/tokenizers_\1/learner/pool"),
    # ------------------------------------------------------------------------------------ heads
    *_pool(r"heads_(\w+)/map_head", r"params/heads_\1/pool/map"),
    (r"heads_(\w+)/mean_proj/(\w+)", r"params/heads_\1/mlp/out/\2"),
    (r"heads_(\w+)/vocab_proj/(\w+)", r"params/heads_\1/project/\2"),
    (NOISE + r"/time_preprocess/kernel", r"params/heads_\1/score/time/frequency"),
    (NOISE + r"/cond_encoder/Dense_0/(\w+)", r"params/heads_\1/score/time_hidden/\2"),
    (NOISE + r"/cond_encoder/Dense_1/(\w+)", r"params/heads_\1/score/time_out/\2"),
    (NOISE + r"/reverse_network/Dense_0/(\w+)", r"params/heads_\1/score/project/\2"),
    (NOISE + r"/reverse_network/Dense_1/(\w+)", r"params/heads_\1/score/out/\2"),
    (
        NOISE + r"/reverse_network/MLPResNetBlock_(\d+)/LayerNorm_0/(\w+)",
        r"params/heads_\1/score/norm_\2/\3",
    ),
    (
        NOISE + r"/reverse_network/MLPResNetBlock_(\d+)/Dense_0/(\w+)",
        r"params/heads_\1/score/mlp_\2/hidden_0/\3",
    ),
    (
        NOISE + r"/reverse_network/MLPResNetBlock_(\d+)/Dense_1/(\w+)",
        r"params/heads_\1/score/mlp_\2/out/\3",
    ),
)
# Our paths whose arrays Octo stores with an axis of size 1 more: leading, or trailing.
LEADING = (r"params/positions_.*", r".*/probe")
TRAILING = (r".*/score/time/frequency",)


def place(
    parameters: Mapping[str, np.ndarray], project: _project.Project = _project.OCTO
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """({our path: array}, Octo's paths that no row matches) of {Octo's path: array}.

    UserError, in the `project`'s names, when the layers of a stacked parameter have gaps or several
    shapes.
    """
    made: dict[str, np.ndarray] = {}
    stacks: dict[str, dict[int, str]] = {}
    unused = []
    for path, value in parameters.items():
        target, layer = _target(path)
        if target is None:
            unused.append(path)
        elif layer is None:
            made[target] = _squeezed(target, value)
        else:
            stacks.setdefault(target, {})[layer] = path
    depth = 1 + max((layer for layers in stacks.values() for layer in layers), default=0)
    for target, layers in stacks.items():
        made[target] = _stacked(layers, depth, parameters, project)
    return made, tuple(unused)


def origins(paths: Iterable[str]) -> dict[str, list[str]]:
    """{our path: Octo's paths that it is made of}."""
    found: dict[str, list[str]] = {}
    for path in paths:
        target, _ = _target(path)
        if target is not None:
            found.setdefault(target, []).append(path)
    return found


def theirs(path: str) -> str:
    """What Octo calls our `path`: a name, with * and a|b where several would do."""
    for pattern, ours in ROWS:
        parts = re.split(r"\\(\d)", ours)  # text, number of a group, text, …
        seen: list[str] = []
        known = ""
        for i, part in enumerate(parts):
            if i % 2:
                known += rf"(?P=g{part})" if part in seen else rf"(?P<g{part}>\w+?)"
                seen.append(part)
            else:
                known += re.escape(part)
        match = re.fullmatch(known, path)
        if match is None:
            continue
        # Its first group becomes what \1 was, and so on; one that ours does not name becomes *.
        pattern = re.sub(r"\\d[*+]", "*", re.sub(r"\(\?:([^()]*)\)", r"\1", pattern))
        pieces = re.split(r"\([^()]*\)", pattern)
        named = [match[f"g{i}"] if str(i) in seen else "*" for i in range(1, len(pieces))]
        return "".join(map("".join, zip(pieces, [*named, ""])))
    return "nothing of Octo's"


def _target(path: str) -> tuple[str | None, int | None]:
    """(our path of Octo's, its layer where it is stacked); (None, None) where no row matches."""
    for pattern, ours in ROWS:
        match = re.fullmatch(pattern, path)
        if match is not None:
            layer = match["layer"] if "layer" in match.groupdict() else None
            return match.expand(ours), None if layer is None else int(layer)
    return None, None


def _squeezed(target: str, value: np.ndarray) -> np.ndarray:
    """Without the axis of size 1 that Octo's has; a shape that lacks it is judged by the caller."""
    if any(re.fullmatch(pattern, target) for pattern in LEADING) and value.shape[0] == 1:
        return value[0]
    if any(re.fullmatch(pattern, target) for pattern in TRAILING) and value.shape[-1] == 1:
        return value[..., 0]
    return value


def _stacked(
    layers: Mapping[int, str],
    depth: int,
    parameters: Mapping[str, np.ndarray],
    project: _project.Project,
) -> np.ndarray:
    """[layer, …]: the arrays of Octo's paths `layers` in order."""
    said = f"{project.name} checkpoint"
    for i in range(depth):
        if i not in layers:
            number, other = next(iter(layers.items()))
            name = other.replace(f"encoderblock_{number}/", f"encoderblock_{i}/")
            raise plugin.UserError(
                f"{said}: {project.theirs(name)} is missing; expected {parameters[other].shape}, "
                f"as {project.theirs(other)} is; the checkpoint is damaged"
            )
        if parameters[layers[i]].shape != parameters[layers[0]].shape:
            raise plugin.UserError(
                f"{said}: {project.theirs(layers[i])} is {parameters[layers[i]].shape}, expected "
                f"{parameters[layers[0]].shape} as {project.theirs(layers[0])} is; the checkpoint "
                "is damaged"
            )
    return np.stack([parameters[layers[i]] for i in range(depth)])
