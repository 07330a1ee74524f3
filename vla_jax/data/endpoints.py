"""Where an episode ends: a proprio group's last reading, and its place in a camera's image."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vla_jax import plugin
from vla_jax.data.episodes import Episodes
from vla_jax.types import Embodiment


def project(camera: np.ndarray, points: np.ndarray) -> np.ndarray:
    """float32 [..., 2]: world points [..., 3] (m) in image fractions (x right, y down).

    NaN behind the camera. `camera` is [..., 3, 4].
    """
    ones = np.ones_like(points[..., :1])
    seen = np.einsum("...ij,...j->...i", camera, np.concatenate([points, ones], axis=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        place = seen[..., :2] / seen[..., 2:]
    return np.where(seen[..., 2:] > 0, place, np.nan).astype(np.float32)


def targets(
    where: str,
    episodes: Episodes,
    body: Embodiment,
    proprio: Mapping[str, np.ndarray],
    group: str | None,
    view: str | None,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(waypoint [E, P] normalized, point [E, 2], -1 where unseen) of a proprio group and a view.

    None for what is not asked. `proprio` is normalized, the table's own is in raw units. Raises
    UserError for an unknown group, and for a view without the cameras' projections.
    """
    if group is None:
        if view is not None:
            raise plugin.UserError(
                f"{where}: point_view={view!r} needs waypoint_group, the group whose last "
                "reading is projected"
            )
        return None, None
    if group not in proprio:
        raise plugin.UserError(plugin.unknown(f"{where}: waypoint_group", group, proprio))
    last = episodes.start[1:] - 1
    waypoint = proprio[group][last]
    if view is None:
        return waypoint, None
    if view not in episodes.cameras:
        raise plugin.UserError(
            f"{where}: point_view={view!r}: the episodes have cameras of "
            f"{sorted(episodes.cameras)} (episode_metadata/camera/<view>), expected this view's "
            "3x4 projection; leave point_view out or collect the data again"
        )
    scale = next(g.scale for g in body.proprio if g.name == group)
    place = episodes.proprio[group][last, :3] * np.float32(scale)
    return waypoint, np.nan_to_num(project(episodes.cameras[view], place), nan=-1.0)
