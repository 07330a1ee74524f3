import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tokenizers.test_contract import Host, batch, spec, tokenize
from vla_jax import plugin

COMPILED = {}


def apply(spec, p, data):
    run = COMPILED.setdefault(repr(spec), jax.jit(Host(spec).apply))
    return run(p, data)


@pytest.mark.parametrize(
    "size, changes, grid",
    [
        ((96, 96), dict(patch=4, grid_stride=12), (8, 8)),
        ((96, 96), dict(patch=4, grid_stride=8), (12, 12)),
        ((96, 96), dict(patch=6, grid_stride=6), (16, 16)),
        ((24, 48), dict(stem="patch", grid_stride=12), (2, 4)),
    ],
)
def test_grids(size, changes, grid):
    _, group, facts = tokenize(spec("image_patch", image_size=size, **changes), batch(size))
    assert group.grid == grid == facts.grid and facts.num_tokens == grid[0] * grid[1]


def test_tokens_are_row_major_and_local():
    """A change of pixels in one corner moves that corner's token most."""
    made = spec("image_patch", image_size=(96, 96), patch=4, grid_stride=12)
    data = batch((96, 96))
    p, _, _ = tokenize(made, data)
    before = apply(made, p, data)
    other = batch((96, 96))  # never edit what a running step may still read
    other.observation.images["primary"][:, :, :12, -12:] ^= 128  # top right
    change = np.abs(apply(made, p, other).tokens - before.tokens).max((0, 1, 3)).reshape(8, 8)
    assert change.argmax() == 7 and (change[3:] == 0).all() and (change[:, :5] == 0).all()


def test_a_dropped_camera_is_invalid_at_its_timestep():
    _, group, _ = tokenize(spec("image_patch"), batch(image_mask=False))
    valid = np.asarray(group.valid)
    assert not valid[1, 2].any() and valid[1, :2].all()


@pytest.mark.parametrize("film", ["product", "affine"])
def test_film_changes_tokens_and_never_the_stem(film):
    made = spec("image_patch", film=film)
    data, other = batch(), batch()
    other.task.values["language"][:] = 1
    p, _, facts = tokenize(made, data)
    before = apply(made, p, data)
    assert facts.reads == ("language",)
    plain = apply(made, p, batch(language=False))
    if film == "affine":  # starts at the identity
        np.testing.assert_array_equal(before.tokens, plain.tokens)
        p = jax.tree.map(lambda leaf: leaf + 0.1, p)
        before, plain = apply(made, p, data), apply(made, p, batch(language=False))
    after = apply(made, p, other)
    np.testing.assert_array_equal(after.stem, before.stem)
    assert np.abs(after.tokens - before.tokens).max() > 1e-3
    # Without an instruction the tokens are the stem (trunk and stem have one width here).
    np.testing.assert_array_equal(plain.tokens, plain.stem)


def test_film_product_is_large_where_patch_and_word_agree():
    made = spec("image_patch", film="product")
    p, group, _ = tokenize(made)
    film = p["params"]["tested"]["film"]["kernel"]
    assert film.shape == (4, 16)
    size = np.abs(group.tokens - group.stem).mean() / np.abs(group.stem).mean()
    assert 0.1 < size < 10


def test_product_trains_the_shared_projections():
    made = spec("image_patch", film="product")
    p, _, _ = tokenize(made)
    data = batch()
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(Host(made).apply(p, data).tokens))))(p)
    for name in ("patch", "word"):
        kernel = gradient["params"]["shared_grounding"][name]["kernel"]
        assert np.isfinite(kernel).all() and np.abs(kernel).max() > 0


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(view="primry"), "did you mean 'primary'"),
        (dict(image_size=(20, 24)), "does not divide"),
        (dict(grid_stride=6), "does not divide"),
        (dict(film="produkt"), "did you mean 'product'"),
        (dict(film="product", reads=()), "needs a group to read"),
        (dict(stem="cnn"), "unknown 'cnn'"),
        (dict(widths=(8, 8)), "three widths"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(plugin.UserError, match=message):
        tokenize(spec("image_patch", **changes))


def test_an_image_of_another_size_or_an_absent_view():
    with pytest.raises(plugin.UserError, match="expected it to end with"):
        tokenize(spec("image_patch"), batch((36, 36)))
    with pytest.raises(plugin.UserError, match="unknown 'wrist'.*primary"):
        tokenize(spec("image_patch", view="wrist"))
