"""Who this process is, by the variables of each launcher; half-set and contradictory ones."""

import os
import subprocess
import sys

import pytest

from vla_jax import plugin
from vla_jax.parallel import launchers

FLAGS = dict(VLA_COORDINATOR="10.0.0.7:1234", VLA_PROCESSES="4", VLA_PROCESS="3")
SLURM = dict(
    SLURM_JOB_ID="4100",
    SLURM_STEP_NODELIST="gpu[007-010,12]",
    SLURM_STEP_NUM_TASKS="32",
    SLURM_STEP_TASKS_PER_NODE="8(x4)",
    SLURM_NODEID="2",
    SLURM_NTASKS="32",
    SLURM_PROCID="17",
    SLURM_LOCALID="1",
)
JOBSET = dict(  # as launch/gke.py sets them, and XPK for CPUs
    JOBSET_NAME="octo",
    REPLICATED_JOB_NAME="slice",
    JOB_INDEX="1",
    JOB_COMPLETION_INDEX="2",
    PROCESSES_IN_JOB="4",
    JAX_PROCESS_COUNT="8",
    KUBERNETES_SERVICE_HOST="10.0.0.1",
)
XPK_GPU = dict(
    JOBSET_NAME="octo",
    REPLICATED_JOB_NAME="slice-job",
    NNODES="4",
    NODE_RANK="3",
    JOB_COMPLETION_INDEX="3",
    JAX_COORDINATOR_ADDRESS="octo-slice-job-0-0.octo",
    JAX_COORDINATOR_PORT="6002",
)
TPU = dict(
    TPU_WORKER_HOSTNAMES="octo-slice-0-0.octo,octo-slice-0-1.octo", TPU_WORKER_ID="1", **JOBSET
) | dict(JAX_PROCESS_COUNT="2", PROCESSES_IN_JOB="2", JOB_INDEX="0", JOB_COMPLETION_INDEX="1")
SLICES = TPU | dict(
    MEGASCALE_NUM_SLICES="3",
    MEGASCALE_SLICE_ID="2",
    MEGASCALE_COORDINATOR_ADDRESS="octo-slice-0-0.octo:8080",
    JAX_PROCESS_COUNT="6",
)
MPI = dict(
    OMPI_MCA_orte_hnp_uri="1531576320.0;tcp://10.96.0.1:34911",
    OMPI_COMM_WORLD_SIZE="4",
    OMPI_COMM_WORLD_RANK="2",
    OMPI_COMM_WORLD_LOCAL_RANK="0",
)


@pytest.mark.parametrize(
    "environment, launcher, place, coordinator, devices",
    [
        (FLAGS, "flags", (3, 4), "10.0.0.7:1234", None),
        (FLAGS | SLURM | TPU, "flags", (3, 4), "10.0.0.7:1234", None),
        (SLURM, "slurm", (17, 32), "gpu007:61444", (1,)),
        (SLURM | dict(SLURM_STEP_NODELIST="a1,b2"), "slurm", (17, 32), "a1:61444", (1,)),
        # One process per node has all of its GPUs; one bound to a GPU sees that one alone.
        (
            SLURM | dict(SLURM_STEP_TASKS_PER_NODE="8(x2),1"),
            "slurm",
            (17, 32),
            "gpu007:61444",
            None,
        ),
        (SLURM | dict(CUDA_VISIBLE_DEVICES="5"), "slurm", (17, 32), "gpu007:61444", None),
        (JOBSET, "jobset", (6, 8), "octo-slice-0-0.octo:55527", None),
        (XPK_GPU, "jobset", (3, 4), "octo-slice-job-0-0.octo:6002", None),
        (TPU, "tpu", (1, 2), "octo-slice-0-0.octo:8482", None),
        (SLICES, "tpu", (5, 6), "octo-slice-0-0.octo:8482", None),
        # mpirun inside a job of SLURM, whose variables speak of mpirun's own processes.
        (MPI | SLURM, "mpirun", (2, 4), None, (0,)),
    ],
)
def test_who_this_is(environment, launcher, place, coordinator, devices):
    seat = launchers.find(environment)
    assert seat is not None and seat.launcher == launcher
    assert (seat.process, seat.processes) == place
    assert (seat.coordinator, seat.devices) == (coordinator, devices)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        dict(KUBERNETES_SERVICE_HOST="10.0.0.1"),
        dict(SLURM_JOB_ID="7", SLURM_NTASKS="1", SLURM_NNODES="1"),  # sbatch's script
        SLURM | dict(SLURM_NTASKS="1", SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0"),
        SLURM | dict(VLA_SINGLE="1"),
        dict(JOB_COMPLETION_INDEX="2", VLA_SINGLE="1"),
        dict(TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0"),
        dict(TPU_WORKER_HOSTNAMES="localhost"),
        dict(OMPI_COMM_WORLD_SIZE="1", OMPI_COMM_WORLD_RANK="0"),
        dict(VLA_COORDINATOR="", VLA_PROCESS=""),
    ],
)
def test_alone(environment):
    assert launchers.find(environment) is None


def without(environment: dict, name: str) -> dict:
    return {key: value for key, value in environment.items() if key != name}


@pytest.mark.parametrize(
    "environment, said",
    [
        *((without(FLAGS, name), name) for name in FLAGS),
        *((without(SLURM, name), name) for name in launchers.SLURM if "NODELIST" not in name),
        (without(SLURM, "SLURM_STEP_NODELIST"), "srun"),  # a shell of salloc
        (dict(SLURM_JOB_ID="7", SLURM_NNODES="2"), "srun"),
        *((without(SLICES, name), name) for name in launchers.SLICES[1:]),
        (without(TPU, "TPU_WORKER_ID"), "TPU_WORKER_ID"),
        (without(JOBSET, "JAX_PROCESS_COUNT"), "JAX_PROCESS_COUNT"),
        (without(JOBSET, "JOBSET_NAME"), "JOBSET_NAME"),
        (without(JOBSET, "REPLICATED_JOB_NAME"), "REPLICATED_JOB_NAME"),
        (without(JOBSET, "JOB_COMPLETION_INDEX"), "JOB_COMPLETION_INDEX"),
        (without(MPI, "OMPI_MCA_orte_hnp_uri"), "--process"),
    ],
)
def test_half_set(environment, said):
    with pytest.raises(plugin.UserError, match=said):
        launchers.find(environment)


@pytest.mark.parametrize(
    "environment, said",
    [
        (FLAGS | dict(VLA_SINGLE="1"), "VLA_SINGLE"),
        (FLAGS | dict(VLA_PROCESS="4"), "process 4 of 4"),
        (FLAGS | dict(VLA_PROCESSES="four"), "VLA_PROCESSES is 'four'"),
        (FLAGS | dict(VLA_COORDINATOR="10.0.0.7"), "HOST:PORT"),
        (SLURM | dict(SLURM_PROCID="32"), "process 32 of 32"),
        (SLURM | dict(SLURM_STEP_NUM_TASKS="1"), "SLURM_STEP_NUM_TASKS"),  # an interactive step
        (SLURM | dict(JAX_COORDINATOR_PORT="http"), "JAX_COORDINATOR_PORT"),
        (JOBSET | dict(NNODES="2"), "NNODES is 2"),
        (JOBSET | dict(PROCESSES_IN_JOB="3"), "contradict"),
        (JOBSET | dict(JOB_COMPLETION_INDEX="4"), "contradict"),
        (JOBSET | dict(JOB_INDEX="2"), "process 10 of 8"),
        (XPK_GPU | dict(NODE_RANK="1"), "contradict"),
        (TPU | dict(TPU_WORKER_ID="2"), "process 2 of 2"),
        (TPU | dict(JAX_PROCESS_COUNT="8"), "JAX_PROCESS_COUNT is 8"),
        (SLICES | dict(MEGASCALE_SLICE_ID="3"), "process 3 of 3"),
        (SLICES | dict(JAX_PROCESS_COUNT="2"), "3 slices of 2 hosts"),
    ],
)
def test_contradictory(environment, said):
    with pytest.raises(plugin.UserError, match=said):
        launchers.find(environment)


def test_the_flag():
    assert launchers.flag("3/4@10.0.0.7:1234") == FLAGS
    for wrong in ("3/4", "4/4@h:1", "3/4@h", "a/4@h:1"):
        with pytest.raises(plugin.UserError, match="process"):
            launchers.flag(wrong)


JOIN = """
import jax
from vla_jax.parallel import processes
with processes.together():
    first = processes.tell("hello" if processes.first() else "nobody")
    print(jax.process_index(), jax.process_count(), first, flush=True)
"""


def joined(number: int, kind: str, port: int) -> dict[str, str]:
    """The environment of process `number` of 2 on this machine."""
    if kind == "slurm":
        place = SLURM | dict(SLURM_STEP_NODELIST="localhost", SLURM_STEP_TASKS_PER_NODE="2")
        place |= dict(SLURM_NTASKS="2", SLURM_STEP_NUM_TASKS="2", SLURM_NODEID="0")
        place |= dict(SLURM_PROCID=str(number), SLURM_LOCALID=str(number))
    elif kind == "jobset":
        place = XPK_GPU | dict(NNODES="2", NODE_RANK=str(number), KUBERNETES_SERVICE_HOST="::1")
        place |= dict(JOB_COMPLETION_INDEX=str(number), JAX_COORDINATOR_ADDRESS="localhost")
    else:
        place = dict(TPU_WORKER_HOSTNAMES="localhost,localhost", TPU_WORKER_ID=str(number))
    return place | dict(JAX_COORDINATOR_PORT=str(port), JAX_PLATFORMS="cpu")


@pytest.mark.parametrize("kind", ["slurm", "jobset", "tpu"])
def test_two_processes_join(kind):
    from launch import local

    port = local.free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", JOIN],
            env={**os.environ, **joined(number, kind, port)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[0].split() for process in started]
    finally:
        for process in started:
            process.kill()
    assert said == [["0", "2", "hello"], ["1", "2", "hello"]]
