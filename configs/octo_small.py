"""Octo-Small (vit_s) as released, its T5 frozen, trained on robot episodes; see octo_parts.py.

vla train --config configs/octo_small.py:t5=data/t5-base --workdir runs/octo_small

Arguments: data, Bridge as RLDS; t5, a folder with T5-base's model.safetensors and spiece.model;
steps, batch_size, workers.
"""

import octo_parts


def get_config(arg=""):
    """The config as a table of settings."""
    return octo_parts.build("small", octo_parts.arguments(arg))
