"""What is shown before a training: the rows' own pictures, where they point, nothing else."""

import types

import numpy as np
import pytest
from PIL import Image

from vla_jax.evals import pictures
from vla_jax.nn import visibility

SIDE = 16  # of an image, in pixels
TILE = SIDE * pictures.SCALE
HEIGHT = TILE + pictures.CAPTION
RED, WHITE = (255, 0, 0), (255, 255, 255)


def quadrants(rng):
    """uint8 [SIDE, SIDE, 3] of four colours, and these [2, 2, 3]; none of them red or white."""
    colours = rng.integers(0, 200, (2, 2, 3), np.uint8)
    return colours.repeat(SIDE // 2, 0).repeat(SIDE // 2, 1), colours


def row(seed, *, views=("primary",), point=None, real=True, ids=()):
    """A row of window 2, as a mixture gives it; the older image must not be shown."""
    rng = np.random.default_rng(seed)
    images = {v: np.stack([quadrants(rng)[0], quadrants(rng)[0]]) for v in views}
    language = np.array([*ids, 0], np.int32)
    made = dict(
        observation=dict(images=images),
        task=dict(values={"language": language}, masks={"language": language > 0}),
        targets={},
        target_masks={},
    )
    if point is not None:
        made["targets"]["point"] = np.array([[0.1, 0.1], point], np.float32)
        made["target_masks"]["point"] = np.array([True, real])
    return made


class Words:
    """Stands in for a text tokenizer; `.asked` is what it was to say."""

    def __init__(self):
        self.asked = []

    def decode(self, ids):
        self.asked.append(list(ids))
        return "touch the piñata 猫"


def tiles(image, wide, high=HEIGHT):
    """[row, column, high, wide, 3] of a sheet."""
    rows, columns = image.shape[0] // high, image.shape[1] // wide
    return image.reshape(rows, high, columns, wide, 3).swapaxes(1, 2)


def red(image):
    """(ys, xs) of the pixels that are red."""
    return np.nonzero(np.all(image == RED, axis=-1))


@pytest.mark.parametrize("views", [("primary",), ("primary", "wrist")])
@pytest.mark.parametrize("count", [1, 8, 11])
def test_every_image_stands_in_its_place_and_the_rest_is_blank(count, views):
    rows = [row(i, views=views) for i in range(count)]
    image = pictures.sheet(rows, None)
    lines = -(-count // pictures.COLUMNS)
    wide = TILE * len(views)
    assert image.dtype == np.uint8
    assert image.shape == (lines * HEIGHT, pictures.COLUMNS * wide, 3)
    found = tiles(image, wide).reshape(-1, HEIGHT, wide, 3)
    for shown, given in zip(found, rows):
        for i, view in enumerate(views):
            newest = given["observation"]["images"][view][-1]
            middle = slice(SIDE // 4, None, SIDE // 2)  # of each quadrant
            centres = slice(TILE // 4, None, TILE // 2)
            part = shown[:TILE, i * TILE : (i + 1) * TILE]
            np.testing.assert_array_equal(part[centres, centres], newest[middle, middle])
        assert np.all(shown[TILE:] == 255)  # nothing is said without a text tokenizer
        assert not len(red(shown)[0])
    assert np.all(found[count:] == 255)


@pytest.mark.parametrize("point", [(0.5, 0.5), (0.25, 0.75), (0.9, 0.4)])
def test_the_cross_is_at_the_point(point):
    found = tiles(pictures.sheet([row(0), row(1, point=point)], None), TILE)[0]
    ys, xs = red(found[1])
    centre = np.array([np.median(xs), np.median(ys)])
    np.testing.assert_allclose(centre, np.array(point) * TILE, atol=1)
    for here, others in ((xs, ys), (ys, xs)):  # two lines, each a pixel wide
        assert len(np.unique(here[others != np.median(others)])) == 1
    assert not len(red(found[0])[0])


def test_a_point_that_is_not_real_is_not_shown():
    rows = [row(0, point=(0.5, 0.5), real=False), row(1, point=(0.5, 0.5))]
    found = tiles(pictures.sheet(rows, None), TILE)[0]
    assert not len(red(found[0])[0]) and len(red(found[1])[0])


def test_the_instruction_is_written_below_its_own_picture():
    words = Words()
    rows = [row(0), row(1, ids=(5, 7))]
    found = tiles(pictures.sheet(rows, words), TILE)[0]
    assert words.asked == [[], [5, 7]]  # no padding
    assert np.any(found[1][TILE:] < 128)
    np.testing.assert_array_equal(
        found[0][:TILE], tiles(pictures.sheet(rows, None), TILE)[0, 0, :TILE]
    )


def test_a_stream_without_cameras_says_what_is_asked():
    blind = row(0, views=(), ids=(5,))
    image = pictures.sheet([blind], Words())
    assert image.shape[0] == pictures.CAPTION * (pictures.SCALE + 1) and np.any(image < 128)


class Mixture:
    """Sample n is a row of its own, and was asked for."""

    def __init__(self, views):
        self.views, self.asked = views, []

    def sample(self, n):
        self.asked.append(n)
        return row(n, views=self.views, point=(0.5, 0.5))


def test_a_pair_of_pictures_per_stream(tmp_path):
    from tests.models import tiny

    config = tiny.config()
    mixtures = dict(robot=Mixture(("primary", "wrist")), vl=Mixture(("primary",)))
    assembly = types.SimpleNamespace(
        config=config, mixtures=mixtures, network=tiny.network(config), text_tokenizer=None
    )
    pictures.write(assembly, str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("batch_robot.png", "batch_vl.png", "visibility_robot.png", "visibility_vl.png")
    ]
    rules = visibility.make(config.model.rules)
    for name, mix in mixtures.items():
        assert mix.asked == list(range(16))  # the first rows of the training itself
        shown = np.asarray(Image.open(tmp_path / f"batch_{name}.png"))
        again = pictures.sheet([mix.sample(n) for n in range(16)], None)
        np.testing.assert_array_equal(shown, again)
        seen = np.asarray(Image.open(tmp_path / f"visibility_{name}.png"))
        layout = assembly.network.layout(name)
        np.testing.assert_array_equal(seen, visibility.image(layout, rules))
