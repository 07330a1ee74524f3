"""Every file of backbones/ keeps the contract; the files are found by listing the folder."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax import plugin, types
from vla_jax.backbones import _image

NAMES = plugin.names("backbones")
# Text encoders are called in tests of their own.
IMAGE = tuple(n for n in NAMES if plugin.module("backbones", n).modality == "image")
N, SIZE, F = 2, (32, 64), 6  # images, (height, width), numbers of the FiLM vector


def build(name, dtype=jnp.float32, **changes):
    context = types.Context(name="test", width=16, dtype=dtype)
    spec = {"type": name, **plugin.module("backbones", name).DEBUG, **changes}
    return plugin.build("backbones", spec, context)


def inputs(channels=3, dtype=np.uint8, size=SIZE):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (N, *size, channels)).astype(dtype)
    return images, rng.normal(size=(N, F)).astype(np.float32)


def random(net, *arrays):
    """Variables of the module, none of them at its special first value; nothing is compiled."""
    shapes, rng = jax.eval_shape(net.init, jax.random.key(0), *arrays), np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 4, shapes)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_a_plug_in(name):
    module = plugin.module("backbones", name)
    parameters = inspect.signature(module.make).parameters
    assert next(iter(parameters)) == "context"
    assert set(module.DEBUG) <= set(parameters)
    assert module.__doc__ and module.make.__doc__
    assert module.modality in ("image", "text")
    if name in IMAGE:
        assert parameters["normalize"].default == "default" and parameters["film"].default is False


@pytest.mark.parametrize("name", IMAGE)
def test_image_encoder(name):
    net = build(name, film=True, normalize="imagenet")
    rows = (N, *net.grid(SIZE), net.features)  # known before anything is traced
    images, vector = inputs(6)
    shapes = jax.eval_shape(net.init, jax.random.key(0), images, vector)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}

    def total(p):
        out = net.apply(p, images, vector)
        return jnp.sum(jnp.square(out)), out

    gradient, out = jax.jit(jax.grad(total, has_aux=True))(random(net, images, vector))
    assert out.shape == rows and out.dtype == jnp.float32
    for leaf in jax.tree.leaves(gradient):  # the projections of the FiLM vector among them
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0


@pytest.mark.parametrize("name", IMAGE)
def test_compute_dtype(name):
    net, (images, vector) = build(name, jnp.bfloat16, film=True), inputs()
    p = random(net, images, vector)
    lowered = jax.jit(net.apply).lower(p, images, vector)
    assert lowered.out_info.dtype == jnp.bfloat16
    lines = lowered.as_text().splitlines()
    products = [line for line in lines if "stablehlo.convolution" in line or "dot_general" in line]
    assert len(products) >= 3
    assert all("xbf16>" in line and "xf32>" not in line for line in products)


@pytest.mark.parametrize("name", IMAGE)
def test_a_film_of_zeros_changes_nothing(name):
    net, plain, (images, vector) = build(name, film=True), build(name), inputs()
    p = random(net, images, vector)["params"]
    rest = {key: leaf for key, leaf in p.items() if not key.startswith("film")}
    zeros = {key: jax.tree.map(np.zeros_like, p[key]) for key in set(p) - set(rest)}
    assert zeros
    steered, out = jax.jit(
        lambda p, rest: (net.apply({"params": p}, images, vector), plain.apply(rest, images))
    )(rest | zeros, {"params": rest})
    np.testing.assert_allclose(steered, out, atol=1e-5)


def test_pixels_become_numbers_of_size_one():
    images = np.stack([np.zeros(6), np.full(6, 255), np.arange(6)]).astype(np.uint8)
    images = images[:, None, None]
    for kind, low, high in (("default", [-1] * 6, [1] * 6),
                            ("imagenet", [-2.1179, -2.0357, -1.8044] * 2,
                             [2.2489, 2.4286, 2.64] * 2)):  # fmt: skip
        of_bytes = _image.normalized("here", images, kind)
        np.testing.assert_allclose(of_bytes[:2, 0, 0], [low, high], atol=1e-4)
        of_floats = _image.normalized("here", images.astype(np.float32), kind)
        np.testing.assert_array_equal(of_bytes, of_floats)


@pytest.mark.parametrize("name", IMAGE)
def test_what_does_not_fit_is_named(name):
    net, conditioned = build(name), build(name, film=True)
    images, vector = inputs()

    def run(net, *arrays):
        jax.eval_shape(net.init, jax.random.key(0), *arrays)

    odd = (SIZE[0], SIZE[1] - 1)
    with pytest.raises(plugin.UserError, match=rf"does not divide.*{net.cell} px.*{SIZE[1]}"):
        net.grid(odd)
    with pytest.raises(plugin.UserError, match="does not divide"):
        run(net, images[:, :, :-1])
    with pytest.raises(plugin.UserError, match="test.*no FiLM vector came"):
        run(conditioned, images)
    with pytest.raises(plugin.UserError, match="film=False, but a FiLM vector"):
        run(net, images, vector)
    with pytest.raises(plugin.UserError, match="expected .2, F., a row per image"):
        run(conditioned, images, vector[:1])
    with pytest.raises(plugin.UserError, match="expected .N, height, width"):
        run(net, images[0])
    with pytest.raises(plugin.UserError, match="4 channels"):
        run(build(name, normalize="imagenet"), inputs(4)[0])
    with pytest.raises(plugin.UserError, match="did you mean 'imagenet'"):
        build(name, normalize="imagnet")
    with pytest.raises(plugin.UserError, match="did you mean 'normalize'"):
        build(name, normalise="default")
