"""Memory and time of each implementation of attention on Octo-Small's layout, forward and back.

  python benchmarks/attention.py [--rows 8] [--window 2] [--repeats 3] [--dtype float32]
  python benchmarks/attention.py --topology v5e:2x2 --rows 32    compiled for TPUs, nothing is run

The layout and rules of configs/octo_small.py (690 tokens at a window of 2), 6 heads of 64 numbers.
`temporary_mib` is what XLA allocates on a device beside arguments and results, `gflop` what it
counts (not what kernels do), exact both; `cpu_s` is the process's CPU time of one run, the median,
which other work on the machine disturbs less than the time that passes. Kernels are measured on
their platform; with --topology rows are split over the chips, and `compile_s` is said instead. The
last line is one JSON object.
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
from vla_jax.nn.attention_kernels import KERNELS
from vla_jax.parallel import arrays, chips
from vla_jax.parallel import mesh as meshes
from vla_jax.train import plan, smoke

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
    parser.add_argument("--topology", help="of TPUs, by libtpu (extra `plan`)")
    arguments = parser.parse_args()
    layout, rules = octo(arguments.window)
    devices = jax.devices()[:1]
    if arguments.topology:
        devices = plan.devices(*chips.parse(arguments.topology))
    here = devices[0].platform
    kernels = [name for name, kernel in KERNELS.items() if kernel.platform == here]
    with meshes.use(meshes.make(dict(fsdp=-1), devices)) as mesh:
        found = {
            name: measure(name, layout, rules, mesh, arguments)
            for name in (*attention.PLAIN, *kernels)
        }
    seen = visibility.mask(layout, rules)
    print(
        json.dumps(
            {
                "tokens": layout.length,
                "seen": round(float(seen.mean()), 4),
                **vars(arguments),
                "device": devices[0].device_kind,
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


def measure(name: str, layout, rules, mesh, arguments) -> dict:
    """Bytes, operations and seconds of one implementation, its gradient included."""
    shape = (arguments.rows, layout.length, HEADS, HEAD_DIM)
    sharding = arrays.batch_sharding(mesh)
    real = jax.ShapeDtypeStruct(shape, arguments.dtype, sharding=sharding)
    valid = jax.ShapeDtypeStruct(shape[:2], bool, sharding=sharding)

    def loss(q, k, v, valid):  # an argument: XLA would fold a constant for seconds
        out = attention.attention(q, k, v, layout, rules, valid, implementation=name)
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    begin = time.perf_counter()
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(real, real, real, valid).compile()
    figures = {
        "temporary_mib": round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 1),
        "gflop": round(compiled.cost_analysis()["flops"] / 1e9, 2),
        "compile_s": round(time.perf_counter() - begin, 1),
    }
    if arguments.topology:
        return figures
    rng = np.random.default_rng(0)
    parts = [jnp.asarray(rng.normal(size=shape), arguments.dtype) for _ in range(3)]
    parts.append(jnp.ones(shape[:2], bool))
    seconds = []
    for _ in range(arguments.repeats + 1):
        begin = time.process_time()
        jax.block_until_ready(compiled(*parts))
        seconds.append(time.process_time() - begin)
    return {**figures, "cpu_s": round(statistics.median(seconds[1:]), 3)}


if __name__ == "__main__":
    sys.exit(main())
