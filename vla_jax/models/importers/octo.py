"""Checkpoints of Octo 1.0 and 1.5 (Ghosh et al. 2024): see `_native.py`, which translates them."""

from __future__ import annotations

import functools

from vla_jax.models.importers import _folder, _project
from vla_jax.models.importers._native import Native, batch, check_words, statistics, translate

__all__ = ["Native", "batch", "check_words", "read", "statistics", "translate"]

read = functools.partial(_folder.read, _project.OCTO)
