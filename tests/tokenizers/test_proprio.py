import numpy as np
import pytest

from tests.tokenizers.test_contract import B, D, W, batch, spec, tokenize
from vla_jax import plugin


def test_one_token_per_timestep_and_a_missing_reading_is_invalid():
    data = batch()
    data.observation.proprio_masks["hand"] = np.ones((B, W), bool)
    data.observation.proprio_masks["hand"][1, 1] = False
    _, group, facts = tokenize(spec("proprio"), data)
    assert group.tokens.shape == (B, W, 1, D) and facts.num_tokens == 1
    # Also invalid before the episode began, whatever the reading's own mask says.
    assert np.argwhere(~np.asarray(group.valid)).tolist() == [[0, 0, 0], [1, 1, 0]]


def test_another_size_or_an_unknown_group():
    with pytest.raises(plugin.UserError, match=r"shape .*expected it to end with \(4,\)"):
        tokenize(spec("proprio", size=4))
    with pytest.raises(plugin.UserError, match="did you mean 'hand'"):
        tokenize(spec("proprio", group="hands"))
