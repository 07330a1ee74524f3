import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vla_jax.codecs import rotations
from vla_jax.plugin import UserError

SCIPY = {
    **{kind: ("euler", kind.removeprefix("euler_")) for kind in rotations.EULER},
    "rotvec": ("rotvec", None),
    "quat_xyzw": ("quat", None),
}


@pytest.fixture
def turns():
    return Rotation.random(200, random_state=0).as_matrix()


@pytest.mark.parametrize("kind", list(rotations.SIZES))
def test_round_trip(kind, turns):
    values = rotations.from_matrix(turns, kind)
    assert values.shape == (200, rotations.SIZES[kind])
    np.testing.assert_allclose(rotations.to_matrix(values, kind), turns, atol=1e-9)


@pytest.mark.parametrize("kind", list(SCIPY))
def test_agrees_with_scipy(kind, turns):
    form, order = SCIPY[kind]
    arguments = (order,) if order else ()
    expected = getattr(Rotation.from_matrix(turns), f"as_{form}")(*arguments)
    values = rotations.from_matrix(turns, kind)
    if form == "quat":
        expected = np.where(expected[:, 3:] < 0, -expected, expected)
    np.testing.assert_allclose(values, expected, atol=1e-9)


@pytest.mark.parametrize("kind", list(rotations.SIZES))
def test_half_turns_small_turns_and_gimbal_lock(kind):
    values = [(np.pi, 0, 0), (0, np.pi, 0), (0, 0, 0), (1e-9, 0, 0), (0.3, np.pi / 2, 0.5)]
    matrices = rotations.to_matrix(np.array(values), "euler_xyz")
    back = rotations.to_matrix(rotations.from_matrix(matrices, kind), kind)
    np.testing.assert_allclose(back, matrices, atol=1e-7)


def test_errors():
    with pytest.raises(UserError, match="did you mean 'quat_xyzw'"):
        rotations.to_matrix(np.zeros(4), "quat_xyz")
    with pytest.raises(UserError, match="expected \\[..., 4\\]"):
        rotations.to_matrix(np.zeros(3), "quat_wxyz")
    with pytest.raises(UserError, match="length zero"):
        rotations.to_matrix(np.zeros(4), "quat_wxyz")


@pytest.mark.parametrize("kind", list(rotations.SIZES))
@pytest.mark.parametrize("other", list(rotations.SIZES))
def test_kinds_convert_into_each_other(kind, other, turns):
    """By way of another kind the values come back: each kind has one form."""
    values = rotations.from_matrix(turns, kind)
    there = rotations.from_matrix(rotations.to_matrix(values, kind), other)
    back = rotations.from_matrix(rotations.to_matrix(there, other), kind)
    np.testing.assert_allclose(back, values, atol=1e-7)
