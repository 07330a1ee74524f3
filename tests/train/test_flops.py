"""Operations by module, against formulas by hand and XLA's own count of a program without loops."""

import dataclasses

import jax
import pytest

from vla_jax import config as config_lib
from vla_jax.models import synthetic
from vla_jax.train import flops, smoke

ROWS = 4


@pytest.fixture(scope="module")
def octo():
    """(config, network, vocabulary) of Octo-Small at its sizes, few rows; only traced."""
    config = config_lib.load(f"configs/octo_small.py:batch_size={ROWS}")
    tokenizer, _ = smoke.text_tokenizer(config)
    return config, smoke.parts(config, tokenizer)[0], tokenizer.vocabulary_size


def test_the_trunk_by_hand(octo):
    config, network, size = octo
    found = flops.train_step(config, network, size)
    D, F, L, layers = 384, 1536, 690, 12
    projections, mlp = 4 * 2 * L * D * D, 2 * 2 * L * D * F
    weights = 3 * ROWS * layers * (projections + mlp)
    # Attention goes by blocks of queries that leave out keys no query of theirs may see.
    all_pairs = 3 * ROWS * layers * (2 * 2 * L * L * D)
    assert weights + 0.6 * all_pairs < found["trunk"] < weights + all_pairs
    assert set(found) == {
        "trunk", "tokenizers_primary", "tokenizers_wrist", "tokenizers_language", "heads_action",
    }  # fmt: skip


def test_frozen_encoders_count_nothing(octo):
    config, network, size = octo
    found = flops.train_step(config, network, size)
    assert found["tokenizers_language"] == 3 * 2 * ROWS * 16 * 768 * 384  # its projection alone
    melted = dataclasses.replace(config, freeze=())
    assert (
        flops.train_step(melted, network, size)["tokenizers_language"]
        > 100 * found["tokenizers_language"]
    )


@pytest.mark.parametrize("trunk", [dict(remat="full"), dict(attention="splash")])
def test_remat_counts_nothing_and_a_kernel_as_its_stand_in(octo, trunk):
    config, network, size = octo
    trunk = {**config.model.trunk, **trunk}
    remat = dataclasses.replace(config, model=dataclasses.replace(config.model, trunk=trunk))
    other = smoke.parts(remat, smoke.text_tokenizer(remat)[0])[0]
    assert flops.train_step(remat, other, size) == flops.train_step(config, network, size)


def test_a_scan_counts_as_the_loop_it_is(octo):
    """XLA counts a scan's body once; unrolled, all of them, and elementwise work as well."""
    config, _, size = octo
    trunk = {**config.model.trunk, "depth": 3, "unroll": 3}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, trunk=trunk))
    network = smoke.parts(config, smoke.text_tokenizer(config)[0])[0]
    examples = synthetic.examples(config, size)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), examples))
    batch = synthetic.abstract(config, size)["robot"]
    ours = flops.forward(config, network, variables, "robot", batch)
    trunk = sum(count for path, count in ours.items() if path.startswith("trunk"))
    lowered = jax.jit(lambda v, b: network.encode(v, b, "robot")).lower(variables, batch)
    theirs = lowered.cost_analysis()["flops"]
    tokens = sum(c for path, c in ours.items() if path.startswith("tokenizers"))
    t5 = sum(c for path, c in ours.items() if path.startswith("tokenizers_language/encoder"))
    # The frozen T5 is a scan of 12 layers that XLA counts once.
    assert trunk + tokens - t5 * 11 / 12 == pytest.approx(theirs, rel=0.05)
