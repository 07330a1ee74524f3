"""The image encoders against arrays computed with Octo itself."""

import re

import jax
import numpy as np
import pytest
from flax import serialization

from tests.backbones import golden
from vla_jax import plugin, types

pytestmark = pytest.mark.slow  # golden arrays; contract tests run by default


CONTEXT = types.Context(name="test", width=16)
CASES = {
    "patch_encoder_film_imagenet": (
        "PatchEncoder",
        dict(type="patchify", patch=32, features=24, normalize="imagenet", film=True),
    ),
    "small_stem32_film": (
        "SmallStem32",
        dict(type="small_stem", patch=32, widths=(32,) * 4, features=24, film=True),
    ),
    "vit_resnet_film": (
        "ViTResnet",
        dict(type="resnet", stages=(1, 1), width=32, film=True),
    ),
    "vit_resnet_root_only": ("ViTResnet", dict(type="resnet", stages=(), width=32)),
}


def run(spec, module, params, images, film=()):
    net = plugin.build("backbones", spec, CONTEXT)
    p = golden.variables(module, params, net, images, *film)
    out = jax.jit(net.apply)(p, images, *film)
    assert out.shape == (len(images), *net.grid(images.shape[1:3]), net.features)
    return out


@pytest.mark.parametrize("name", CASES)
def test_stand_alone(name, fixtures_dir):
    arrays = np.load(fixtures_dir / "octo_golden" / "variant2" / "modules.npz")
    arrays = golden.below(arrays, f"{name}/")
    module, spec = CASES[name]
    film = list(golden.below(arrays, "kw/").values())
    out = run(spec, module, golden.below(arrays, "params/"), arrays["in0/"], film)
    golden.check(name, out, arrays["out"])


@pytest.mark.parametrize("view", ["primary", "wrist"])
def test_small_stem_inside_a_checkpoint(view, fixtures_dir):
    folder = fixtures_dir / "octo_golden" / "tiny"
    tree = serialization.msgpack_restore((folder / "ckpt/7/default/checkpoint").read_bytes())
    tree = tree["octo_transformer"][f"observation_tokenizers_{view}"]["SmallStem16_0"]
    params = {f"{a}/{b}": leaf for a, below in tree.items() for b, leaf in below.items()}
    given = np.load(folder / "inputs.npz")
    images = given[f"observation/image_{view}"][0]  # of the first item: [W, height, width, 3]
    goal = np.broadcast_to(given[f"task/image_{view}"][0], images.shape)
    spec = dict(type="small_stem", widths=(32, 32, 32, 64), features=80)
    out = run(spec, "SmallStem16", params, np.concatenate([images, goal], -1))
    inside = np.load(folder / "intermediates_item0.npz")
    place = f"octo_transformer/observation_tokenizers_{view}/SmallStem16_0/__call__/0"
    golden.check(view, out, inside[place])


def test_known_sizes():
    """Tokens and parameters that Octo's released configs and papers state."""

    def sizes(size, channels=6, film=False, **spec):
        net = plugin.build("backbones", dict(spec, film=film), CONTEXT)
        images = np.zeros((1, *size, channels), np.uint8)
        vector = [np.zeros((1, 512), np.float32)] * film
        p = jax.eval_shape(net.init, jax.random.key(0), images, *vector)
        return net.grid(size), net.features, sum(leaf.size for leaf in jax.tree.leaves(p))

    grid, features, count = sizes((256, 256), type="small_stem")
    assert grid == (16, 16) and features == 512 and round(count / 1e6, 2) in (1.06, 1.05)
    assert sizes((128, 128), type="small_stem")[0] == (8, 8)
    assert sizes((64, 64), type="small_stem", patch=8, widths=(32, 96, 192))[0] == (8, 8)
    grid, features, _ = sizes((224, 224), type="resnet", film=True)
    assert grid == (7, 7) and features == 2048
    assert sizes((64, 64), type="patchify", patch=16)[:2] == ((4, 4), 512)


@pytest.mark.parametrize(
    "spec, message",
    [
        (dict(type="small_stem", patch=24), "patch=24 px is no multiple of 16 px"),
        (dict(type="small_stem", patch=8), "patch=8 px is no multiple of 16 px"),
        (dict(type="resnet", stages=(2,), film=True), "every stage but the first"),
        (dict(type="resnet26"), "did you mean 'resnet'"),
    ],
)
def test_bad_arguments_are_named(spec, message):
    with pytest.raises(plugin.UserError, match=re.escape(message)):
        plugin.build("backbones", spec, CONTEXT)


def test_widths_that_do_not_divide_into_groups():
    net = plugin.build("backbones", dict(type="small_stem", widths=(24,) * 4), CONTEXT)
    images = np.zeros((1, 16, 16, 3), np.uint8)
    with pytest.raises(plugin.UserError, match="'norm_0': 24 features.*32 groups"):
        jax.eval_shape(net.init, jax.random.key(0), images)
