"""What one accelerator can do: the peaks that rooflines and utilisation are measured against.

Dense peaks of the vendors' data sheets, without sparsity; `network` is what one chip sends to its
neighbours in the same slice or NVLink domain, all links of one direction together. Sources: Google
Cloud's pages on TPU system architecture (v4, v5e, v5p, v6e), NVIDIA's data sheets (A100 SXM 80 GB,
H100 SXM, H200 SXM, B200).
"""

from __future__ import annotations

import dataclasses
import math
import re

from vla_jax import plugin


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one chip; None where nobody can say (a CPU's depend on the machine)."""

    name: str
    kinds: tuple[str, ...]  # as jax.Device.device_kind calls it, in lower case
    flops: float | None = None  # bfloat16 with float32 sums, operations per s
    flops_float32: float | None = None
    memory: float | None = None  # bytes
    bandwidth: float | None = None  # of that memory, bytes per s
    network: float | None = None  # bytes per s
    tpu: bool = False


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", ("tpu v4",), 275e12, 69e12, 32e9, 1.228e12, 300e9, tpu=True),
        Chip("v5e", ("tpu v5 lite", "tpu v5e"), 197e12, 49e12, 16e9, 819e9, 200e9, tpu=True),
        Chip("v5p", ("tpu v5", "tpu v5p"), 459e12, 115e12, 95e9, 2.765e12, 600e9, tpu=True),
        Chip("v6e", ("tpu v6 lite", "tpu v6e"), 918e12, 230e12, 32e9, 1.64e12, 448e9, tpu=True),
        Chip("a100", ("nvidia a100-sxm4-80gb",), 312e12, 19.5e12, 80e9, 2.039e12, 300e9),
        Chip("h100", ("nvidia h100 80gb hbm3", "nvidia h100"), 989e12, 67e12, 80e9, 3.35e12, 450e9),
        Chip("h200", ("nvidia h200",), 989e12, 67e12, 141e9, 4.8e12, 450e9),
        Chip("b200", ("nvidia b200",), 2250e12, 80e12, 180e9, 8e12, 900e9),
        Chip("cpu", ("cpu",)),
    )
}


def of_kind(device_kind: str) -> Chip | None:
    """The chip that jax calls `device_kind`, or None for one that is not in the table."""
    return next((c for c in CHIPS.values() if device_kind.lower() in c.kinds), None)


def parse(topology: str) -> tuple[Chip, tuple[int, ...]]:
    """(chip, shape) of "v5e:16x16", "h100:64" or "cpu:256"; UserError for anything else."""
    name, _, shape = topology.partition(":")
    if name not in CHIPS:
        raise plugin.UserError(plugin.unknown("--topology: chip", name, CHIPS))
    if not re.fullmatch(r"\d+(x\d+){0,2}", shape) or 0 in map(int, shape.split("x")):
        raise plugin.UserError(
            f"--topology: got {topology!r}, expected {name}:N or the slice's shape, like "
            f"{name}:{'4x4' if CHIPS[name].tpu else '64'}"
        )
    return CHIPS[name], tuple(map(int, shape.split("x")))


def count(shape: tuple[int, ...]) -> int:
    """How many chips a shape has."""
    return math.prod(shape)
