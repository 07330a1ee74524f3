"""How much longer 48 layers take to trace and compile than 12, at equal width: CPU-seconds.

  python benchmarks/depth.py [--repeats 3]

The whole train_step of configs/octo_small.py (690 tokens, 8 rows; the tiny T5 of octo_small.py, so
that a tower which stays the same does not flatter the ratio), lowered and compiled, not run. Each
compilation is in a process of its own without a compile cache, 12 and 48 layers taking turns. CPU
time of all threads, which other work on the machine hardly disturbs. The last line is one JSON
object; `ratio` is that of the medians, wanted below 1.3.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

DEPTHS = (12, 48)


def main() -> int:
    """Prints the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--depth", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.depth:
        print(json.dumps(measure(arguments.depth)))
        return 0
    found: dict[int, list[dict]] = {depth: [] for depth in DEPTHS}
    for _ in range(arguments.repeats):
        for depth, runs in found.items():
            runs.append(child(depth))
            print(f"{depth} layers: {runs[-1]}", file=sys.stderr, flush=True)
    medians = {
        depth: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for depth, runs in found.items()
    }
    few, many = (sum(medians[depth].values()) for depth in DEPTHS)
    runs = {str(depth): each for depth, each in found.items()}
    print(json.dumps({"runs": runs, "medians": medians, "ratio": round(many / few, 3)}))
    return 0


def child(depth: int) -> dict:
    """What a process of its own says of a depth."""
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, __file__, "--depth", str(depth)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(depth: int) -> dict:
    """CPU-seconds of tracing and of compiling the train_step of a trunk of `depth` layers."""
    from benchmarks import octo_small
    from vla_jax.models import synthetic
    from vla_jax.parallel import mesh as meshes
    from vla_jax.train import program, smoke, start

    config = octo_small.config()
    config = octo_small.config(trunk={**config.model.trunk, "depth": depth})
    tokenizer, _ = smoke.text_tokenizer(config)
    network, objectives = smoke.parts(config, tokenizer)
    mesh, size = meshes.make(), tokenizer.vocabulary_size
    with meshes.use(mesh):
        run = start.plan(config, network, synthetic.examples(config, size), mesh)
        train_step = program.train_step(config, network, objectives, run)
        begin = time.process_time()
        lowered = program.lower(train_step, run, synthetic.abstract(config, size))
        traced = time.process_time()
        lowered.compile()
        compiled = time.process_time()
    return {"trace_cpu_s": round(traced - begin, 2), "compile_cpu_s": round(compiled - traced, 2)}


if __name__ == "__main__":
    sys.exit(main())
