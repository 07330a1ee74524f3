"""How long a config's train_step takes here: trace, compile, step, tokens/s, share of peak.

  python benchmarks/step.py --config configs/demo_cofinetune.py [--steps 20] [--batch-size 16]

Synthetic batches, all devices on the data axis. The last line is one JSON object. `peak_share` is
the train_step's floating point operations per second over what this machine does in a 2048 x 2048
float32 matmul, measured in the same run. The operations are those that jax counts in the traced
train_step, backward pass, remat and optimizer included, with the trunk's scan unrolled (a scan's
body would be counted once).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp

from vla_jax import config as config_lib
from vla_jax import plugin, trees
from vla_jax.models import synthetic
from vla_jax.parallel import arrays
from vla_jax.parallel import mesh as meshes
from vla_jax.train import program, smoke, start, step

SIDE = 2048  # of the matmul that measures the peak


def main() -> int:
    """Prints the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="configs/X.py[:key=value,…]")
    parser.add_argument("--steps", type=int, default=10, help="train_steps to time")
    parser.add_argument("--batch-size", type=int, help="of every stream, instead of the config's")
    arguments = parser.parse_args()
    try:
        config = config_lib.load(arguments.config)
        if arguments.batch_size:
            streams = {
                name: dataclasses.replace(stream, batch_size=arguments.batch_size)
                for name, stream in config.streams.items()
            }
            config = dataclasses.replace(config, streams=streams)
        print(json.dumps({"config": arguments.config, **measure(config, arguments.steps)}))
    except plugin.UserError as error:
        print(f"benchmarks/step.py: {error}", file=sys.stderr)
        return 2
    return 0


def measure(config: config_lib.TrainConfig, count: int) -> dict:
    """Seconds of trace, compile and the median train_step, and what follows from them."""
    tokenizer, origin = smoke.text_tokenizer(config)
    network, objectives = smoke.parts(config, tokenizer)
    mesh = meshes.make(dataclasses.asdict(config.mesh))
    with meshes.use(mesh):
        examples = synthetic.examples(config, tokenizer.vocabulary_size)
        plan = start.plan(config, network, examples, mesh)
        batches = arrays.global_batch(synthetic.batches(config, tokenizer.vocabulary_size), mesh)
        train_step = program.train_step(config, network, objectives, plan)
        state = start.fresh(plan)
        lowered, trace = _timed(lambda: train_step.lower(state, batches))
        compiled, compile_ = _timed(lowered.compile)
        seconds = []
        for _ in range(count + 1):
            begin = time.perf_counter()
            state, metrics = compiled(state, batches)
            jax.block_until_ready(metrics["loss"])
            seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds[1:])
    tokens = {
        name: network.layout(name).length * stream.batch_size
        for name, stream in config.streams.items()
    }
    reached, work = peak(), operations(config, tokenizer)
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "parameters": trees.count(plan.variables),
        "text_tokenizer": origin,
        "tokens": tokens,
        "trace_s": round(trace, 3),
        "compile_s": round(compile_, 3),
        "step_s": round(median, 5),
        "step_s_all": [round(s, 5) for s in seconds],
        "tokens_per_s": round(sum(tokens.values()) / median, 1),
        "train_step_gflop": round(work / 1e9, 3),
        "peak_gflops": round(reached / 1e9, 1),
        "peak_share": round(work / median / reached, 4),
    }


def operations(config: config_lib.TrainConfig, tokenizer) -> float:
    """Floating point operations of one train_step, counted before XLA simplifies it."""
    trunk = {**config.model.trunk, "unroll": config.model.trunk["depth"]}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, trunk=trunk))
    network, objectives = smoke.parts(config, tokenizer)
    mesh = meshes.make(devices=jax.devices()[:1])
    with meshes.use(mesh):
        size = tokenizer.vocabulary_size
        plan = start.plan(config, network, synthetic.examples(config, size), mesh)
        train_step = step.make_train_step(network.apply, objectives, plan.optimizer, config)
        lowered = jax.jit(train_step).lower(plan.abstract, synthetic.abstract(config, size))
    return lowered.cost_analysis()["flops"]


def _timed(work):
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin


def peak() -> float:
    """Floating point operations per second of a float32 matmul on all devices, the best of five."""
    count = jax.device_count()
    mesh = meshes.make()
    with meshes.use(mesh):
        x = jax.device_put(jnp.ones((count, SIDE, SIDE)), arrays.batch_sharding(mesh))
        multiply = jax.jit(lambda a: jnp.einsum("nij,njk->nik", a, a))
        multiply(x).block_until_ready()
        best = min(_timed(lambda: multiply(x).block_until_ready())[1] for _ in range(5))
    return count * 2 * SIDE**3 / best


if __name__ == "__main__":
    sys.exit(main())
