"""Several processes, one computation: joining `jax.distributed` where a launcher asks for it."""

from __future__ import annotations

import os

import jax

LAUNCHERS = ("SLURM_JOB_ID", "TPU_WORKER_HOSTNAMES", "JOBSET_NAME", "OMPI_MCA_orte_hnp_uri")


def initialize() -> None:
    """Joins the other processes of this run; does nothing when this is the only one.

    `launch/local.py` sets VLA_COORDINATOR (host:port), VLA_PROCESSES and VLA_PROCESS; on SLURM,
    GKE and Cloud TPU jax finds the others by itself. Call it before anything touches the devices.
    """
    if "VLA_COORDINATOR" in os.environ:
        jax.distributed.initialize(
            os.environ["VLA_COORDINATOR"],
            num_processes=int(os.environ["VLA_PROCESSES"]),
            process_id=int(os.environ["VLA_PROCESS"]),
        )
    elif any(name in os.environ for name in LAUNCHERS) and "VLA_SINGLE" not in os.environ:
        jax.distributed.initialize()


def first() -> bool:
    """Whether this process writes what only one may write."""
    return jax.process_index() == 0
