"""What one train_step asks of each device on 1, 2, 4 and 8 of them, with the same global batch.

  python benchmarks/scaling.py [--config configs/octo_small.py] [--rows 8] [--depth 4]

Compiled for fake CPU devices, nothing is run: they share this machine's cores, and no speed-up
could be seen. For meshes over `data` and over `fsdp`: collectives by kind (runs, and bytes that a
device sends), floating point operations of a device's program as XLA counts them, bytes of its
state, of temporaries and in all. The trunk is cut to `--depth` layers and unrolled, since XLA
counts a loop's body once. `state` holds bytes per device of Octo-Base's whole training state
(parameters, AdamW's moments), replicated and with fsdp=8. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax

from vla_jax import config as config_lib
from vla_jax.models import synthetic
from vla_jax.parallel import census, fake_devices
from vla_jax.parallel import mesh as meshes
from vla_jax.train import plan as plans
from vla_jax.train import program, smoke, start

COUNTS = (1, 2, 4, 8)
STATE = "configs/octo_base.py"


def main() -> int:
    """Prints the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/octo_small.py", help="configs/X.py[:k=v,…]")
    parser.add_argument("--rows", type=int, default=8, help="global batch of every stream")
    parser.add_argument("--depth", type=int, default=4, help="layers of the trunk")
    arguments = parser.parse_args()
    if fake_devices.count() < max(COUNTS):
        # A kept program has no memory analysis.
        more = {**fake_devices.variables(max(COUNTS)), "JAX_ENABLE_COMPILATION_CACHE": "false"}
        command = [sys.executable, __file__, *sys.argv[1:]]
        return subprocess.run(command, env={**os.environ, **more}).returncode
    config = cut(config_lib.load(arguments.config), arguments.rows, arguments.depth)
    found = {"data": [], "fsdp": []}
    for axis, rows in found.items():
        for count in COUNTS if axis == "data" else COUNTS[1:]:
            rows.append(measure(config, axis, count))
            print(f"{axis}={count}: {rows[-1]}", file=sys.stderr, flush=True)
    print(json.dumps({**vars(arguments), "jax": jax.__version__, **found, "state": state()}))
    return 0


def cut(config: config_lib.TrainConfig, rows: int, depth: int) -> config_lib.TrainConfig:
    """The config with so many rows and layers, the trunk unrolled."""
    streams = {n: dataclasses.replace(s, batch_size=rows) for n, s in config.streams.items()}
    trunk = {**config.model.trunk, "depth": depth, "unroll": depth}
    model = dataclasses.replace(config.model, trunk=trunk)
    return dataclasses.replace(config, streams=streams, model=model)


def measure(config: config_lib.TrainConfig, axis: str, count: int) -> dict:
    """The figures of a train_step on `count` devices along `axis`."""
    tokenizer, _ = smoke.text_tokenizer(config)
    network, objectives = smoke.parts(config, tokenizer)
    mesh, size = meshes.make({axis: count}, jax.devices()[:count]), tokenizer.vocabulary_size
    with meshes.use(mesh):
        run = start.plan(config, network, synthetic.examples(config, size), mesh)
        train_step = program.train_step(config, network, objectives, run)
        lowered = program.lower(train_step, run, synthetic.abstract(config, size))
        compiled = lowered.compile(compiler_options=plans.QUICK)
    memory = compiled.memory_analysis()
    return {
        "devices": count,
        "collectives": census.collectives(compiled.as_text(), count),
        "gflop": round(compiled.cost_analysis()["flops"] / 1e9, 3),
        "state_mib": mib(held(run.abstract)),
        "temporary_mib": mib(memory.temp_size_in_bytes),
        "program_mib": mib(
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        ),
    }


def state() -> dict:
    """Bytes per device of Octo-Base's training state, and how many times less fsdp=8 takes."""
    config = config_lib.load(STATE)
    tokenizer, _ = smoke.text_tokenizer(config)
    network, _ = smoke.parts(config, tokenizer)
    examples = synthetic.examples(config, tokenizer.vocabulary_size)
    replicated, sharded = (
        held(start.plan(config, network, examples, meshes.make({axis: 8})).abstract)
        for axis in ("data", "fsdp")
    )
    found = {"replicated_bytes": replicated, "fsdp_8_bytes": sharded}
    return {"config": STATE, **found, "ratio": round(replicated / sharded, 3)}


def held(tree) -> int:
    """Bytes that one device holds of a tree of abstract arrays."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
               for x in jax.tree.leaves(tree))  # fmt: skip


def mib(size: float) -> float:
    """Bytes as MiB."""
    return round(size / 2**20, 1)


if __name__ == "__main__":
    sys.exit(main())
