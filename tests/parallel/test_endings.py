"""One rule for launchers: which exit codes begin a training again, and how often."""

import pytest

from vla_jax.parallel import endings


@pytest.mark.parametrize(
    "codes, expected",
    [
        ([0, 0], 0),
        ([76, 1, 76], 1),  # a traceback on one host, and those that heard only of its end
        ([137, 76, 2], 2),
        ([76, 137], 137),
        ([143, 75], 143),
        ([75, 75], 75),
        ([0, 76], 76),
    ],
)
def test_one_code_of_all(codes, expected):
    assert endings.of(codes) == expected


def test_what_is_free_what_counts_and_what_stops():
    tries = endings.Tries(1, begun=5)
    assert all(tries.again(75, 5) for _ in range(9)) and tries.count == 0
    assert tries.again(76, 5) and tries.again(75, 5) and not tries.again(137, 5)
    for code in (0, 1, 2, 130, 255):
        assert not endings.Tries(9, begun=5).again(code, 6)
    assert not endings.Tries(0, begun=-1).again(76, -1)
    assert endings.Tries(0, begun=-1).again(76, 0)  # the first checkpoint is progress


def test_progress_forgives():
    tries = endings.Tries(2, begun=-1)
    assert [tries.again(76, newest) for newest in (-1, -1, 3, 3, 4, 4, 4, 4)] == [True] * 7 + [
        False
    ]


@pytest.mark.parametrize(
    "words", [["--workdir", "a b", "--x=1"], ["--config", "c", "--workdir=a b"]]
)
def test_the_workdir_among_the_words(words):
    assert endings.workdir(words) == "a b"
    assert endings.workdir(["--config", "c"]) is None
    with pytest.raises(ValueError, match="--workdir"):
        endings.workdir(["--workdir"])
