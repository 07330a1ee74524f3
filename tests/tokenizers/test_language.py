import numpy as np
import pytest

from tests.tokenizers.test_contract import B, T, batch, spec, tokenize
from vla_jax import plugin, types
from vla_jax.tokenizers import language


def test_pooled_is_one_token_and_pieces_are_one_each():
    _, pooled, facts = tokenize(spec("language"))
    assert facts.num_tokens == 1 and not facts.per_step and pooled.valid.all()
    _, pieces, facts = tokenize(spec("language", mode="pieces"))
    assert facts.num_tokens == T
    np.testing.assert_array_equal(pieces.valid, batch().task.masks["language"])
    np.testing.assert_allclose(pooled.stem[1, 0], pieces.stem[1].mean(0), atol=1e-5)


@pytest.mark.parametrize("mode", language.MODES)
def test_no_instruction_is_invalid(mode):
    _, group, _ = tokenize(spec("language", mode=mode), batch(language=False))
    assert not np.asarray(group.valid).any() and np.isfinite(group.tokens).all()


def test_errors():
    with pytest.raises(plugin.UserError, match="did you mean 'pooled'"):
        tokenize(spec("language", mode="pool"))
    with pytest.raises(plugin.UserError, match="max_tokens"):
        tokenize(spec("language", mode="pieces", max_tokens=T + 1))
    with pytest.raises(plugin.UserError, match="shared module 'text_embedding'"):
        language.make(types.Context(name="language", width=8))
    data = batch()
    data.task.values.clear()
    with pytest.raises(plugin.UserError, match="unknown 'language'"):
        tokenize(spec("language"), data)
    assert data.row_id.shape == (B,)
