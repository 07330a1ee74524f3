"""What a config needs on a machine that is not there: compiled ahead of time, nothing is run.

    config, chips ─▶ shapes and shardings ─▶ lower, compile ─▶ bytes per device, collectives
                  └▶ traced forward pass ─▶ operations ─▶ the least time of a train_step

For TPUs libtpu compiles for the topology itself (extra `plan`), and everything is what the chips
would hold. Without it, and for GPUs, the program is partitioned for as many fake CPU devices:
parameters, optimizer and collectives are exact then, temporaries are those of XLA's CPU compiler.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.models import synthetic
from vla_jax.parallel import arrays, census, chips, fake_devices
from vla_jax.parallel import mesh as meshes
from vla_jax.train import feed, program, smoke, start
from vla_jax.train import flops as flops_lib

# A program that is only looked at need not be fast. LLVM comes after XLA has laid out its buffers:
# these two change none of the figures; the config's own options stand beneath them.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def devices(chip: chips.Chip, shape: tuple[int, ...]) -> list[jax.Device]:
    """The devices to plan for: those of a TPU topology where libtpu is there, else fake ones.

    UserError where fewer fake CPU devices than chips were asked for at this process's start.
    """
    if chip.tpu and (found := _tpu_devices(chip, shape)):
        return found
    count = chips.count(shape)
    if jax.device_count() < count:
        raise plugin.UserError(
            f"plan: {jax.device_count()} devices, expected {count}; start `vla plan`, or set "
            f"XLA_FLAGS={fake_devices.FLAG}={count}"
        )
    return jax.devices()[:count]


def make(config: config_lib.TrainConfig, chip: chips.Chip, found: list[jax.Device]) -> dict:
    """The figures of a config on `found` devices, ready for JSON; bytes and seconds per device.

    A program that a chip cannot hold has no collectives and temporaries, but a `refusal`: libtpu
    compiles nothing that does not fit. UserError for what does not fit together: mesh, batch
    sizes, tables.
    """
    tokenizer, origin = smoke.text_tokenizer(config)
    network, objectives = smoke.parts(config, tokenizer)
    mesh = meshes.make(dataclasses.asdict(config.mesh), found)
    real = found[0].platform == "tpu"
    size = tokenizer.vocabulary_size
    with meshes.use(mesh):
        run = start.plan(config, network, synthetic.examples(config, size), mesh)
        batches = synthetic.abstract(config, size)
        train_step = program.train_step(config, network, objectives, run)
        lowered = program.lower(train_step, run, batches)
        compiled, refusal = _compile(lowered, None if real else QUICK)
    memory = exact_memory(run.abstract, batches, mesh) | _program_memory(compiled)
    sent = census.collectives(compiled.as_text(), len(found)) if compiled else None
    work = flops_lib.train_step(config, network, size, run.variables, batches)
    least = times(config, chip, len(found), work, memory, sent)
    fits = False if refusal else None
    if compiled:
        memory["program_bytes"] += feed.AHEAD * memory["batch_bytes"]
        fits = None if chip.memory is None else memory["program_bytes"] <= chip.memory
    figures = {
        "mesh": dict(mesh.shape),
        "devices": len(found),
        "chip": chip.name,
        "compiled_for": "tpu" if real else "cpu",
        "text_tokenizer": origin,
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(run.variables)),
        **memory,
        "memory_bytes": chip.memory,
        "fits": fits,
        "refusal": refusal,
        "collectives": sent,
        "train_step_flops": sum(work.values()),
        "flops_by_part": work,
        **least,
    }
    known = {name for name, figure in figures.items() if figure is not None}
    sure = _sure(config, origin, real)
    return figures | {kind: [x for x in names if x in known] for kind, names in sure.items()}


def _tpu_devices(chip: chips.Chip, shape: tuple[int, ...]) -> list[jax.Device] | None:
    """The devices of a topology, compiled for by libtpu; None without libtpu."""
    import importlib.util

    if importlib.util.find_spec("libtpu") is None:
        return None
    from jax.experimental import topologies

    name = f"{chip.name}:{'x'.join(map(str, shape))}"
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:  # libtpu's own errors have no common type
        raise plugin.UserError(
            f"--topology {name}: libtpu does not know it ({str(error).splitlines()[0][:200]}); "
            "slices are like v5e:4x4, v5e:16x16, v5p:4x4x4"
        ) from error


def exact_memory(state: Any, batches: Any, mesh: Mesh) -> dict[str, int]:
    """Bytes per device of a state's parts (shapes with shardings) and of its rows of a batch."""

    def held(tree: Any) -> int:
        leaves = jax.tree.leaves(tree)
        return sum(math.prod(x.sharding.shard_shape(x.shape)) * item_bytes(x) for x in leaves)

    rows = sum(math.prod(x.shape) * item_bytes(x) for x in jax.tree.leaves(batches))
    return {
        "parameter_bytes": held((state.trained, state.frozen)),
        "optimizer_bytes": held(state.opt_state),
        "ema_bytes": held(state.ema),
        "batch_bytes": rows // arrays.shards(mesh),
    }


def _compile(lowered: Any, options: dict | None) -> tuple[Any, str | None]:
    """(the program, None), or (None, what XLA says) where it is too large for the chip."""
    try:
        return lowered.compile(compiler_options=options), None
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, str(error).splitlines()[0][:300]


def _program_memory(compiled: Any) -> dict[str, int | None]:
    """Bytes per device of the whole program while it runs; None for one that is too large."""
    if compiled is None:
        return {"temporary_bytes": None, "program_bytes": None}
    found = compiled.memory_analysis()
    return {
        "temporary_bytes": found.temp_size_in_bytes,
        # The state's new values take the old ones' place where they are donated.
        "program_bytes": found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes,
    }


def _sure(config: config_lib.TrainConfig, origin: str, real: bool) -> dict[str, list[str]]:
    """Which figures are those of the run, and which only indicate them.

    Lengths are the config's. Piece embeddings have as many rows as the text tokenizer has pieces,
    which nobody knows without its file or `config.text_pieces`; nothing else depends on it.
    """
    names = ["parameter_bytes", "optimizer_bytes", "batch_bytes", "collectives", "train_step_flops"]
    guessed = config.text_pieces is None and origin != config.text_tokenizer
    words = guessed and "text_embedding" in config.model.shared
    exact = ["batch_bytes"] if words else names
    indicative = [name for name in names if name not in exact]
    if real and not words:
        return {"exact": [*exact, "temporary_bytes"], "indicative": indicative}
    return {"exact": exact, "indicative": [*indicative, "temporary_bytes", "program_bytes", "fits"]}


def item_bytes(leaf: Any) -> int:
    """Bytes of a leaf's number; a random key's are its words'."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf.dtype.itemsize
    return np.dtype(leaf.dtype).itemsize


def times(config, chip, count: int, work: dict, memory: dict, sent: dict | None) -> dict:
    """The roofline: seconds that arithmetic, memory and network each take at least.

    Without `sent`, of a program that was not compiled, nothing is said of the network.
    """
    rate = chip.flops if config.model.dtype == "bfloat16" else chip.flops_float32
    if rate is None:
        return {"bounds_s": None, "step_lower_bound_s": None, "bound_by": None, "mfu_bound": None}
    # Parameters are read in both passes and written, the optimizer's state is read and written.
    moved = 3 * memory["parameter_bytes"] + 2 * memory["optimizer_bytes"] + memory["batch_bytes"]
    bounds = {
        "arithmetic": sum(work.values()) / (count * rate),
        "memory": moved / chip.bandwidth,
    }
    if sent is not None:
        bounds["network"] = sum(entry["bytes"] for entry in sent.values()) / chip.network
    slowest = max(bounds, key=bounds.get)
    return {
        "bounds_s": bounds,
        "step_lower_bound_s": bounds[slowest],
        "bound_by": slowest,
        "mfu_bound": bounds["arithmetic"] / bounds[slowest] * (rate / chip.flops),
    }


def text(found: dict) -> str:
    """The figures as a person reads them."""

    def gib(name: str) -> str:
        return "       ?" if found[name] is None else f"{found[name] / 2**30:8.3f} GiB"

    unsure = ""
    if "parameter_bytes" in found["indicative"]:
        unsure = "; what piece embeddings hold and compute is INEXACT: set config.text_pieces"
    note = "" if found["compiled_for"] == "tpu" else "   (of XLA's CPU compiler: indicative)"
    lines = [
        f"{found['devices']} x {found['chip']}, mesh {found['mesh']}, "
        f"{found['parameters']:,} parameters",
        f"text tokenizer: {found['text_tokenizer']}{unsure}",
        "per device",
        f"  parameters  {gib('parameter_bytes')}",
        f"  optimizer   {gib('optimizer_bytes')}",
        f"  average     {gib('ema_bytes')}",
        f"  batch       {gib('batch_bytes')}   (and {feed.AHEAD} more, read ahead)",
        f"  temporaries {gib('temporary_bytes')}{note}",
        f"  in all      {gib('program_bytes')}{note}",
    ]
    if found["memory_bytes"]:
        verdict = "fits" if found["fits"] else "DOES NOT FIT"
        lines.append(f"  chip        {found['memory_bytes'] / 2**30:8.3f} GiB: {verdict}")
    if found["refusal"]:
        lines.append(f"  its compiler: {found['refusal']}")
    unknown = ": ?" if found["collectives"] is None else ""
    lines.append(f"collectives per train_step and device{unknown}")
    for kind, entry in (found["collectives"] or {}).items():
        lines.append(f"  {kind:<18} {entry['count']:6d} x, {entry['bytes'] / 2**20:12.1f} MiB sent")
    lines.append(f"operations of a train_step {found['train_step_flops'] / 1e12:.3f} TFLOP")
    for part, flops in sorted(found["flops_by_part"].items(), key=lambda pair: -pair[1]):
        lines.append(f"  {part:<24} {flops / found['train_step_flops']:6.1%}")
    if found["bounds_s"]:
        each = ", ".join(f"{name} {s * 1e3:.1f}" for name, s in found["bounds_s"].items())
        lines.append(
            f"a train_step takes at least {found['step_lower_bound_s'] * 1e3:.1f} ms, by "
            f"{found['bound_by']} (ms: {each}); MFU at most {found['mfu_bound']:.1%}"
        )
    return "\n".join(lines)
