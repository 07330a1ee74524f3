"""Which process of how many this is: said by flags, or by the variables of what started it.

| started by | read |
|---|---|
| `--process I/N@HOST:PORT`, `launch/local.py` | VLA_COORDINATOR, VLA_PROCESSES, VLA_PROCESS |
| mpirun (Open MPI 4) | OMPI_MCA_orte_hnp_uri, OMPI_COMM_WORLD_{SIZE, RANK} |
| GKE with TPUs | TPU_WORKER_{HOSTNAMES, ID}, of several slices MEGASCALE_* too |
| JobSet (`launch/gke.py`, XPK) | JOBSET_NAME, REPLICATED_JOB_NAME, JOB_COMPLETION_INDEX, … |
| srun | SLURM_JOB_ID, SLURM_STEP_NODELIST, SLURM_NTASKS, SLURM_PROCID, SLURM_LOCALID |

The first row that applies says it. jax reads the same variables (`jax/_src/clusters`, 0.10.2 to
0.12), but waits minutes for processes that nobody starts where they are half set, asks the API of
Kubernetes where a pod's variables would do, and gives one process per node one GPU only.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from vla_jax import plugin

FLAGS = ("VLA_COORDINATOR", "VLA_PROCESSES", "VLA_PROCESS")
SLURM = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)
SLICES = ("MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID", "MEGASCALE_COORDINATOR_ADDRESS")
COUNTS = ("JAX_PROCESS_COUNT", "NNODES")  # of a JobSet; the second is XPK's word
TPU_PORT, JOBSET_PORT = 8482, 55527  # jax's own
ALONE = "set VLA_SINGLE=1 if this process is to compute alone"

Environment = Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seat:
    """One process's place among all."""

    launcher: str
    processes: int
    process: int
    coordinator: str | None  # host:port of process 0; None: jax finds it
    devices: tuple[int, ...] | None = None  # numbers of this host's GPUs; None: all it sees


def find(environment: Environment) -> Seat | None:
    """The place that the environment gives this process, None where it is the only one.

    UserError for variables that are half set, no numbers, or contradict one another.
    """
    given = {name: value for name, value in environment.items() if value}
    alone = "VLA_SINGLE" in given and given["VLA_SINGLE"] != "0"
    if any(name in given for name in FLAGS):
        if alone:
            raise plugin.UserError(
                "environment: VLA_SINGLE says that this process is alone, "
                f"VLA_COORDINATOR and its like that it is not ({_said(given, FLAGS)}); unset one"
            )
        seat = _of_flags(given)
    elif alone:
        return None
    else:
        seat = _mpi(given) or _tpu(given) or _jobset(given) or _slurm(given)
    return seat if seat is not None and seat.processes > 1 else None


def flag(text: str) -> dict[str, str]:
    """The variables that `--process I/N@HOST:PORT` stands for; UserError for another form."""
    match = re.fullmatch(r"(\d+)/(\d+)@(.+:\d+)", text)
    if match is None:
        raise plugin.UserError(
            f"--process: got {text!r}, expected I/N@HOST:PORT, e.g. 0/4@10.0.0.7:1234: process I "
            "(from 0) of N, and where process 0 listens"
        )
    found = dict(zip(FLAGS, (match[3], match[2], match[1])))
    _of_flags(found)
    return found


def _of_flags(given: Environment) -> Seat:
    _complete(given, FLAGS, "--process or launch/local.py", "give all three, or none")
    coordinator = given["VLA_COORDINATOR"]
    if not re.fullmatch(r".+:\d+", coordinator):
        raise plugin.UserError(
            f"environment: VLA_COORDINATOR is {coordinator!r}, expected HOST:PORT of process 0"
        )
    count, process = _number(given, "VLA_PROCESSES"), _number(given, "VLA_PROCESS")
    return _seat("flags", count, process, coordinator, given, FLAGS)


def _mpi(given: Environment) -> Seat | None:
    names = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
    if not any(name in given for name in names):
        return None
    _complete(given, names, "mpirun", ALONE)
    count, process = (_number(given, name) for name in names)
    if count > 1 and "OMPI_MCA_orte_hnp_uri" not in given:
        raise plugin.UserError(
            f"environment: mpirun started {count} processes, but says not where the first one is "
            "(Open MPI 5 does not); give --process "
            "$OMPI_COMM_WORLD_RANK/$OMPI_COMM_WORLD_SIZE@HOST:PORT"
        )
    devices = (_number(given, "OMPI_COMM_WORLD_LOCAL_RANK"),) if count > 1 else None
    return _seat("mpirun", count, process, None, given, names, devices)


def _tpu(given: Environment) -> Seat | None:
    """Slices on GKE; on other Cloud TPU machines nothing is set, and jax asks their metadata."""
    where = "TPU_PROCESS_ADDRESSES" if "TPU_PROCESS_ADDRESSES" in given else "TPU_WORKER_HOSTNAMES"
    if where not in given:
        return None
    hosts = [word.strip().rsplit(":", 1)[0] for word in given[where].split(",")]
    names = (where, "TPU_WORKER_ID")
    if len(hosts) > 1 or "TPU_WORKER_ID" in given:
        _complete(given, names, "GKE", "the pod's spec must not set one of them by itself")
        _seat("tpu", len(hosts), _number(given, "TPU_WORKER_ID"), None, given, names)
    within = _number(given, "TPU_WORKER_ID") if "TPU_WORKER_ID" in given else 0
    slices, slice_, first = 1, 0, hosts[0]
    if "MEGASCALE_NUM_SLICES" in given and given["MEGASCALE_NUM_SLICES"] != "1":
        _complete(given, SLICES, "GKE, for several slices,", "set all three, or none")
        slices, slice_ = (_number(given, name) for name in SLICES[:2])
        _seat("tpu", slices, slice_, None, given, SLICES)
        first = given["MEGASCALE_COORDINATOR_ADDRESS"].rsplit(":", 1)[0]
    count = slices * len(hosts)
    _agree(given, count, f"{slices} slices of {len(hosts)} hosts ({where})")
    process, port = slice_ * len(hosts) + within, _port(given, TPU_PORT)
    return _seat("tpu", count, process, f"{first}:{port}", given, names)


def _jobset(given: Environment) -> Seat | None:
    """Pods of an indexed JobSet, one process each; the names are those that XPK uses."""
    names = ("JOBSET_NAME", "REPLICATED_JOB_NAME", "JOB_COMPLETION_INDEX")
    if "JOBSET_NAME" not in given and "JOB_COMPLETION_INDEX" not in given:
        return None
    advice = f"set them as launch/gke.py does, or {ALONE}"
    _complete(given, names, "the pod of an indexed job", advice)
    if not any(name in given for name in COUNTS):
        raise plugin.UserError(
            f"environment: a JobSet's pod ({_said(given, names)}) without the number of all "
            f"processes, JAX_PROCESS_COUNT; {advice}"
        )
    count = _number(given, next(name for name in COUNTS if name in given))
    _agree(given, count, _said(given, COUNTS))
    more = [name for name in ("JOB_INDEX", "PROCESSES_IN_JOB", "NODE_RANK") if name in given]
    job = _number(given, "JOB_INDEX") if "JOB_INDEX" in given else 0
    each = _number(given, "PROCESSES_IN_JOB") if "PROCESSES_IN_JOB" in given else count
    pod = _number(given, "JOB_COMPLETION_INDEX")
    process = job * each + pod
    rank = _number(given, "NODE_RANK") if "NODE_RANK" in given else process
    if pod >= each or each < 1 or count % each or rank != process:
        raise plugin.UserError(
            f"environment: the JobSet's variables contradict one another: "
            f"{_said(given, (*names, *COUNTS, *more))}; expected JOB_COMPLETION_INDEX below "
            "PROCESSES_IN_JOB, which divides JAX_PROCESS_COUNT, and NODE_RANK, if set, to be "
            "JOB_INDEX x PROCESSES_IN_JOB + JOB_COMPLETION_INDEX"
        )
    name, jobs = given["JOBSET_NAME"], given["REPLICATED_JOB_NAME"]
    address = f"{name}-{jobs}-0-0.{name}"
    if "JAX_COORDINATOR_ADDRESS" in given:
        address = given["JAX_COORDINATOR_ADDRESS"]
    if not re.fullmatch(r".+:\d+", address):
        address = f"{address}:{_port(given, JOBSET_PORT)}"
    return _seat("jobset", count, process, address, given, (*names, *COUNTS, *more))


def _slurm(given: Environment) -> Seat | None:
    if "SLURM_JOB_ID" not in given and "SLURM_STEP_NODELIST" not in given:
        return None
    if "SLURM_STEP_NODELIST" not in given:  # a shell of salloc, or sbatch's script itself
        many = [n for n in ("SLURM_NTASKS", "SLURM_NNODES") if n in given and _number(given, n) > 1]
        if many:
            raise plugin.UserError(
                f"environment: a SLURM job of several tasks or nodes ({_said(given, many)}), but "
                f"not started by srun; begin the command with srun, or {ALONE}"
            )
        return None
    _complete(given, SLURM, "srun", ALONE)
    count, process = _number(given, "SLURM_NTASKS"), _number(given, "SLURM_PROCID")
    if "SLURM_STEP_NUM_TASKS" in given and _number(given, "SLURM_STEP_NUM_TASKS") != count:
        names = ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS")
        raise plugin.UserError(
            f"environment: {_said(given, names)}: this step (an interactive shell?) is not the "
            f"whole job; begin the command with srun, or {ALONE}"
        )
    nodes = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,\[]*))?", given["SLURM_STEP_NODELIST"])
    if nodes is None:
        raise plugin.UserError(
            f"environment: SLURM_STEP_NODELIST is {given['SLURM_STEP_NODELIST']!r}, expected nodes "
            "like node[001-004]"
        )
    host = "".join(part or "" for part in nodes.groups())
    # jax's choice of a port: of jobs on one node, each gets its own
    port = _port(given, _number(given, "SLURM_JOB_ID") % 4096 + 61440)
    local = _number(given, "SLURM_LOCALID")
    bound = "CUDA_VISIBLE_DEVICES" in given and "," not in given["CUDA_VISIBLE_DEVICES"]
    alone = bound or _tasks_here(given) == 1
    devices = None if alone else (local,)
    return _seat("slurm", count, process, f"{host}:{port}", given, SLURM, devices)


def _tasks_here(given: Environment) -> int | None:
    """How many of a SLURM step's tasks run on this node; None where it is not said."""
    names = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID")
    if not all(name in given for name in names):
        return None
    each = []
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", given[names[0]]):  # 8(x2),4
        each += [int(tasks)] * int(times or 1)
    node = _number(given, names[1])
    return each[node] if node < len(each) else None


def _port(given: Environment, default: int) -> int:
    return _number(given, "JAX_COORDINATOR_PORT") if "JAX_COORDINATOR_PORT" in given else default


def _number(given: Environment, name: str) -> int:
    value = given[name] if name in given else ""
    if not value.isdecimal():
        raise plugin.UserError(
            f"environment: {name} is {value!r}, expected a number; {ALONE}, else mend what sets it"
        )
    return int(value)


def _seat(launcher, count, process, coordinator, given, names, devices=None) -> Seat:
    if not 0 <= process < count:
        raise plugin.UserError(
            f"environment: process {process} of {count} ({_said(given, names)}); expected a number "
            f"from 0 to {max(count - 1, 0)}"
        )
    return Seat(
        launcher=launcher,
        processes=count,
        process=process,
        coordinator=coordinator,
        devices=devices,
    )


def _complete(given: Environment, names: Sequence[str], who: str, advice: str) -> None:
    missing = [name for name in names if name not in given]
    if missing:
        raise plugin.UserError(
            f"environment: half set: {who} sets {', '.join(names)}; here are "
            f"{_said(given, names) or 'none of them'}, not {', '.join(missing)}; {advice}"
        )


def _agree(given: Environment, count: int, source: str) -> None:
    """UserError unless the counts that are said otherwise, too, are `count`."""
    for name in COUNTS:
        if name in given and _number(given, name) != count:
            raise plugin.UserError(
                f"environment: {name} is {given[name]}, but {source} make {count} processes; "
                "expected the same, or one of them unset"
            )


def _said(given: Environment, names: Sequence[str]) -> str:
    return ", ".join(f"{name}={given[name]}" for name in names if name in given)
