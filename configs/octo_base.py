"""Octo-Base (vit_b) as released, its T5 frozen, trained on robot episodes; see octo_parts.py.

vla train --config configs/octo_base.py:t5=data/t5-base --workdir runs/octo_base

Arguments: data, Bridge as RLDS; t5, a folder with T5-base's model.safetensors and spiece.model;
steps, batch_size, workers.
"""

import octo_parts


def get_config(arg=""):
    """The config as a table of settings."""
    return octo_parts.build("base", octo_parts.arguments(arg))
