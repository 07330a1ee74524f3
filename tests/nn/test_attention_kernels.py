"""Kernels of one platform: where they are taken, where refused, and that compilers take them."""

import dataclasses
import importlib.util
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.nn import attention, layout, visibility
from vla_jax.nn import attention_kernels as kernels
from vla_jax.parallel import chips
from vla_jax.parallel import mesh as meshes
from vla_jax.train import plan

# 690 tokens as Octo's: five blocks of 128 of which some hold nothing that is seen.
ROWS = layout.Layout.make(
    [layout.Group("language", 16), layout.Group("image", 336, 2), layout.Group("readout", 1, 2)], 2
)
RULES = (("readout", "readout", "now"), ("*", "readout", "never"), ("*", "*", "past_or_now"))


def lowered(name, dtype, platform, sharding=None, *, heads=(4, 2), size=64):
    """The gradient of attention by `name` to query, key and value, lowered for a platform."""
    shapes = [(8, ROWS.length, n, size) for n in (*heads, heads[1])]
    parts = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape in shapes]
    valid = jax.ShapeDtypeStruct((8, ROWS.length), bool)

    def loss(q, k, v, valid):
        out = attention.attention(q, k, v, ROWS, RULES, valid, implementation=name)
        return jnp.sum(jnp.sin(out.astype(jnp.float32)))

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*parts, valid)
    return traced.lower(lowering_platforms=(platform,))


@pytest.mark.parametrize("platform", [*attention.AUTO, "some other"])
@pytest.mark.parametrize("queries", [1, attention.BLOCK, attention.BLOCK + 1, 10_000])
def test_auto_takes_nothing_untested(platform, queries):
    name = attention.auto(platform, queries)
    assert name in attention.PLAIN or not kernels.KERNELS[name].untested
    assert name in attention.PLAIN or kernels.KERNELS[name].platform == platform


def test_what_was_never_run_says_so():
    """Whoever runs a kernel on its platform empties `untested`, and may change AUTO."""
    assert {name for name, kernel in kernels.KERNELS.items() if kernel.untested} == {
        "splash",
        "cudnn",
    }
    assert all(kernel.plain in attention.PLAIN for kernel in kernels.KERNELS.values())


@pytest.mark.parametrize("name, expected", [("splash", "'tpu'"), ("cudnn", "'gpu'")])
def test_a_platform_without_the_kernel_is_refused(name, expected):
    with pytest.raises(
        plugin.UserError, match=f"'{name}': got platform 'cpu', expected {expected}"
    ):
        lowered(name, jnp.bfloat16, "cpu")


def test_sizes_that_cudnn_does_not_take_are_said():
    here = dataclasses.replace(kernels.KERNELS["cudnn"], platform="cpu")
    with mock.patch.dict(kernels.KERNELS, cudnn=here):
        with pytest.raises(plugin.UserError, match="got float32, expected bfloat16 or float16"):
            lowered("cudnn", jnp.float32, "cuda")
        with pytest.raises(plugin.UserError, match="cuDNN is not detected"):
            lowered("cudnn", jnp.bfloat16, "cuda")
        with cudnn_there(), pytest.raises(plugin.UserError, match="multiple of 8, but got 20"):
            lowered("cudnn", jnp.bfloat16, "cuda", size=20)


def cudnn_there():
    """Has jax believe that cuDNN is installed: what follows is lowered, not run."""
    return mock.patch("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)


@pytest.mark.mesh
@pytest.mark.parametrize("axes", [dict(data=1), dict(data=2, fsdp=2, tensor=2)])
def test_cudnn_lowers_for_gpus(axes):
    here = dataclasses.replace(kernels.KERNELS["cudnn"], platform="cpu")
    mesh = meshes.make(axes, jax.devices()[: int(np.prod(list(axes.values())))])
    with mock.patch.dict(kernels.KERNELS, cudnn=here), cudnn_there(), meshes.use(mesh):
        text = lowered("cudnn", jnp.bfloat16, "cuda").as_text()
    calls = re.findall(r"__cudnn\$fmha(\w+)", text)
    assert sorted(calls) == ["ScaleBiasSoftmax", "ScaleBiasSoftmaxBackward"]


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu (extra `plan`)")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_splash_compiles_for_tpus(dtype, monkeypatch):
    """On a slice, rows and heads shared out: three kernels, and nothing is sent between chips."""
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # libtpu would look for a cloud's metadata
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is taken
    mesh = meshes.make(dict(data=2, tensor=2), plan.devices(chips.CHIPS["v5e"], (2, 2)))
    by_heads = jax.sharding.PartitionSpec(meshes.BATCH, None, "tensor")
    with meshes.use(mesh):
        sharding = jax.sharding.NamedSharding(mesh, by_heads)
        text = lowered("splash", dtype, "tpu", sharding).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3  # forward, to query, to key
    assert not any(word in text for word in ("all-reduce", "all-gather", "all-to-all"))


def test_splash_skips_what_the_rules_exclude():
    """Its table has an entry for each block with a pair that is seen, and for no other."""
    seen = visibility.mask(ROWS, RULES)
    with mock.patch.object(kernels, "LARGEST", 128):
        table = kernels.splash_kernel(seen, heads=2).fwd_mask_info.block_mask
    padded = np.pad(seen, (0, 768 - ROWS.length))
    some = padded.reshape(6, 128, 6, 128).any((1, 3))
    assert np.count_nonzero(table) == some.sum() < 0.9 * some.size


def test_splash_answers_with_numbers_where_nothing_is_seen():
    """A whole block of queries without a key, and a row without any real key."""
    seen = np.zeros((256, 256), bool)
    seen[128:] = True
    x = jnp.ones((2, 256, 1, 8))
    valid = jnp.ones((2, 256), bool).at[1].set(False)
    with mock.patch.multiple(kernels, INTERPRET=True, LARGEST=128):
        assert jnp.isfinite(kernels.run("splash", x, x, x, seen, valid)).all()
