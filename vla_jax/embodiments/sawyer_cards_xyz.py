"""The card table's Sawyer with a second camera and no gripper: the smallest other embodiment."""

import dataclasses

from vla_jax.embodiments import sawyer_cards
from vla_jax.types import ActionSpace

EMBODIMENT = dataclasses.replace(
    sawyer_cards.EMBODIMENT,
    name="sawyer_cards_xyz",
    views=("primary", "secondary"),
    action_spaces=(
        ActionSpace(
            name="sawyer_xyz", groups=(sawyer_cards.XYZ,), control_hz=sawyer_cards.CONTROL_HZ
        ),
    ),
)
