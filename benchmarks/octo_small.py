"""How long Octo-Small takes here, at its released sizes, beside what Octo itself took.

  python benchmarks/octo_small.py [--steps 5] [--only step remat policy …]

690 tokens, pictures of 256 and 128 px, a window of 2, random numbers for data and parameters; T5 is
a tiny one, as in Octo's own measurement, and trained steps are of 8 rows. Each part runs in a
process of its own, so that nothing is compiled or cached before it; `…_mib` is that process's
largest resident memory. The last line is one JSON object. `floor_s` is the train_step's floating
point operations, as jax counts them before XLA, over what a 2048 x 2048 matmul reaches in the same
process.

  mask     the 690 x 690 rules of attention
  step     init, trace, compile, train_step (loss, gradient, clipping, AdamW), float32
  remat    the same with the trunk's layers computed again in the backward pass
  bf16     the same as `step` with bfloat16 activations
  policy   load a checkpoint, first action, sample_actions; then again with the compile cache
  policy_bf16
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

ROWS = 8
# As tools/demo.py: malloc keeps its memory, on huge pages.
MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
T5_TINY = dict(type="t5", width=64, depth=2, heads=4, head_dim=16, mlp=128)
# Octo on a machine of this kind (jax 0.4.20, medians), in the same units.
OCTO = dict(
    mask_s=7.3, init_s=42.5, trace_s=19.0, compile_s=573.0, step_s=23.1, step_mib=6300,
    load_s=9.0, first_action_s=13.3, sample_s=0.393,
)  # fmt: skip
TARGET = dict(
    mask_s=0.05, init_s=5.0, trace_and_compile_s=20.0, step_s=10.0, remat_step_s=15.0,
    remat_step_mib=3072, first_action_s=5.0, first_action_cached_s=2.0, sample_s=0.34, load_s=2.0,
)  # fmt: skip


def main() -> int:
    """Runs the parts, each in a process, and prints the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5, help="train_steps to time")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--part", choices=(*PARTS, "acts"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        part = {**PARTS, "acts": acts}[arguments.part]
        print(json.dumps(part(arguments)))
        return 0
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            found |= child(name, pathlib.Path(folder) / name, arguments.steps)
            print(f"{name}: {found}", file=sys.stderr, flush=True)
    print(json.dumps({**found, "octo": OCTO, "target": TARGET}))
    return 0


def child(part: str, folder: pathlib.Path, steps: int, **environment: str) -> dict:
    """What a part says, run in a process of its own with its own compile cache."""
    folder.mkdir(exist_ok=True)
    words = [__file__, "--part", part, "--folder", str(folder), "--steps", str(steps)]
    fixed = {"JAX_ENABLE_COMPILATION_CACHE": "false", "GLIBC_TUNABLES": MALLOC}
    environment = {**os.environ, **fixed, **environment}
    done = subprocess.run(
        [sys.executable, *words], stdout=subprocess.PIPE, text=True, env=environment, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def config(**model):
    """configs/octo_small.py with a tiny T5 and ROWS rows; `model` are settings of the model."""
    from vla_jax import config as config_lib

    made = config_lib.load("configs/octo_small.py")
    stream = dataclasses.replace(made.streams["robot"], batch_size=ROWS)
    tokenizers = {**made.model.tokenizers}
    language = tokenizers["language"]
    tokenizers["language"] = {**language, "encoder": dict(T5_TINY, vocabulary_size=512)}
    network = dataclasses.replace(made.model, tokenizers=tokenizers, **model)
    return dataclasses.replace(
        made, model=network, streams={"robot": stream}, init_from=None, text_pieces=None
    )


def mask(_) -> dict:
    """Seconds of the layout's first mask."""
    from vla_jax.nn import visibility
    from vla_jax.train import smoke

    made = config()
    network, _ = smoke.parts(made, smoke.text_tokenizer(made)[0])
    layout, rules = network.layout("robot"), visibility.make(made.model.rules)
    visibility.mask.cache_clear()
    seen, seconds = timed(lambda: visibility.mask(layout, rules))
    return {"tokens": seen.shape[0], "mask_s": seconds}


def step(arguments, prefix: str = "", **model) -> dict:
    """Seconds of init, trace, compile and the median train_step, and the floor under it."""
    import jax

    from benchmarks import step as whole
    from vla_jax.models import synthetic
    from vla_jax.parallel import arrays
    from vla_jax.parallel import mesh as meshes
    from vla_jax.train import program, smoke, start

    made = config(**model)
    tokenizer, _ = smoke.text_tokenizer(made)
    network, objectives = smoke.parts(made, tokenizer)
    mesh = meshes.make()
    with meshes.use(mesh):
        begin = time.perf_counter()
        examples = synthetic.examples(made, tokenizer.vocabulary_size)
        plan = start.plan(made, network, examples, mesh)
        state = jax.block_until_ready(start.fresh(plan))
        init = time.perf_counter() - begin
        batches = arrays.global_batch(synthetic.batches(made, tokenizer.vocabulary_size), mesh)
        train_step = program.train_step(made, network, objectives, plan)
        lowered, trace = timed(lambda: train_step.lower(state, batches))
        compiled, compile_ = timed(lowered.compile)
        seconds = []
        for _ in range(arguments.steps + 1):
            begin = time.perf_counter()
            state, metrics = compiled(state, batches)
            jax.block_until_ready(metrics["loss"])
            seconds.append(time.perf_counter() - begin)
    found = dict(
        init_s=init,
        trace_s=trace,
        compile_s=compile_,
        trace_and_compile_s=trace + compile_,
        step_s=statistics.median(seconds[1:]),
        step_mib=mib(),
    )
    if not model:
        peak, work = whole.peak(), whole.operations(made, tokenizer)
        found |= dict(step_gflop=work / 1e9, peak_gflops=peak / 1e9, floor_s=work / peak)
    return {prefix + name: round(value, 3) for name, value in found.items()}


def remat(arguments) -> dict:
    """`step`, keeping nothing of a layer but its input."""
    return step(arguments, "remat_", trunk={**config().model.trunk, "remat": "full"})


def bf16(arguments) -> dict:
    """`step` in bfloat16."""
    return step(arguments, "bf16_", dtype="bfloat16")


def policy(arguments, prefix: str = "", **model) -> dict:
    """Seconds of a policy in a process that has compiled nothing, then with a compile cache."""
    import jax

    from vla_jax.codecs import normalizer
    from vla_jax.models import build, synthetic
    from vla_jax.train import checkpoint, smoke

    made = config(**model)
    tokenizer, _ = smoke.text_tokenizer(made)
    network, _ = smoke.parts(made, tokenizer)
    examples = synthetic.examples(made, tokenizer.vocabulary_size)
    variables = jax.jit(network.init)(jax.random.key(0), examples)
    spaces = build.action_spaces(build.embodiments(made))
    ones = (1.0,) * spaces[0].size
    unit = normalizer.Statistics(
        1, **dict.fromkeys(("mean", "std", "min", "max", "q01", "q99"), ones)
    )
    entry = normalizer.Entry(mode="identity", statistics=unit, active=(True,) * len(ones))
    assets = checkpoint.Assets(
        normalizer=normalizer.Normalizer({"bridge": {"action": entry}}).to_json(),
        text_tokenizer=tokenizer.bytes,
        action_spaces=spaces,
    )
    folder = pathlib.Path(arguments.folder)
    saver = checkpoint.Checkpoints(str(folder / "run"), made, assets)
    saver.save_parameters(1, variables)
    saver.close()
    cache = dict(
        JAX_ENABLE_COMPILATION_CACHE="true",
        JAX_COMPILATION_CACHE_DIR=str(folder / "cache"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )
    cold = child("acts", folder, arguments.steps)
    child("acts", folder, arguments.steps, **cache)
    warm = child("acts", folder, arguments.steps, **cache)
    found = {**cold, "first_action_cached_s": warm["first_action_s"]}
    return {prefix + name: value for name, value in found.items()}


def acts(arguments) -> dict:
    """Seconds from a checkpoint's folder to a policy, to its first action, and of later ones."""
    import numpy as np

    from vla_jax.policy import policy as policies

    made, load = timed(lambda: policies.Policy.load(str(pathlib.Path(arguments.folder) / "run")))
    rng = np.random.default_rng(0)
    sizes = made.stream.image_sizes

    def act() -> float:
        images = {name: rng.integers(0, 256, (*size, 3), np.uint8) for name, size in sizes.items()}
        made.observe(0, {"images": images})
        return timed(lambda: made.act(["pick it up"]))[1]

    first, *later = (act() for _ in range(2 + max(20, arguments.steps)))
    found = dict(load_s=load, first_action_s=first, sample_s=statistics.median(later[1:]))
    return {name: round(value, 3) for name, value in found.items()} | {"policy_mib": mib()}


def policy_bf16(arguments) -> dict:
    """`policy` in bfloat16."""
    return policy(arguments, "bf16_", dtype="bfloat16")


def timed(work):
    """(what `work` returns, seconds)."""
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin


def mib() -> float:
    """The largest resident memory of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


PARTS = dict(mask=mask, step=step, remat=remat, bf16=bf16, policy=policy, policy_bf16=policy_bf16)

if __name__ == "__main__":
    sys.exit(main())
