import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax.data.sources import _picture_row, _places

SHAPE = (60, 100)  # height, width
FRACTION = st.floats(0, 1).map(lambda v: round(v, 4))


@pytest.mark.parametrize(
    "unit, numbers",
    [
        ("fraction", (0.1, 0.5, 0.3, 1.0)),
        ("percent", (10, 50, 30, 100)),
        ("thousandths", (100, 500, 300, 1000)),
        ("pixels", (10, 30, 30, 60)),
        ("square", (0.1, 0.5, 0.3, 0.8)),  # 20 rows of padding above: y = 20 + 30 of 100
    ],
)
def test_units_mean_the_same_box(unit, numbers):
    box = _places.fractions(numbers, unit, "corners", SHAPE)
    np.testing.assert_allclose(box, (0.1, 0.5, 0.3, 1.0), atol=1e-12)
    sized = (*numbers[:2], numbers[2] - numbers[0], numbers[3] - numbers[1])
    if unit != "square":
        np.testing.assert_allclose(_places.fractions(sized, unit, "size", SHAPE), box, atol=1e-12)


def test_padding_to_a_square_pads_the_shorter_side():
    """A tall picture: 40 columns of padding, 20 on each side."""
    point = _places.fractions((0.2, 0.7), "square", "corners", (100, 60))
    np.testing.assert_allclose(point, (0.0, 0.7), atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(FRACTION, FRACTION, st.integers(0, 2**32 - 1))
def test_a_place_stays_on_its_pixel_whatever_is_cut(x, y, seed):
    """Against the picture itself: a white pixel is where the place says, or is not shown."""
    size = (30, 40)
    row, column = min(59, int(y * 60)), min(99, int(x * 100))
    shown = _picture_row.part(SHAPE, size, 0.4, np.random.default_rng(seed))
    place = _places.seen(np.array([(column + 0.5) / 100, (row + 0.5) / 60]), SHAPE, shown)
    top, left, rows, columns = shown
    inside = top <= row < top + rows and left <= column < left + columns
    assert (place is not None) == inside
    if inside:
        image = np.zeros((*SHAPE, 3), np.uint8)
        image[row, column] = 255
        piece = image[top : top + rows, left : left + columns]
        at = np.argwhere(piece[..., 0])[0]
        assert (int(place[1] * rows), int(place[0] * columns)) == tuple(at)


def test_texts_are_rewritten_or_given_up():
    shown = (0, 50, 60, 50)  # the right half
    text = "the cup [0.6, 0.2, 0.8, 0.4] by (0.75, 0.5)"
    assert _places.found(text) == [(0.6, 0.2, 0.8, 0.4), (0.75, 0.5)]
    moved = _places.rewritten(text, "fraction", "corners", SHAPE, shown)
    assert moved == "the cup [0.20, 0.20, 0.60, 0.40] by [0.50, 0.50]"
    cut = "[0.4, 0.2, 0.8, 0.4]"  # its middle is shown, its left edge is not
    moved = _places.rewritten(cut, "fraction", "corners", SHAPE, shown)
    assert moved == "[0.00, 0.20, 0.60, 0.40]"
    assert _places.rewritten("at [0.1, 0.5]", "fraction", "corners", SHAPE, shown) is None
    assert _places.rewritten("no place", "fraction", "corners", SHAPE, shown) == "no place"


def test_places_alone():
    for text in ("[0.1, 0.2]", "[(0.1, 0.2), (0.3, 0.4)].", " [1, 2, 3, 4] "):
        assert _places.alone(text)
    assert not _places.alone("a cup [0.1, 0.2]")


@pytest.mark.parametrize(
    "numbers, unit, form",
    [
        ((10, 20, 30, 40), "fraction", "corners"),
        ((0.5, 0.5, 0.1, 0.1), "fraction", "corners"),
        ((0.5, 0.5, 0.6, 0.6), "fraction", "size"),
        ((120, 20), "pixels", "corners"),
    ],
)
def test_numbers_that_cannot_be_places_are_errors(numbers, unit, form):
    with pytest.raises(ValueError, match=f"unit='{unit}'.*Known: fraction, percent"):
        _places.fractions(numbers, unit, form, SHAPE)
