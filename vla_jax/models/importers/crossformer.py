"""Checkpoints of CrossFormer (Doshi et al. 2024): see `_native.py`, which translates them.

    language_embedding [B, 512] ──FiLM──┐ (of the sentence, made elsewhere)
    a camera, its goal picture ─▶ ResNet-26 ─▶ 49 tokens ┐
    a reading of the body ─▶ a token per number          ├─▶ trunk ─▶ readouts ─▶ four L1 heads
    readouts: a token per action of a head's chunk       ┘

The trunk adds a group's positions to its queries and keys in every layer. Which head answers is a
matter of the action space: bimanual, single_arm, nav or quadruped.
"""

from __future__ import annotations

import functools

from vla_jax.models.importers import _folder, _project
from vla_jax.models.importers._native import Native, batch, check_words, statistics, translate

__all__ = ["Native", "batch", "check_words", "read", "statistics", "translate"]

read = functools.partial(_folder.read, _project.CROSSFORMER)
