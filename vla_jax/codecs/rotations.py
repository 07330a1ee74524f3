"""Rotation values ↔ matrices in numpy: euler angles, rotation vectors, quaternions, 6D.

euler_xyz    [3]  rad; extrinsic, in the order of the letters: euler_xyz is roll-pitch-yaw,
                  R = Rz(yaw) Ry(pitch) Rx(roll); any order of the three letters
rotvec       [3]  rad; axis times angle
quat_wxyz    [4]  unit quaternion, and quat_xyzw; w >= 0 comes back
6d           [6]  the first two columns of R, one after the other (Zhou et al. 2019)
"""

from __future__ import annotations

import numpy as np

from vla_jax import plugin

EULER = tuple(f"euler_{order}" for order in ("xyz", "xzy", "yxz", "yzx", "zxy", "zyx"))
SIZES = {**dict.fromkeys(EULER, 3), "rotvec": 3, "quat_wxyz": 4, "quat_xyzw": 4, "6d": 6}


def to_matrix(values: np.ndarray, kind: str) -> np.ndarray:
    """float64 [..., 3, 3] of rotation values [..., n]; UserError on an unknown kind or another n.

    Quaternions and 6D values need not be normalised.
    """
    values = np.asarray(values, np.float64)
    _check(kind, values.shape)
    if kind in EULER:
        return _from_euler(values, kind.removeprefix("euler_"))
    if kind == "rotvec":
        return _from_rotvec(values)
    if kind == "6d":
        first = _unit(values[..., :3])
        second = values[..., 3:]
        second = _unit(second - np.sum(first * second, -1, keepdims=True) * first)
        return np.stack([first, second, np.cross(first, second)], -1)
    return _from_quaternion(np.roll(values, 1, -1) if kind == "quat_xyzw" else values)


def from_matrix(matrix: np.ndarray, kind: str) -> np.ndarray:
    """Rotation values [..., n] of matrices [..., 3, 3]; UserError on an unknown kind.

    Where euler angles are not unique (gimbal lock) the angle about the last axis is zero.
    """
    matrix = np.asarray(matrix, np.float64)
    _check(kind, None)
    if kind in EULER:
        return _to_euler(matrix, kind.removeprefix("euler_"))
    if kind == "6d":
        return np.concatenate([matrix[..., :, 0], matrix[..., :, 1]], -1)
    quaternion = _to_quaternion(matrix)
    if kind == "rotvec":
        sine = np.linalg.norm(quaternion[..., 1:], axis=-1, keepdims=True)
        angle = 2.0 * np.arctan2(sine, quaternion[..., :1])
        # angle / sin(angle / 2) is 2 at zero
        ratio = np.where(sine > 1e-12, angle / np.maximum(sine, 1e-12), 2.0)
        return quaternion[..., 1:] * ratio
    return np.roll(quaternion, -1, -1) if kind == "quat_xyzw" else quaternion


def _check(kind: str, shape) -> None:
    if kind not in SIZES:
        raise plugin.UserError(plugin.unknown("rotation", kind, SIZES))
    if shape is not None and (not shape or shape[-1] != SIZES[kind]):
        raise plugin.UserError(f"rotation {kind}: got shape {shape}, expected [..., {SIZES[kind]}]")


def _unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector, axis=-1, keepdims=True)
    if np.any(length < 1e-9):
        raise plugin.UserError("rotation: a vector of length zero is no rotation")
    return vector / length


def _axis(axis: int, angle: np.ndarray) -> np.ndarray:
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.zeros((*angle.shape, 3, 3))
    matrix[..., axis, axis] = 1.0
    matrix[..., i, i] = matrix[..., j, j] = np.cos(angle)
    matrix[..., i, j], matrix[..., j, i] = -np.sin(angle), np.sin(angle)
    return matrix


def _from_euler(angles: np.ndarray, order: str) -> np.ndarray:
    first, second, third = ("xyz".index(letter) for letter in order)
    turned = _axis(second, angles[..., 1]) @ _axis(first, angles[..., 0])
    return _axis(third, angles[..., 2]) @ turned


def _to_euler(matrix: np.ndarray, order: str) -> np.ndarray:
    i, j, k = ("xyz".index(letter) for letter in order)
    sign = 1.0 if (i + 1) % 3 == j else -1.0  # parity of the order
    sine = np.clip(-sign * matrix[..., k, i], -1.0, 1.0)
    locked = np.abs(sine) > 1.0 - 1e-12
    first = np.arctan2(sign * matrix[..., k, j], matrix[..., k, k])
    third = np.arctan2(sign * matrix[..., j, i], matrix[..., i, i])
    alone = np.arctan2(-sign * matrix[..., j, k], matrix[..., j, j])
    return np.stack(
        [np.where(locked, alone, first), np.arcsin(sine), np.where(locked, 0.0, third)], -1
    )


def _from_rotvec(rotvec: np.ndarray) -> np.ndarray:
    angle = np.linalg.norm(rotvec, axis=-1, keepdims=True)
    # sin(angle / 2) / angle, 1/2 at zero
    ratio = 0.5 * np.sinc(angle / (2.0 * np.pi))
    return _from_quaternion(np.concatenate([np.cos(angle / 2), rotvec * ratio], -1))


def _from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    w, x, y, z = np.moveaxis(_unit(quaternion), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def _to_quaternion(matrix: np.ndarray) -> np.ndarray:
    """[..., 4] w first, w >= 0: the best conditioned of the four ways (Shepperd 1978)."""
    m = matrix
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    wx, wy, wz = (
        m[..., 2, 1] - m[..., 1, 2],
        m[..., 0, 2] - m[..., 2, 0],
        m[..., 1, 0] - m[..., 0, 1],
    )
    xy, xz, yz = (
        m[..., 0, 1] + m[..., 1, 0],
        m[..., 0, 2] + m[..., 2, 0],
        m[..., 1, 2] + m[..., 2, 1],
    )
    table = [
        [1 + xx + yy + zz, wx, wy, wz],
        [wx, 1 + xx - yy - zz, xy, xz],
        [wy, xy, 1 - xx + yy - zz, yz],
        [wz, xz, yz, 1 - xx - yy + zz],
    ]
    outer = np.stack([np.stack(row, -1) for row in table], -2)  # 4 q qᵀ
    best = np.argmax(np.diagonal(outer, axis1=-2, axis2=-1), -1)
    quaternion = _unit(np.take_along_axis(outer, best[..., None, None], -2)[..., 0, :])
    return np.where(quaternion[..., :1] < 0, -quaternion, quaternion)
