"""Plans against the real thing: shapes of a state that is made, buffers of its program."""

import dataclasses

import jax
import pytest

from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.models import synthetic
from vla_jax.nn import attention
from vla_jax.parallel import chips
from vla_jax.parallel import mesh as meshes
from vla_jax.train import plan, smoke, start

AXES = {"fsdp": 4, "data": 2}


@pytest.fixture(scope="module")
def config():
    whole = smoke.shrink(config_lib.load("configs/octo_small.py"), AXES)
    mesh = dataclasses.replace(whole.mesh, **AXES)
    return dataclasses.replace(whole, mesh=mesh, compiler={})


@pytest.fixture(scope="module")
def found(config):
    return plan.make(config, chips.CHIPS["h100"], jax.devices()[:8])


@pytest.mark.mesh
def test_bytes_are_those_of_a_state_on_the_mesh(config, found):
    tokenizer, _ = smoke.text_tokenizer(config)
    network, _ = smoke.parts(config, tokenizer)
    mesh = meshes.make(AXES)
    with meshes.use(mesh):
        made = start.plan(
            config, network, synthetic.examples(config, tokenizer.vocabulary_size), mesh
        )
        state = start.fresh(made)

    def held(tree):
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))

    assert found["parameter_bytes"] == held((state.trained, state.frozen))
    assert found["optimizer_bytes"] == held(state.opt_state)
    assert found["ema_bytes"] == 0 and found["mesh"]["fsdp"] == 4
    least = found["parameter_bytes"] + found["optimizer_bytes"] + found["temporary_bytes"]
    assert found["program_bytes"] >= least


@pytest.mark.mesh
def test_the_roofline_and_the_words(config, found):
    assert found["collectives"]["all-reduce"]["count"] > 0
    assert found["step_lower_bound_s"] == max(found["bounds_s"].values()) > 0
    assert 0 < found["mfu_bound"] <= 67 / 989  # float32, against bfloat16's peak
    assert found["fits"] and "temporary_bytes" in found["indicative"]
    text = plan.text(found)
    assert "indicative" in text and "fits" in text and "all-reduce" in text
    small = dataclasses.replace(chips.CHIPS["h100"], memory=1e3)
    assert not plan.make(config, small, jax.devices()[:8])["fits"]


@pytest.mark.parametrize("name, platform", [("splash", "tpu"), ("cudnn", "gpu")])
def test_a_kernel_that_the_devices_do_not_have(config, name, platform):
    """Refused before anything is traced; the small stand-in of a config goes without it."""
    trunk = {**config.model.trunk, "attention": name}
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, trunk=trunk))
    with pytest.raises(plugin.UserError, match=f"{name}.*expected '{platform}'"):
        plan.make(other, chips.CHIPS["cpu"], jax.devices()[:8])
    assert smoke.shrink(other, AXES).model.trunk["attention"] in attention.PLAIN


def test_too_few_devices_and_meshes_that_do_not_fit(config):
    with pytest.raises(plugin.UserError, match="expected 4096"):
        plan.devices(chips.CHIPS["cpu"], (4096,))
    with pytest.raises(plugin.UserError, match="mesh"):
        plan.make(config, chips.CHIPS["cpu"], jax.devices()[:3])
