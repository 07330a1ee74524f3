"""A trace of some train_steps by jax's profiler, and what in it took the time.

    config ─▶ compile ─▶ warm up ─▶ time ─▶ trace ─▶ FOLDER/plugins/profile/…/HOST.xplane.pb
                 └── the program's text: which line of the model an operation belongs to ──▶ costs

Batches are synthetic, as in `vla plan` and `vla smoke`: the train_step's own time is seen, not that
of the data (a run's metric `data_wait` is). The trace is read by jax itself. What a CPU says of
operations is indicative, since they overlap on its threads; TPUs' traces have not been tried.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
import statistics
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from vla_jax import config as config_lib
from vla_jax import plugin, storage
from vla_jax.models import synthetic
from vla_jax.parallel import arrays
from vla_jax.parallel import mesh as meshes
from vla_jax.train import program, smoke, start

NAME = "train_step"
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = .+? ([a-z][\w\-]*)\(")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
# Of an operation's path, what XLA and jax put between the modules.
_NOISE = re.compile(
    r"^(jit|vmap|checkpoint|rematted_computation|closed_call|while|body|cond|VLA)\b"
)
_CONTAINERS = ("while", "call", "conditional")  # what runs in them is listed by itself


def capture(
    config: config_lib.TrainConfig, folder: str, count: int = 5, warmup: int = 3
) -> dict[str, Any]:
    """Traces `count` train_steps into `folder`; the figures of this process's devices, for JSON.

    Seconds are per train_step and device. UserError for counts below 1, a folder that cannot be
    written, and what does not fit together in the config.
    """
    if count < 1 or warmup < 1:
        raise plugin.UserError(f"profile: got {count} train_steps after {warmup}, expected 1 each")
    root = _made(folder)
    tokenizer, origin = smoke.text_tokenizer(config)
    network, objectives = smoke.parts(config, tokenizer)
    mesh = meshes.make(dataclasses.asdict(config.mesh))
    size = tokenizer.vocabulary_size
    with meshes.use(mesh):
        plan = start.plan(config, network, synthetic.examples(config, size), mesh)
        batches = _batches(config, size, mesh)
        train_step = program.train_step(config, network, objectives, plan)
        compiled = program.lower(train_step, plan, batches).compile()
        state = start.fresh(plan)
        state, _ = _run(compiled, state, batches, warmup)
        state, untraced = _run(compiled, state, batches, count)
        before = _files(root)
        with jax.profiler.trace(str(root), profiler_options=_options()):
            _, traced = _run(compiled, state, batches, count)
    made = sorted(_files(root) - before)
    if not made:
        raise plugin.UserError(f"profile: jax's profiler has written no trace into {root}")
    return {
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "mesh": dict(mesh.shape),
        "train_steps": count,
        "text_tokenizer": origin,
        "step_s": statistics.median(untraced),
        "step_s_traced": statistics.median(traced),
        "trace": str(made[0]),
        **costs(made[0], compiled.as_text(), count, jax.local_device_count()),
    }


def costs(
    file: pathlib.Path, program: str, count: int, devices: int, top: int = 20
) -> dict[str, Any]:
    """What took the time in a trace of `count` runs of the program on `devices` of this host.

    {"busy_s", "operations": the `top` longest, "kinds": {XLA's word: s}, "parts": {pass, module:
    s}}; seconds per run and device, an operation without those that run in it.
    """
    where = sources(program)
    seconds: collections.Counter[str] = collections.Counter()
    times: collections.Counter[str] = collections.Counter()
    profile = jax.profiler.ProfileData.from_file(str(file))
    for plane in profile.planes:
        lines = list(plane.lines)
        lines = [line for line in lines if line.name == "XLA Ops"] or lines
        for line in lines:
            for name, spent in _own_times(_operations(line)):
                seconds[name] += spent / count / devices
                times[name] += 1
    kinds: collections.Counter[str] = collections.Counter()
    parts: collections.Counter[str] = collections.Counter()
    rows = []
    for name, spent in seconds.most_common():
        kind, path = where[name] if name in where else (re.sub(r"[.\d]+$", "", name), "")
        if kind in _CONTAINERS:
            continue
        kinds[kind] += spent
        parts[part(path)] += spent
        runs = times[name] / count / devices
        rows.append({"name": name, "kind": kind, "s": spent, "runs": runs, "where": path})
    return {
        "busy_s": sum(kinds.values()),
        "operations": rows[:top],
        "kinds": dict(kinds.most_common()),
        "parts": dict(parts.most_common()),
    }


def sources(program: str) -> dict[str, tuple[str, str]]:
    """{instruction: (XLA's word for it, the path in the model that it came from, or "")}."""
    found = {}
    for line in program.splitlines():
        if match := _LINE.match(line):
            path = _OP_NAME.search(line)
            found[match[1]] = (match[2], path[1] if path else "")
    return found


def part(path: str) -> str:
    """ "backward trunk", "forward heads_action", "update" or "unknown" of an operation's path."""
    words = re.sub(r"^jit\(\w+\)/?", "", path).split("/")
    if not path or not words[0]:
        return "unknown"
    if "jvp" not in words[0]:
        return "update"
    which = "backward" if words[0].startswith("transpose") else "forward"
    inside = [word for word in words[1:] if word and not _NOISE.match(word)]
    return f"{which} {inside[0].split('.')[0]}" if len(inside) > 1 else which


def text(found: Mapping[str, Any], folder: str, top: int = 15) -> str:
    """The figures as a person reads them, and how to look at the trace."""
    lines = [
        f"{found['devices']}, mesh {found['mesh']}: a train_step takes {found['step_s'] * 1e3:.2f} "
        f"ms ({found['step_s_traced'] * 1e3:.2f} while traced), operations on each device "
        f"{found['busy_s'] * 1e3:.2f} ms",
    ]
    whole = max(found["busy_s"], 1e-12)
    for title in ("parts", "kinds"):
        lines.append(f"{title}, ms per train_step and device")
        for name, seconds in list(found[title].items())[:top]:
            lines.append(f"  {seconds * 1e3:10.3f}  {seconds / whole:6.1%}  {name}")
    lines.append("operations, ms per train_step and device, how often")
    for row in found["operations"][:top]:
        place = re.sub(r"^jit\(\w+\)/", "", row["where"]) or "-"
        lines.append(f"  {row['s'] * 1e3:10.3f}  {row['runs']:5.0f} x  {row['name']:<32} {place}")
    lines += [
        f"the trace: {found['trace']}",
        f"to look at it: pip install xprof; xprof --logdir {folder}     (or tensorboard --logdir "
        f"{folder}), then a browser; {NAME} marks each train_step",
    ]
    return "\n".join(lines)


def _made(folder: str) -> pathlib.Path:
    root = storage.local("--out", storage.absolute(folder))
    if jax.process_count() > 1:  # two processes of one host would write one file
        root = root / f"process-{jax.process_index()}"
    if not storage.writable(root):
        raise plugin.UserError(f"--out: {root} cannot be written; choose another folder")
    return root


def _files(root: pathlib.Path) -> set[pathlib.Path]:
    return {root / name for name in storage.sizes(root) if name.endswith(".xplane.pb")}


def _batches(config: config_lib.TrainConfig, size: int, mesh: jax.sharding.Mesh) -> Any:
    """Synthetic batches over the mesh; of their rows, this host gives those of its devices."""
    found = {}
    for name, batch in synthetic.batches(config, size).items():
        rows = arrays.rows_of_host(mesh, config.streams[name].batch_size)
        found[name] = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], batch)
    return arrays.global_batch(found, mesh)


def _options() -> jax.profiler.ProfileOptions:
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every call of Python would be traced: much, and slow
    return options


def _run(compiled, state, batches, count: int) -> tuple[Any, list[float]]:
    """(the state after `count` train_steps, the seconds of each)."""
    seconds = []
    for number in range(count):
        begin = time.perf_counter()
        with jax.profiler.StepTraceAnnotation(NAME, step_num=number):
            state, metrics = compiled(state, batches)
            jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - begin)
    return state, seconds


def _operations(line: Any) -> list[tuple[float, float, str]]:
    """(start, end, instruction) in ns of a line's events that are XLA's operations."""
    found = []
    for event in line.events:
        with warnings.catch_warnings():  # on Python 3.12, of jaxlib's types
            warnings.simplefilter("ignore", DeprecationWarning)
            stats = dict(event.stats)
        name = stats["hlo_op"] if "hlo_op" in stats else None
        if name is None and line.name == "XLA Ops":  # TPU: the whole line of the program
            name = event.name.partition(" = ")[0].lstrip("%")
        if name is not None:
            found.append((event.start_ns, event.start_ns + event.duration_ns, str(name)))
    return sorted(found, key=lambda event: (event[0], -event[1]))


def _own_times(events: Iterable[tuple[float, float, str]]) -> list[tuple[str, float]]:
    """(instruction, seconds without those of the operations inside it) of each event."""
    found: list[list] = []
    open_: list[tuple[float, int]] = []  # (end, index in found) of the operations around
    for begin, end, name in events:
        while open_ and open_[-1][0] <= begin:
            open_.pop()
        if open_:
            found[open_[-1][1]][1] -= (min(end, open_[-1][0]) - begin) / 1e9
        found.append([name, (end - begin) / 1e9])
        open_.append((end, len(found) - 1))
    return [(name, max(seconds, 0.0)) for name, seconds in found]
