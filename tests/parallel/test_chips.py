"""The table of chips, and topologies as a user types them."""

import pytest

from vla_jax import plugin
from vla_jax.parallel import chips


@pytest.mark.parametrize(
    "text, name, count",
    [
        ("v5e:16x16", "v5e", 256),
        ("v5p:4x4x4", "v5p", 64),
        ("h100:64", "h100", 64),
        ("cpu:1", "cpu", 1),
    ],
)
def test_topologies(text, name, count):
    chip, shape = chips.parse(text)
    assert chip.name == name and chips.count(shape) == count


@pytest.mark.parametrize(
    "text, words",
    [
        ("v5:4x4", "did you mean 'v5"),
        ("h100", "expected h100:N"),
        ("v5e:4x", "like v5e:4x4"),
        ("cpu:0", "expected cpu:N"),
        ("v5e:2x2x2x2", "expected v5e:N"),
    ],
)
def test_mistakes_are_named(text, words):
    with pytest.raises(plugin.UserError, match=words):
        chips.parse(text)


def test_kinds_name_one_chip_each():
    kinds = [kind for chip in chips.CHIPS.values() for kind in chip.kinds]
    assert len(kinds) == len(set(kinds)) and all(kind == kind.lower() for kind in kinds)
    assert chips.of_kind("NVIDIA H200").name == "h200" and chips.of_kind("abacus") is None
    for chip in chips.CHIPS.values():  # all that a roofline divides by, or none of it
        peaks = (chip.flops, chip.flops_float32, chip.memory, chip.bandwidth, chip.network)
        assert all(peaks) or not any(peaks)
