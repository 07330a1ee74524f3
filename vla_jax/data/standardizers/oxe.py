"""Rows for data sets of Open X-Embodiment in RLDS: ``dict(type="oxe", row="bridge")``."""

from __future__ import annotations

from vla_jax import plugin
from vla_jax.data.standardizers import _table
from vla_jax.data.standardizers._table import Field, Row

ROWS = {
    # BridgeData V2 as RLDS (rail.eecs.berkeley.edu/datasets/bridge_release). The first action of
    # every episode is zero and is left out, as OpenVLA does (bridge_orig_dataset_transform in its
    # transforms.py). The flags has_image_* are wrong and are not read.
    "bridge": Row(
        embodiment="widowx",
        action_space="ee_delta_gripper",
        views={
            "primary": "observation/image_0",
            "secondary": "observation/image_1",
        },
        action=(Field("action"),),  # xyz delta, rpy delta, gripper (1 = open)
        proprio={"ee": (Field("observation/state"),)},  # xyz, rpy, gripper
        language="language_instruction",
        drop_first=1,
        episode_id=("file_path", "episode_id"),  # the number alone repeats
    ),
}
DEBUG: dict = {}


def make(context, *, row: str) -> _table.TableStandardizer:
    """The standardizer of one row; UserError for an unknown row, naming the nearest."""
    if row not in ROWS:
        raise plugin.UserError(
            plugin.unknown(f"data.standardizers.oxe ({context.name})", row, ROWS)
        )
    return _table.TableStandardizer(row, ROWS[row])
