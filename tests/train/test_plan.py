"""Plans against the real thing: shapes of a state that is made, buffers of its program."""

import dataclasses

import jax
import pytest

from vla_jax import config as config_lib
from vla_jax import plugin, trees
from vla_jax.codecs import text_tokenizer
from vla_jax.models import synthetic
from vla_jax.nn import attention
from vla_jax.parallel import chips
from vla_jax.parallel import mesh as meshes
from vla_jax.train import flops, plan, program, smoke, start

AXES = {"fsdp": 4, "data": 2}


@pytest.fixture(scope="module")
def config():
    whole = smoke.shrink(config_lib.load("configs/octo_small.py"), AXES)
    mesh = dataclasses.replace(whole.mesh, **AXES)
    return dataclasses.replace(whole, mesh=mesh)


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
    assert found["program_bytes"] >= least + 3 * found["batch_bytes"]  # two are read ahead


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


class Lowered:
    """A program whose compiler has this to say."""

    def __init__(self, words):
        self.words = words

    def compile(self, compiler_options=None):
        raise jax.errors.JaxRuntimeError(self.words)


def test_what_the_chip_s_compiler_refuses_does_not_fit(config, monkeypatch):
    said = "RESOURCE_EXHAUSTED: Ran out of memory: 15.96G exceeds 15.75G\nmuch more"
    monkeypatch.setattr(program, "lower", lambda *_: Lowered(said))
    refused = plan.make(config, chips.CHIPS["v5e"], jax.devices()[:8])
    assert refused["fits"] is False and refused["refusal"] == said.splitlines()[0]
    assert refused["temporary_bytes"] is refused["collectives"] is None
    assert "temporary_bytes" not in refused["exact"] + refused["indicative"]
    assert refused["parameter_bytes"] > 0 and "network" not in refused["bounds_s"]
    text = plan.text(refused)
    assert "DOES NOT FIT" in text and "15.96G exceeds 15.75G" in text
    monkeypatch.setattr(program, "lower", lambda *_: Lowered("INTERNAL: a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        plan.make(config, chips.CHIPS["v5e"], jax.devices()[:8])


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


@pytest.fixture(scope="module")
def words():
    """A config whose piece embeddings are as many as its text tokenizer has pieces."""
    small = smoke.shrink(config_lib.load("configs/octo_base_pretrain_web.py"), {})
    streams = {n: dataclasses.replace(s, batch_size=8) for n, s in small.streams.items()}
    return dataclasses.replace(small, streams=streams)


def test_words_without_their_file(words, tmp_path):
    """As many pieces as the config says: parameters and operations are those with the file."""

    def counted(**changes):
        config = dataclasses.replace(words, **changes)
        tokenizer, origin = smoke.text_tokenizer(config)
        network, _ = smoke.parts(config, tokenizer)
        examples = synthetic.examples(config, tokenizer.vocabulary_size)
        shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), examples))
        work = flops.train_step(config, network, tokenizer.vocabulary_size, shapes)
        return trees.count(shapes), work, network.layout("vl").length, origin

    made = text_tokenizer.TextTokenizer.train([f"word{n} {n * n}" for n in range(400)])
    made.save(tmp_path / "words.model")
    pieces, path = made.vocabulary_size, str(tmp_path / "words.model")
    there = counted(text_tokenizer=path, text_pieces=pieces)
    absent = counted(text_tokenizer=f"{path}.absent", text_pieces=pieces)
    assert there[:3] == absent[:3] and there[3] == path
    assert absent[3] == f"stand-in of {pieces} pieces"
    guessed = counted(text_tokenizer=f"{path}.absent")
    few = int(guessed[3].split()[2])
    assert few < pieces and guessed[2] == there[2]  # as many tokens
    assert there[0] - guessed[0] == (pieces - few) * words.model.trunk["width"]
    assert sum(guessed[1].values()) < sum(there[1].values())
    with pytest.raises(plugin.UserError, match=f"got 7, .*--config.text_pieces={pieces}"):
        counted(text_tokenizer=path, text_pieces=7)


def test_figures_that_words_change_are_called_inexact(words, config, found):
    stand_in = "stand-in of 51 pieces"
    unsure = plan._sure(words, stand_in, real=True)
    assert unsure["exact"] == ["batch_bytes"] and "parameter_bytes" in unsure["indicative"]
    said = dataclasses.replace(words, text_pieces=51)
    assert plan._sure(said, stand_in, real=True)["indicative"] == []
    # T5's own table has the size that its config says.
    assert "parameter_bytes" in plan._sure(config, stand_in, real=False)["exact"]
    assert "INEXACT" not in plan.text(found) and "text tokenizer: stand-in" in plan.text(found)
    assert "INEXACT: set config.text_pieces" in plan.text({**found, **unsure})
