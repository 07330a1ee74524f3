"""Floating point operations of a network, by module: what utilisation (MFU) is measured by.

Matmuls and convolutions of the traced forward pass are counted, a scan's body as often as it runs
(XLA's own count takes it once). A train_step is three forward passes of what is trained, the
convention of PaLM (Chowdhery et al. 2022, appendix B); recomputation (remat) and frozen encoders
count nothing, attention counts with the pairs that are computed (by a kernel: that its stand-in
in XLA's operations computes).
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from vla_jax import config as config_lib
from vla_jax import trees
from vla_jax.models import synthetic
from vla_jax.train import keys

BACKWARD = 2  # a backward pass is two forward passes: to the inputs, and to the weights


def train_step(
    config: config_lib.TrainConfig,
    network,
    vocabulary_size: int,
    variables: Any = None,
    batches: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """{part of the network: operations of one train_step on the whole global batch}.

    Parts are modules as parameter paths name them ("trunk", "tokenizers_primary", "heads_action").
    `variables` and `batches` are the shapes of all parameters and of the config's batches, where
    somebody has made them already.
    """
    if variables is None:
        variables = jax.eval_shape(
            lambda: network.init(jax.random.key(0), synthetic.examples(config, vocabulary_size))
        )
    found: collections.Counter[str] = collections.Counter()
    batches = synthetic.abstract(config, vocabulary_size) if batches is None else batches
    for stream, batch in batches.items():
        for path, flops in forward(config, network, variables, stream, batch).items():
            if not _frozen(path, variables, config.freeze):
                found[path.split("/")[0]] += (1 + BACKWARD) * flops
    return dict(found)


def forward(
    config: config_lib.TrainConfig, network, variables: Any, stream: str, batch: Any
) -> dict[str, float]:
    """{module path, without its collection: operations} of a stream's forward pass."""

    network = network.plain()  # what a kernel does cannot be counted from outside

    def run(variables, batch):
        uses = config.streams[stream].heads
        row_keys = {use: keys.row_keys(config.seed, use, batch.row_id) for use in uses}
        return network.apply(variables, batch, stream, row_keys)

    found: collections.Counter[str] = collections.Counter()
    for stack, flops in _count(jax.make_jaxpr(run)(variables, batch).jaxpr, 1, ()):
        found[_path(stack)] += flops
    return dict(found)


def _count(jaxpr: Any, times: int, stack: tuple[str, ...]) -> Iterator[tuple[tuple, float]]:
    for equation in jaxpr.eqns:
        here = (*stack, *str(equation.source_info.name_stack).split("/"))
        name = equation.primitive.name
        if name == "dot_general":
            yield here, times * _dot(equation)
        elif name == "conv_general_dilated":
            yield here, times * _convolution(equation)
        inner = times * equation.params["length"] if name == "scan" else times
        for value in equation.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                sub = getattr(item, "jaxpr", item)  # a ClosedJaxpr, or a Jaxpr
                if hasattr(sub, "eqns"):
                    yield from _count(sub, inner, here)


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution(equation: Any) -> float:
    kernel = equation.invars[1].aval.shape
    features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / features


def _path(stack: tuple[str, ...]) -> str:
    """The module's path of a name stack like VLA/VLA._forward/trunk/layers/trunk.after/mlp/out."""
    parts: list[str] = []
    for name in stack:
        name = name.partition(".")[0]  # a method's name follows the module's
        plain = name.isidentifier() and name[0].islower()  # einsum's equations are not
        if plain and name not in parts[-1:]:
            parts.append(name)
    return "/".join(parts)


def _frozen(path: str, variables: Mapping, rows: tuple[config_lib.Row, ...]) -> bool:
    """Whether all parameters below the deepest module of the path that has any are frozen."""
    parts = path.split("/")
    for end in range(len(parts), 0, -1):
        prefix = f"params/{'/'.join(parts[:end])}/"
        below = [name for name, _ in trees.items(variables) if name.startswith(prefix)]
        if below:
            return all(trees.first_match((*rows, (".*", False)), name) for name in below)
    return False
