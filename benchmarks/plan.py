"""What `vla plan` says beside what happens: a train_step's memory, and what planning a pod takes.

  python benchmarks/plan.py [--config configs/octo_small.py] [--rows 8] [--depth 12] [--no-pods]

`planned_mib` is the plan's `program_bytes` for one CPU; `grown_mib` is how far the resident memory
of another process rises above what it holds once everything is compiled, while it makes the state
and takes a train_step; `ratio` is planned / grown (target 0.85 to 1.15). The config's rows and
layers can be cut, its program is that of a training. Then `vla plan` of Octo-Base for 256 CPUs and,
where libtpu is installed, for v5e:16x16: seconds and MB of each. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from vla_jax import config as config_lib
from vla_jax.parallel import fake_devices

POD = "configs/octo_base.py"
TOPOLOGIES = {"cpu:256": dict(plan_s=60, plan_rss_mb=2048), "v5e:16x16": dict(plan_s=180)}
# malloc gives back what is freed: else its holes between buffers of 10 MB would be counted, too.
MALLOC = "glibc.malloc.mmap_threshold=65536"
VLA = "import sys; from vla_jax.cli import main; sys.exit(main.main())"


def main() -> int:
    """Prints the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/octo_small.py", help="configs/X.py[:k=v,…]")
    parser.add_argument("--rows", type=int, default=8, help="of every stream")
    parser.add_argument("--depth", type=int, default=12, help="layers of the trunk")
    parser.add_argument("--no-pods", action="store_true", help="memory alone")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        made = cut(config_lib.load(arguments.config), arguments.rows, arguments.depth)
        print(json.dumps(PARTS[arguments.part](made)))
        return 0
    found = {name: vars(arguments)[name] for name in ("config", "rows", "depth")}
    for part in PARTS:
        found |= child([__file__, *sys.argv[1:], "--part", part])
        print(found, file=sys.stderr, flush=True)
    found["ratio"] = round(found["planned_mib"] / found["grown_mib"], 3)
    tpu = importlib.util.find_spec("libtpu") is not None
    for topology, targets in TOPOLOGIES.items():
        if arguments.no_pods or (topology.startswith("v") and not tpu):
            continue
        said = child(["-c", VLA, "plan", "--config", POD, "--topology", topology])
        found[topology] = {name: said[name] for name in ("plan_s", "plan_rss_mb")}
        found[topology]["target"] = targets
        print(found, file=sys.stderr, flush=True)
    print(json.dumps(found))
    return 0


def child(words: list[str]) -> dict:
    """The last line on stdout of Python with these words, on one CPU device."""
    # A kept program has no memory analysis.
    one = {**fake_devices.variables(1), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    one["GLIBC_TUNABLES"] = MALLOC
    command = [sys.executable, *words]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **one}
    )
    return json.loads(done.stdout.splitlines()[-1])


def cut(config: config_lib.TrainConfig, rows: int, depth: int) -> config_lib.TrainConfig:
    """The config with so many rows and layers."""
    streams = {n: dataclasses.replace(s, batch_size=rows) for n, s in config.streams.items()}
    model = dataclasses.replace(config.model, trunk={**config.model.trunk, "depth": depth})
    return dataclasses.replace(config, streams=streams, model=model)


def planned(config: config_lib.TrainConfig) -> dict:
    """MiB that `vla plan` says, in all and of its parts."""
    from vla_jax.parallel import chips
    from vla_jax.train import plan

    chip, shape = chips.parse("cpu:1")
    said = plan.make(config, chip, plan.devices(chip, shape))
    parts = dict(planned="program", parameters="parameter", optimizer="optimizer")
    parts["temporaries"] = "temporary"
    return {f"{name}_mib": mib(said[f"{key}_bytes"]) for name, key in parts.items()}


def grown(config: config_lib.TrainConfig) -> dict:
    """MiB that this process rises above what it holds once all is compiled."""
    import jax

    from vla_jax.models import synthetic
    from vla_jax.parallel import arrays
    from vla_jax.parallel import mesh as meshes
    from vla_jax.train import program, smoke, start

    tokenizer, _ = smoke.text_tokenizer(config)
    network, objectives = smoke.parts(config, tokenizer)
    size, mesh = tokenizer.vocabulary_size, meshes.make()
    with meshes.use(mesh):
        run = start.plan(config, network, synthetic.examples(config, size), mesh)
        train_step = program.train_step(config, network, objectives, run)
        compiled = program.lower(train_step, run, synthetic.abstract(config, size)).compile()
        jax.block_until_ready(start.fresh(run))  # compiled now; its arrays go
        rows = synthetic.batches(config, size)
        before = settled()
        state = start.fresh(run)
        state, metrics = compiled(state, arrays.global_batch(rows, mesh))
        jax.block_until_ready((state, metrics))
    return {"compiled_mib": mib(before), "grown_mib": mib(resident("VmHWM") - before)}


def settled() -> int:
    """Bytes resident after all that is free was given back; the highest mark begins anew there."""
    import ctypes

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # proc(5): VmHWM := VmRSS
    return resident("VmRSS")


def resident(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", text)[1]) * 1024


def mib(size: float) -> float:
    """Bytes as MiB."""
    return round(size / 2**20, 1)


PARTS = dict(planned=planned, grown=grown)

if __name__ == "__main__":
    sys.exit(main())
