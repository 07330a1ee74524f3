"""Which mesh, remat and batch size a config would do best with on chips that are not there.

    meshes of the devices ─▶ state fits? (exact, nothing compiled) ─▶ batch sizes, small to large
        ─▶ remat, least first ─▶ plan.make ─▶ ranked by the roofline's least time per sample

What cannot win is not compiled: more remat where less fits (it only adds operations), and a larger
batch where a smaller one does not fit with all remat. The rest takes one compilation each.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.models import synthetic
from vla_jax.nn import trunk
from vla_jax.parallel import chips
from vla_jax.parallel import mesh as meshes
from vla_jax.train import plan, smoke, start

REMAT = tuple(trunk.REMAT)  # of config.model.trunk.remat, from keeping all to keeping nothing
TENSOR = 8  # more ways than this never pay: a matmul's pieces become thin


def search(
    config: config_lib.TrainConfig,
    chip: chips.Chip,
    found: Sequence[jax.Device],
    *,
    factors: Sequence[int] = (1,),
    seconds: float = math.inf,
    note: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """{"rows": what was tried, best first, "counts": {outcome: number}, "search_s"}.

    `factors` multiply every stream's batch size; after `seconds` no further compilation begins;
    `note` takes each row as it comes. A row's `outcome` is "fits", "does not fit", "state does not
    fit", "refused" (with `why`), "not needed" or "no time"; the last two are counted alone.
    """
    begin, rows, counts = time.monotonic(), [], dict[str, int]()

    def add(outcome: str, mesh: dict, remat: Any, factor: int, **more: Any) -> str:
        counts[outcome] = counts.get(outcome, 0) + 1
        row = {"outcome": outcome, "mesh": mesh, "remat": remat, "batch_factor": factor, **more}
        if outcome not in ("not needed", "no time"):
            rows.append(row)
            note(row)
        return outcome

    for mesh in shapes(len(found), config.mesh):
        outcome = _state(config, chip, found, mesh, factors)
        if outcome is not None:
            add(outcome.pop("outcome"), mesh, None, 0, **outcome)
            continue
        too_large = False
        for factor in sorted(factors):
            done = ""
            for remat in REMAT:
                if too_large or done in ("fits", "refused"):
                    add("not needed", mesh, remat, factor)
                elif time.monotonic() - begin > seconds:
                    done = add("no time", mesh, remat, factor)
                else:
                    figures = _tried(changed(config, mesh, remat, factor), chip, found)
                    done = add(figures.pop("outcome"), mesh, remat, factor, **figures)
            too_large = too_large or done == "does not fit"
    rows.sort(key=_rank)
    return {"rows": rows, "counts": counts, "search_s": round(time.monotonic() - begin, 1)}


def shapes(count: int, given: config_lib.MeshConfig) -> Iterator[dict[str, int]]:
    """Every {"data", "fsdp", "tensor", "sequence"} of `count` devices, least split first.

    `sequence` stays as `given` says; `tensor` goes to TENSOR.
    """
    sequence = max(given.sequence, 1)
    if count % sequence:
        raise plugin.UserError(
            f"config.mesh.sequence: {sequence} does not divide {count} devices; nearest: 1"
        )
    rest = count // sequence
    divisors = [n for n in range(1, rest + 1) if rest % n == 0]
    for tensor, fsdp in itertools.product(divisors, divisors):
        if tensor <= TENSOR and rest % (tensor * fsdp) == 0:
            data = rest // (tensor * fsdp)
            yield {"data": data, "fsdp": fsdp, "tensor": tensor, "sequence": sequence}


def changed(
    config: config_lib.TrainConfig, mesh: dict[str, int], remat: Any, factor: int
) -> config_lib.TrainConfig:
    """The config with this mesh, remat and multiple of its batch sizes."""
    return dataclasses.replace(
        config,
        mesh=dataclasses.replace(config.mesh, **mesh),
        model=dataclasses.replace(config.model, trunk={**config.model.trunk, "remat": remat}),
        streams={
            name: dataclasses.replace(stream, batch_size=stream.batch_size * factor)
            for name, stream in config.streams.items()
        },
    )


def settings(row: dict[str, Any], config: config_lib.TrainConfig) -> list[str]:
    """The flags that make `config` a row's."""
    flags = [f"--config.mesh.{axis}={size}" for axis, size in row["mesh"].items()]
    flags.append(f"--config.model.trunk.remat={row['remat']}")
    for name, stream in config.streams.items() if row["batch_factor"] != 1 else ():
        size = stream.batch_size * row["batch_factor"]
        flags.append(f"--config.streams.{name}.batch_size={size}")
    return flags


def text(found: dict[str, Any], config: config_lib.TrainConfig, top: int = 20) -> str:
    """The rows as a table, what was left out, how long it took, and the best one's flags."""
    head = f"{'data':>5} {'fsdp':>5} {'tensor':>6} {'remat':>5} {'batch':>6} {'GiB':>8}"
    lines = [f"{head} {'MiB sent':>9} {'ms':>9} {'us/sample':>10} by"]
    for row in found["rows"][:top]:
        sizes = row["mesh"]
        line = (
            f"{sizes['data']:5d} {sizes['fsdp']:5d} {sizes['tensor']:6d} {row['remat'] or '-':>5} "
        )
        line += f"{row['batch_factor']:>5}x "
        if "program_bytes" in row:
            line += f"{row['program_bytes'] / 2**30:8.3f} {row['sent_bytes'] / 2**20:9.1f} "
        if row.get("step_lower_bound_s"):
            line += f"{row['step_lower_bound_s'] * 1e3:9.2f} {row['s_per_sample'] * 1e6:10.2f} "
            line += f"{row['bound_by']} "
        good = row["outcome"] == "fits"
        lines.append(line + ("" if good else f"{row['outcome']}: {row.get('why', '')}"[:120]))
    counts = ", ".join(f"{number} {outcome}" for outcome, number in found["counts"].items())
    lines.append(f"in {found['search_s']:.0f} s: {counts}")
    if found["rows"] and found["rows"][0]["outcome"] == "fits":
        lines.append(f"the best: {' '.join(settings(found['rows'][0], config))}")
    return "\n".join(lines)


def _state(
    config, chip: chips.Chip, found: Sequence[jax.Device], mesh: dict, factors: Sequence[int]
) -> dict | None:
    """Why no batch can be trained on this mesh, from shapes alone; None where one may be."""
    # The state is the same under every batch size; this one divides wherever one of them does.
    small = changed(config, mesh, REMAT[-1], math.lcm(*factors))
    try:
        held = state_bytes(small, found)
    except plugin.UserError as error:
        return {"outcome": "refused", "why": str(error)}
    if chip.memory is not None and held > chip.memory:
        return {"outcome": "state does not fit", "why": f"{held / 2**30:.2f} GiB of state"}
    return None


def state_bytes(config: config_lib.TrainConfig, found: Sequence[jax.Device]) -> int:
    """Bytes of the training state on each device; UserError for what does not fit together."""
    tokenizer, _ = smoke.text_tokenizer(config)
    network, _ = smoke.parts(config, tokenizer)
    mesh = meshes.make(dataclasses.asdict(config.mesh), found)
    examples = synthetic.examples(config, tokenizer.vocabulary_size)
    run = start.plan(config, network, examples, mesh)
    leaves = jax.tree.leaves(run.abstract)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _tried(config, chip: chips.Chip, found: Sequence[jax.Device]) -> dict[str, Any]:
    """The figures of one compilation."""
    begin = time.monotonic()
    try:
        figures = plan.make(config, chip, list(found))
    except plugin.UserError as error:
        return {"outcome": "refused", "why": str(error)}
    except RuntimeError as error:  # XLA's
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"outcome": "does not fit", "why": str(error).splitlines()[0][:200]}
    samples = sum(stream.batch_size for stream in config.streams.values())
    bound = figures["step_lower_bound_s"]
    return {
        "outcome": "does not fit" if figures["fits"] is False else "fits",
        "samples": samples,
        "s_per_sample": None if bound is None else bound / samples,
        "sent_bytes": sum(entry["bytes"] for entry in figures["collectives"].values()),
        "seconds": round(time.monotonic() - begin, 1),
        **{name: figures[name] for name in ("step_lower_bound_s", "bound_by", "mfu_bound")},
        **{name: figures[name] for name in ("program_bytes", "temporary_bytes")},
    }


def _rank(row: dict[str, Any]) -> tuple:
    """Best first: what fits by its least time, then by the bytes that it sends and holds."""
    if row["outcome"] != "fits":
        return (1, row["outcome"], row.get("program_bytes", math.inf))
    sent = row["sent_bytes"] / row["samples"]
    bound = row["s_per_sample"]
    return (0, math.inf if bound is None else bound, sent, row["program_bytes"])
