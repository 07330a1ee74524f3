"""Octo-Base: its trunk (vit_b), window and token counts, trained on robot episodes.

vla train --config configs/octo_base.py:data=data/bridge_dataset/1.0.0 --workdir runs/octo_base

Arguments: data; text_tokenizer, made by `vla data text-tokenizer`; steps, batch_size, workers.
"""

import octo_parts


def get_config(arg=""):
    """The config as a table of settings."""
    return octo_parts.build("base", octo_parts.arguments(arg))
