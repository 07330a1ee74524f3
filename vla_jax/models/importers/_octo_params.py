"""Where each parameter of an Octo checkpoint goes: a first-match table of regexes over its paths.

A row is (Octo's path, our path). What a pattern calls `layer` becomes the leading axis of a stacked
parameter. Shapes are the same but for position tables, which lose Octo's leading axis of size 1.
Octo's paths: octo_module.py, transformer.py, tokenizers.py, vit_encoders.py, action_heads.py,
diffusion.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from vla_jax import plugin

LAYER = r"octo_transformer/BlockTransformer_0/Transformer_0/encoderblock_(?P<layer>\d+)"
OURS = "params/trunk/layers/trunk"
SEEN = r"octo_transformer/observation_tokenizers_(\w+?)"
STEM = SEEN + r"/SmallStem\d*_0"
POOL = r"MultiHeadDotProductAttention_0"
ROWS: tuple[tuple[str, str], ...] = (
    # ------------------------------------------------------------------------------------ trunk
    (LAYER + r"/LayerNorm_0/(\w+)", OURS + r"/attention_norm/\2"),
    (LAYER + r"/MultiHeadDotProductAttention_0/(query|key|value|out)/(\w+)", OURS + r"/\2/\3"),
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
    (STEM + r"/StdConv_(\d)/(\w+)", r"params/tokenizers_\1/encoder/conv_\2/\3"),
    (STEM + r"/GroupNorm_(\d)/(\w+)", r"params/tokenizers_\1/encoder/norm_\2/\3"),
    (STEM + r"/embedding/(\w+)", r"params/tokenizers_\1/encoder/embed/\2"),
)


def place(parameters: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """({our path: array}, Octo's paths that no row matches) of {Octo's path: array}.

    UserError when the layers of a stacked parameter have gaps or several shapes.
    """
    made: dict[str, np.ndarray] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    unused = []
    for path, value in parameters.items():
        for pattern, ours in ROWS:
            match = re.fullmatch(pattern, path)
            if match is None:
                continue
            target = match.expand(ours)
            if "layer" in match.groupdict():
                stacks.setdefault(target, {})[int(match["layer"])] = value
            else:
                made[target] = value[0] if target.startswith("params/positions_") else value
            break
        else:
            unused.append(path)
    for target, layers in stacks.items():
        made[target] = _stacked(target, layers)
    return made, tuple(unused)


def _stacked(target: str, layers: Mapping[int, np.ndarray]) -> np.ndarray:
    """[layer, …]: the layers' arrays in order."""
    shapes = {array.shape for array in layers.values()}
    if sorted(layers) != list(range(len(layers))) or len(shapes) > 1:
        raise plugin.UserError(
            f"octo checkpoint: {target} comes from layers {sorted(layers)} of shapes "
            f"{sorted(shapes)}; expected every layer once, of one shape. The checkpoint is damaged"
        )
    return np.stack([layers[i] for i in range(len(layers))])
