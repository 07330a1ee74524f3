"""Data in our own nouns, as `vla data collect` writes them (RLDS):

steps/action                        float32 [A]
steps/language_instruction          text
steps/observation/images/<view>     uint8 image
steps/observation/proprio/<group>   float32 [P]
episode_metadata/{episode_id, embodiment, action_space, …}
episode_metadata/camera/<view>      float32 [3, 4], world to image fractions
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from vla_jax import plugin
from vla_jax.data import episodes

IMAGES = "steps/observation/images/"
IMAGE_MASKS = "steps/observation/image_masks/"
PROPRIO = "steps/observation/proprio/"
METADATA = "episode_metadata/"
REQUIRED = (
    "steps/action",
    "steps/language_instruction",
    METADATA + "episode_id",
    METADATA + "embodiment",
    METADATA + "action_space",
)
DEBUG: dict = {}


def make(context) -> NativeStandardizer:
    """The standardizer of data in our own nouns."""
    return NativeStandardizer()


class NativeStandardizer:
    """Takes columns as they are; views and proprio groups are those that the data set has."""

    def views(self, features: Iterable[str]) -> dict[str, str]:
        """View -> full name of its image column."""
        return {name.removeprefix(IMAGES): name for name in features if name.startswith(IMAGES)}

    def columns(self, features: Iterable[str]) -> set[str]:
        """Full names of the low-dimensional columns that `episode` reads; UserError if absent."""
        missing = sorted(set(REQUIRED) - set(features))
        if missing:
            raise plugin.UserError(
                f"standardizer 'native': the data set lacks {missing}; expected the layout that "
                "`vla data collect` writes. For other data name a standardizer, e.g. "
                "dict(type='oxe', row='bridge')."
            )
        return {
            n for n in features if n.startswith((PROPRIO, METADATA, IMAGE_MASKS)) or n in REQUIRED
        }

    def episode(self, columns: Mapping, length: int, where: str) -> episodes.Episode:
        """The episode in our nouns; `columns` are those named by `columns`."""
        metadata = {
            name.removeprefix(METADATA): value
            for name, value in columns.items()
            if name.startswith(METADATA)
        }
        cameras = {
            name.removeprefix("camera/"): np.asarray(value, np.float32).reshape(3, 4)
            for name, value in metadata.items()
            if name.startswith("camera/")
        }
        return episodes.Episode(
            id=str(metadata["episode_id"]),
            steps=np.arange(length),
            action=columns["steps/action"].reshape(length, -1),
            proprio={
                name.removeprefix(PROPRIO): columns[name].reshape(length, -1)
                for name in sorted(columns)
                if name.startswith(PROPRIO)
            },
            language=[text.strip() for text in columns["steps/language_instruction"]],
            embodiment=str(metadata["embodiment"]),
            action_space=str(metadata["action_space"]),
            image_masks={
                name.removeprefix(IMAGE_MASKS): value.astype(bool)
                for name, value in columns.items()
                if name.startswith(IMAGE_MASKS)
            },
            cameras=cameras,
            metadata={k: v for k, v in metadata.items() if not k.startswith("camera/")},
        )
