"""Trains on a SLURM cluster of GPUs: writes the job's script and hands it to sbatch.

  python launch/slurm.py --nodes 8 --gpus 8 --time 24:00:00 --partition h100 -- \\
      --config configs/octo_base.py:data=/shared/bridge --workdir /shared/runs/octo
  … --dry-run                                     prints the script, submits nothing

One process per GPU; each finds the others by SLURM's variables (parallel/processes.py). The
workdir lies where every node can reach it. SLURM sends SIGTERM three minutes before the time is up
or the job is preempted: the training saves and exits with 75, and the job queues itself again and
goes on; so it does when a process or a host dies, at most `--restarts` times in a row without a
newer checkpoint. An error (1, 2, on every host) ends it: parallel/endings.py. Not tried on a
cluster: none was at hand.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import subprocess
import sys

from vla_jax.parallel import endings

PROJECT = pathlib.Path(__file__).resolve().parent.parent
WARNING = 180  # seconds between SIGTERM and the end: a save takes less
# Seconds from the first process's end to the last one's. Who is left ends by itself and says why;
# ended by srun, it would be 143, and srun returns the highest code of all.
LAST = 120


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
    parser.add_argument("--restarts", type=int, default=3, help="without a newer checkpoint")
    parser.add_argument("--log", default="slurm-%j.log")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--sbatch", action="append", default=[], help="a further line of #SBATCH")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- arguments of vla train")
    arguments = parser.parse_args(argv)
    words = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    try:
        workdir = endings.workdir(words)
    except ValueError as error:
        parser.error(str(error))
    sizes = (arguments.nodes, arguments.gpus, arguments.cpus, arguments.restarts + 1)
    if not workdir or min(sizes) < 1:
        parser.error("expected: slurm.py [--nodes N] [--gpus G] … -- --config C --workdir W")
    script = render(arguments, words, workdir)
    if arguments.dry_run:
        print(script)
        return 0
    return subprocess.run(["sbatch"], input=script, text=True).returncode


def render(arguments: argparse.Namespace, words: list[str], workdir: str) -> str:
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

again() {{ .venv/bin/python launch/again.py "$@" --workdir {shlex.quote(workdir)}; }}
begun=$(again begin) || exit

srun --kill-on-bad-exit=0 --wait={LAST} .venv/bin/vla train {shlex.join(words)}
code=$?
[ "${{SLURM_RESTART_COUNT:-0}}" -gt 0 ] && first= || first=--first
if again after "$code" --begun "$begun" --restarts {arguments.restarts} $first; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


if __name__ == "__main__":
    sys.exit(main())
