"""Which mesh, remat and batch size a config would do best with on chips that are not there.

    meshes x batch sizes x remat ─▶ bounds from shapes (train/bounds.py) ─▶ what cannot fit is out
        ─▶ the most promising is compiled (plan.make); what it rules out is out ─▶ the next, …
        ─▶ ranked by the roofline's least time per sample

Each compilation rules out: more remat where less fits (it only adds operations), larger batches and
less remat where it did not fit, and whatever cannot be as fast. A number of them is the end.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.parallel import chips
from vla_jax.train import bounds, plan

COMPILATIONS = 8
ROUNDING = 1 + 1e-9
TENSOR = 8  # more ways than this never pay: a matmul's pieces become thin
Note = Callable[[dict[str, Any]], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """What may be compiled, and what it takes at least."""

    mesh: dict[str, int]
    factor: int  # of the config's batch sizes
    remat: str
    bound: bounds.Bound

    def needless(self, tried: Candidate, outcome: str, best: float) -> str | None:
        """Why this one need not be compiled, after `tried`; `best`: the least s per sample yet."""
        if self.mesh == tried.mesh:
            less = bounds.REMAT.index(self.remat) <= bounds.REMAT.index(tried.remat)
            if outcome == "refused" and self.factor == tried.factor:
                return "refused"
            if outcome == "fits" and self.factor == tried.factor and not less:
                return "not needed"
            if outcome == "does not fit" and self.factor >= tried.factor and less:
                return "cannot fit"
        return "not as fast" if self.bound.least_s / self.factor > best * ROUNDING else None


def search(
    config: config_lib.TrainConfig,
    chip: chips.Chip,
    found: Sequence[jax.Device],
    *,
    factors: Sequence[int] = (1,),
    compilations: int = COMPILATIONS,
    seconds: float = math.inf,
    note: Note = lambda row: None,
) -> dict[str, Any]:
    """{"rows": what was found out, best first, "counts": {outcome: number}, "compilations", …}.

    `factors` multiply every stream's batch size; after `compilations`, or `seconds`, no further one
    begins. A row's `outcome` is "fits", "does not fit" (both compiled), "state does not fit" or
    "refused" (with `why`); the counts also have "cannot fit", "not needed", "not as fast" and "not
    tried". `note` takes each row as it comes; before the first compilation one whose outcome is "to
    try", with `candidates` and `at_most`.
    """
    if compilations < 1:
        raise plugin.UserError(f"plan: got {compilations} compilations, expected 1 or more")
    begin = time.monotonic()
    rows, counts = [], collections.Counter[str]()

    def add(row: dict[str, Any]) -> None:
        counts[row["outcome"]] += 1
        rows.append(row)
        note(row)

    pending = _candidates(config, chip, found, factors, add, counts)
    at_most = min(compilations, len(pending))
    note({"outcome": "to try", "candidates": len(pending), "at_most": at_most})
    used, best, excess = 0, math.inf, 0.0
    while pending and used < compilations and time.monotonic() - begin <= seconds:
        chosen = min(pending, key=lambda each: _promise(each, chip, excess))
        row = _tried(config, chip, found, chosen)
        outcome = row["outcome"]
        if outcome != "refused":  # which it is before XLA begins
            used += 1
            row["compilation"] = f"{used}/{at_most}"
        if outcome == "fits" and row["s_per_sample"] is not None:
            best = min(best, row["step_lower_bound_s"] / chosen.factor)
        if "temporary_bytes" in row:
            more = row["temporary_bytes"] - chosen.bound.kept_bytes
            excess = max(excess, more / chosen.factor)
        add(row)
        pending.remove(chosen)
        reasons = [each.needless(chosen, outcome, best) for each in pending]
        counts.update(filter(None, reasons))
        pending = [each for each, reason in zip(pending, reasons) if reason is None]
    counts["not tried"] += len(pending)
    rows.sort(key=_rank)
    return {
        "rows": rows,
        "counts": {outcome: number for outcome, number in counts.items() if number},
        "compilations": used,
        "search_s": round(time.monotonic() - begin, 1),
    }


def _candidates(config, chip: chips.Chip, found, factors, add: Note, counts) -> list[Candidate]:
    """What shapes alone do not rule out; `add` takes a row of each mesh that they do."""
    limits, made = bounds.Bounds(config, chip, found, factors), []
    memory = math.inf if chip.memory is None else chip.memory
    for mesh in shapes(len(found), config.mesh):
        row = {"mesh": mesh, "remat": None, "batch_factor": 0}
        try:
            state = limits.of(mesh, bounds.REMAT[-1], min(factors)).state_bytes
        except plugin.UserError as error:
            add({"outcome": "refused", **row, "why": str(error)})
            continue
        if state > memory:
            why = f"{state / 2**30:.2f} GiB of state"
            add({"outcome": "state does not fit", **row, "why": why})
            continue
        for factor, remat in itertools.product(sorted(factors), bounds.REMAT):
            bound = limits.of(mesh, remat, factor)
            if bound.program_bytes > memory:
                counts["cannot fit"] += 1
            else:
                made.append(Candidate(mesh=mesh, factor=factor, remat=remat, bound=bound))
    return made


def _promise(each: Candidate, chip: chips.Chip, excess: float) -> tuple:
    """Least first: what should fit, by the time and the bytes sent that are to be expected.

    `excess`: by how many bytes programs were over their bound, per multiple of the batch.
    """
    held = each.bound.program_bytes + excess * each.factor
    tight = chip.memory is not None and held > chip.memory
    sent, expected = each.bound.estimated_sent / each.factor, each.bound.estimated_s / each.factor
    return tight, expected, sent, bounds.REMAT.index(each.remat), each.factor


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
    spent = f"in {found['search_s']:.0f} s, {found['compilations']} compilations"
    lines.append(f"{spent}: {counts}")
    if found["rows"] and found["rows"][0]["outcome"] == "fits":
        lines.append(f"the best: {' '.join(settings(found['rows'][0], config))}")
    return "\n".join(lines)


def _tried(config, chip: chips.Chip, found: Sequence[jax.Device], chosen: Candidate) -> dict:
    """The row of one compilation."""
    begin = time.monotonic()
    row = {"mesh": chosen.mesh, "remat": chosen.remat, "batch_factor": chosen.factor}
    made = bounds.changed(config, chosen.mesh, chosen.remat, chosen.factor)
    try:
        figures = plan.make(made, chip, list(found))
    except plugin.UserError as error:
        return {"outcome": "refused", **row, "why": str(error)}
    if figures["refusal"]:
        return {"outcome": "does not fit", **row, "why": figures["refusal"]}
    samples = sum(stream.batch_size for stream in made.streams.values())
    bound = figures["step_lower_bound_s"]
    return {
        "outcome": "does not fit" if figures["fits"] is False else "fits",
        **row,
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
