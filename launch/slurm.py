"""Trains on a SLURM cluster of GPUs: writes the job's script and hands it to sbatch.

  python launch/slurm.py --nodes 8 --gpus 8 --time 24:00:00 --partition h100 -- \\
      --config configs/octo_base.py:data=/shared/bridge --workdir /shared/runs/octo
  … --dry-run                                     prints the script, submits nothing

One process per GPU; each finds the others by SLURM's variables (parallel/processes.py). The
workdir lies where every node can reach it. SLURM sends SIGTERM three minutes before the time is up
or the job is preempted: the training saves and exits with 75, and the job queues itself again and
goes on; so it does when a process or a host dies. A mistake (2, on every host) ends it. Not tried
on a cluster: none was at hand.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import subprocess
import sys

PROJECT = pathlib.Path(__file__).resolve().parent.parent
# vla train: 75 saved, 76 another process is gone. 134 jax aborts when process 0 is dead, 137 and
# 143 a process was killed. srun returns the highest code of all.
AGAIN = (75, 76, 134, 137, 143)
WARNING = 180  # seconds between SIGTERM and the end: a save takes less


def main(argv: list[str] | None = None) -> int:
    """Sbatch's exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=8, help="of each node")
    parser.add_argument(
        "--cpus", type=int, default=12, help="of each process, for its data workers"
    )
    parser.add_argument("--time", default="24:00:00")
    parser.add_argument("--name", default="vla")
    parser.add_argument("--log", default="slurm-%j.log")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--sbatch", action="append", default=[], help="a further line of #SBATCH")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- arguments of vla train")
    arguments = parser.parse_args(argv)
    words = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not words or min(arguments.nodes, arguments.gpus, arguments.cpus) < 1:
        parser.error("expected: slurm.py [--nodes N] [--gpus G] … -- --config C --workdir W")
    script = render(arguments, words)
    if arguments.dry_run:
        print(script)
        return 0
    return subprocess.run(["sbatch"], input=script, text=True).returncode


def render(arguments: argparse.Namespace, words: list[str]) -> str:
    """The batch script."""
    options = {
        "job-name": arguments.name,
        "nodes": arguments.nodes,
        "ntasks-per-node": arguments.gpus,
        "gpus-per-node": arguments.gpus,
        "cpus-per-task": arguments.cpus,
        "time": arguments.time,
        "output": arguments.log,
        "open-mode": "append",  # one log over all the times that it is queued again
        "signal": f"TERM@{WARNING}",  # to the steps, not to this script
        "partition": arguments.partition,
        "account": arguments.account,
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    lines += ["#SBATCH --requeue", *(f"#SBATCH {line}" for line in arguments.sbatch)]
    head = "\n".join(lines)
    return f"""#!/usr/bin/env bash
{head}
set -uo pipefail
cd {shlex.quote(str(PROJECT))}
eval "$(.venv/bin/python launch/flags.py gpu)"

# One process that ends badly ends all: the others would wait for it.
srun --kill-on-bad-exit=1 .venv/bin/vla train {shlex.join(words)}
code=$?
case "$code" in {" | ".join(map(str, AGAIN))}) scontrol requeue "$SLURM_JOB_ID" ;; esac
exit "$code"
"""


if __name__ == "__main__":
    sys.exit(main())
