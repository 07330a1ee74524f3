"""Wilson's interval against published values."""

import pytest

from vla_jax import plugin
from vla_jax.evals import intervals


@pytest.mark.parametrize(
    "successes, trials, low, high",
    [
        (15, 148, 0.0624, 0.1605),  # Newcombe 1998, table I
        (81, 263, 0.2553, 0.3662),
        (1, 29, 0.0061, 0.1718),
        (0, 20, 0.0, 0.1611),
        (95, 100, 0.8882, 0.9785),
    ],
)
def test_known_values(successes, trials, low, high):
    assert intervals.wilson(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_ends_and_mirror():
    assert intervals.wilson(0, 0) == (0.0, 1.0)
    assert intervals.wilson(20, 20)[1] == 1.0
    low, high = intervals.wilson(3, 17)
    assert intervals.wilson(14, 17) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("successes, trials", [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(plugin.UserError, match="of 3 trials"):
        intervals.wilson(successes, trials)
