"""The untrained nearest neighbour between artists."""

import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.evals import similarity


def drawings(seed, number=8):
    """`{name: uint8 [64, 64, 4]}`: blobs of random outline and colour, no two alike."""
    rng = np.random.default_rng(seed)
    pictures = {}
    for i in range(number):
        rgba = np.zeros((64, 64, 4), np.uint8)
        outline = np.kron(rng.random((8, 8)) > 0.5, np.ones((8, 8))) > 0
        rgba[outline] = (*rng.integers(0, 256, 3), 255)
        pictures[f"n{i}"] = rgba
    return pictures


@pytest.mark.parametrize("seed", range(3))
def test_the_same_artist_is_always_right(seed):
    cards = drawings(seed)
    assert similarity.likeness(cards, [cards]) == {"silhouette": 1, "pixels": 1, "color": 1}
    assert min(similarity.likeness(cards, [drawings(seed + 50), cards]).values()) == 1


def test_unrelated_drawings_are_near_chance():
    result = similarity.likeness(drawings(0, 60), [drawings(1, 60)], draws=50)
    assert all(0.1 < fraction < 0.45 for fraction in result.values())


def test_a_smaller_drawing_is_the_same_silhouette():
    cards = drawings(0)
    shrunk = {
        name: np.pad(rgba[::2, ::2], ((5, 27), (20, 12), (0, 0))) for name, rgba in cards.items()
    }
    assert similarity.likeness(cards, [shrunk])["silhouette"] == 1


def test_identical_choices_are_no_success():
    cards = dict.fromkeys("abcd", drawings(0)["n0"])
    assert set(similarity.likeness(cards, [cards]).values()) == {0.0}


def test_names_that_differ_are_refused():
    cards = drawings(0)
    with pytest.raises(plugin.UserError, match="differ in .'n7'"):
        similarity.likeness(cards, [drawings(0, 7)])
    with pytest.raises(plugin.UserError, match="4 or more cards"):
        similarity.likeness(drawings(0, 3), [drawings(0, 3)])
