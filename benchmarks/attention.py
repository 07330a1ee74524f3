"""Memory and time of each implementation of attention on Octo-Small's layout, forward and back.

  python benchmarks/attention.py [--rows 8] [--window 2] [--repeats 3] [--dtype float32]

The layout and rules of configs/octo_small.py (690 tokens at a window of 2), 6 heads of 64 numbers.
`temporary_mib` is what XLA allocates beside arguments and results, `gflop` what it counts, exact
both; `cpu_s` is the process's CPU time of one run, the median, which other work on the machine
disturbs less than the time that passes. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax import config as config_lib
from vla_jax.nn import attention, visibility
from vla_jax.train import smoke

HEADS, HEAD_DIM = 6, 64


def main() -> int:
    """Prints the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--window", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    layout, rules = octo(arguments.window)
    found = {
        name: measure(name, layout, rules, arguments)
        for name in attention.IMPLEMENTATIONS
        if name != "auto"
    }
    seen = visibility.mask(layout, rules)
    print(
        json.dumps(
            {
                "tokens": layout.length,
                "seen": round(float(seen.mean()), 4),
                **vars(arguments),
                "device": jax.devices()[0].device_kind,
                "jax": jax.__version__,
                "implementations": found,
            }
        )
    )
    return 0


def octo(window: int):
    """(layout, rules) of configs/octo_small.py at a window."""
    config = config_lib.load("configs/octo_small.py")
    stream = dataclasses.replace(config.streams["robot"], window=window)
    config = dataclasses.replace(config, streams={"robot": stream})
    network, _ = smoke.parts(config, smoke.text_tokenizer(config)[0])
    return network.layout("robot"), visibility.make(config.model.rules)


def measure(name: str, layout, rules, arguments) -> dict:
    """Bytes, operations and seconds of one implementation, its gradient included."""
    rng = np.random.default_rng(0)
    shape = (arguments.rows, layout.length, HEADS, HEAD_DIM)
    q, k, v = (jnp.asarray(rng.normal(size=shape), arguments.dtype) for _ in range(3))
    valid = jnp.ones(shape[:2], bool)

    def loss(q, k, v):
        out = attention.attention(q, k, v, layout, rules, valid, implementation=name)
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, v).compile()
    seconds = []
    for _ in range(arguments.repeats + 1):
        begin = time.process_time()
        jax.block_until_ready(compiled(q, k, v))
        seconds.append(time.process_time() - begin)
    return {
        "temporary_mib": round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 1),
        "gflop": round(compiled.cost_analysis()["flops"] / 1e9, 2),
        "cpu_s": round(statistics.median(seconds[1:]), 3),
    }


if __name__ == "__main__":
    sys.exit(main())
