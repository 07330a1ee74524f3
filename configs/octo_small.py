"""Octo-Small: its trunk (vit_s), window and token counts, trained on robot episodes.

vla train --config configs/octo_small.py:data=data/bridge_dataset/1.0.0 --workdir runs/octo_small

Arguments: data; text_tokenizer, made by `vla data text-tokenizer`; steps, batch_size, workers.
"""

import octo_parts


def get_config(arg=""):
    """The config as a table of settings."""
    return octo_parts.build("small", octo_parts.arguments(arg))
