"""What tells apart the projects whose checkpoints are read: CrossFormer's code is a fork of Octo's.

Both write the same folder, name their modules alike and describe the network by ModuleSpecs. Octo:
Ghosh et al. 2024; CrossFormer: Doshi et al. 2024 (rail-berkeley/crossformer).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

CANONICAL = "octo_transformer"  # what the table of parameters calls every project's transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Project:
    """One project's conventions.

    Attributes:
      name: as `vla import` calls it; the action space and dataset key of what has no name.
      title: as people call it.
      root: what stands before its transformer's parameters.
      versions: of checkpoints that are known to be read.
      heads: name of an action head -> its default arguments, where they are not ours.
      summed: a continuous loss is the sum over the action's dimensions.
      shifted: masks are shifted unless the config says `use_correct_attention` (Octo 1.0).
      space_per_head: each head has an action space of its own, called as the head, and weighs in
        training what its rows do.
      masked_readings: a reading that is not there is masked; else it counts.
      embedded_by: what embeds sentences where the network has no text encoder.
    """

    name: str
    title: str
    root: str
    versions: str
    heads: Mapping[str, Mapping[str, Any]]
    summed: bool = False
    shifted: bool = False
    space_per_head: bool = False
    masked_readings: bool = False
    embedded_by: str | None = None

    def space(self, head: str) -> str:
        """The action space of a head."""
        return head if self.space_per_head else self.name

    def theirs(self, path: str) -> str:
        """A parameter's canonical path as the project calls it."""
        return self.root + path.removeprefix(CANONICAL) if path.startswith(CANONICAL) else path


OCTO = Project(
    name="octo",
    title="Octo",
    root=CANONICAL,
    versions="1.0 and 1.5",
    heads={
        "ContinuousActionHead": {},
        "MSEActionHead": dict(loss_type="mse", use_map=True),
        "L1ActionHead": dict(loss_type="l1", use_map=True),
        "DiscreteActionHead": {},
        "TokenPerDimActionHead": dict(token_per="action_dim_and_action_horizon"),
        "DiffusionActionHead": {},
    },
    summed=True,
    shifted=True,
)
CROSSFORMER = Project(
    name="crossformer",
    title="CrossFormer",
    root="crossformer_transformer",
    versions="2024",
    heads={
        "ContinuousActionHead": {},
        "L1ActionHead": dict(loss_type="l1"),
    },
    space_per_head=True,
    masked_readings=True,
    embedded_by="universal-sentence-encoder-large/5 of TF-Hub",
)
PROJECTS = (OCTO, CROSSFORMER)
