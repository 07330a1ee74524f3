"""Trains on a Cloud TPU slice: asks for it, sets every host up, trains, asks anew when it is taken.

  python launch/tpu_pod.py --name octo --zone us-west4-a --type v5litepod-256 \\
      --runtime v2-alpha-tpuv5-lite --repository URL --spot \\
      --setup 'mkdir -p data && gcloud storage cp -r gs://bucket/t5-base data/' -- \\
      --config configs/octo_base.py:data=gs://bucket/bridge --workdir gs://bucket/runs/octo
  … --dry-run                                     prints the gcloud commands, runs none

The slice is a queued resource (`gcloud compute tpus queued-resources`). Every host runs the same
command; jax finds the others by itself (parallel/processes.py). A training that was asked to stop
has saved and exits with 75: it is begun again, on the same slice. So it is after 76, when a process
was killed, when the line to it is cut and when the slice was taken away, on a new one, at most
`--restarts` times in a row without a newer checkpoint (parallel/endings.py): let it run where no
line is cut, since gcloud gives the command again to a host that it has lost. Other failures end
this program with their exit code; the slice stays for a look, and is given back by `--delete`. Not
tried on a pod: none was at hand when it was written.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time

from vla_jax.parallel import endings, watch

CUT = 255  # of ssh itself: the line is cut, perhaps because the host is gone
GONE = ("FAILED", "SUSPENDING", "SUSPENDED")  # states from which a slice does not come back
POLL = 30.0  # seconds
ASKED = 10  # times, POLL apart, that gcloud may fail to say how the request stands
TPUS = ("gcloud", "compute", "tpus")


def main(argv: list[str] | None = None) -> int:
    """The training's exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", required=True, help="of the slice and of its request")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--type", help="e.g. v5litepod-256, v5p-128")
    parser.add_argument("--runtime", help="e.g. v2-alpha-tpuv5-lite, v2-alpha-tpuv5")
    parser.add_argument("--repository", help="where the hosts clone this project from")
    parser.add_argument("--revision", default="main")
    parser.add_argument("--setup", default="", help="a command on each host, in the project")
    parser.add_argument("--spot", action="store_true", help="cheaper, may be taken away")
    parser.add_argument("--restarts", type=int, default=3, help="without a newer checkpoint")
    parser.add_argument("--delete", action="store_true", help="give the slice back, and end")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- arguments of vla train")
    arguments = parser.parse_args(argv)
    words = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    pod = Pod(arguments)
    if arguments.delete:
        return pod.call(pod.deleting())
    try:
        workdir = endings.workdir(words)
    except ValueError as error:
        parser.error(str(error))
    if not workdir or not (arguments.type and arguments.runtime and arguments.repository):
        parser.error("expected --type, --runtime, --repository and -- --config C --workdir gs://…")
    if arguments.dry_run:
        first = (pod.creating(), pod.describing(), pod.preparing())
        for command in (*first, pod.looking(workdir), pod.training(words)):
            print(shlex.join(command))
        return 0
    return train(pod, words, workdir, arguments.restarts)


def train(pod: Pod, words: list[str], workdir: str, restarts: int) -> int:
    """Trains until it is done, it fails on its own, or nothing comes of beginning it again."""
    tries, ended = endings.Tries(restarts, -1), endings.PREEMPTED
    while True:
        code, newest = slice_of(pod) or pod.call(pod.preparing()), tries.begun
        if not code:
            code, found = pod.newest(workdir)
            newest = newest if code else found  # a look that fails says nothing of checkpoints
        if code not in (0, CUT) and pod.state() not in GONE:
            return code
        if not tries.again(ended, newest):  # how the time before has ended
            text = f"ended {tries.count} times in a row without a newer checkpoint; see why, then"
            print(f"tpu_pod.py: {text} run it again to go on", file=sys.stderr)
            return ended
        code = code or pod.call(pod.training(words))
        # A slice that is taken away cuts the line, and its state says why.
        gone = code == CUT or code not in (0, endings.PREEMPTED) and pod.state() in GONE
        ended = watch.LOST if gone else code
        if ended not in (endings.PREEMPTED, *endings.COUNTED):
            return ended
        if code == CUT:
            time.sleep(POLL)


def slice_of(pod: Pod) -> int:
    """0 when the slice is there; else why not, 1 where it came to nothing."""
    asked, absent = False, 0
    while (state := pod.state()) != "ACTIVE":
        absent = absent + 1 if state is None else 0
        if asked and (state in GONE or absent == ASKED):  # a new request may take a while to show
            print(f"tpu_pod.py: the request has come to {state or 'nothing'}", file=sys.stderr)
            return 1
        if state in GONE:  # taken away: the request goes too, a new one queues
            pod.call(pod.deleting())
        if state in GONE or state is None and not asked:
            if code := pod.call(pod.creating()):
                return code
            asked = True
            continue
        said = state or "no request"
        print(f"tpu_pod.py: {said}, waiting for the slice", file=sys.stderr, flush=True)
        time.sleep(POLL)
    return 0


class Pod:
    """The gcloud commands of one slice."""

    def __init__(self, arguments: argparse.Namespace):
        self.a, self.where = arguments, ("--zone", arguments.zone)

    def call(self, command: list[str]) -> int:
        """Runs a command; its exit code."""
        print(f"tpu_pod.py: {shlex.join(command)}", file=sys.stderr, flush=True)
        return subprocess.run(command).returncode

    def state(self) -> str | None:
        """The request's state as Cloud TPU calls it, None where there is no request.

        None, too, where gcloud cannot say it for long: to ask for a slice shows why.
        """
        for _ in range(ASKED):
            done = subprocess.run(self.describing(), capture_output=True, text=True)
            if not done.returncode:
                return json.loads(done.stdout).get("state", {}).get("state", "UNKNOWN")
            if "NOT_FOUND" in done.stderr:
                return None
            print(f"tpu_pod.py: {done.stderr.strip()}", file=sys.stderr, flush=True)
            time.sleep(POLL)
        return None

    def creating(self) -> list[str]:
        """Asks for the slice."""
        spot = ["--spot"] if self.a.spot else []
        kind = ["--accelerator-type", self.a.type, "--runtime-version", self.a.runtime]
        create = [*TPUS, "queued-resources", "create", self.a.name, "--node-id", self.a.name]
        return [*create, *self.where, *kind, *spot]

    def describing(self) -> list[str]:
        """Asks how the request stands."""
        return [*TPUS, "queued-resources", "describe", self.a.name, *self.where, "--format=json"]

    def deleting(self) -> list[str]:
        """Gives slice and request back."""
        delete = [*TPUS, "queued-resources", "delete", self.a.name, *self.where]
        return [*delete, "--force", "--quiet"]

    def preparing(self) -> list[str]:
        """Sets every host up: the project at one revision, jax for TPUs on top of its pins.

        The images are Ubuntu 22.04, whose Python is 3.10: uv brings a newer one.
        """
        revision = shlex.quote(self.a.revision)
        branch = shlex.quote(f"origin/{self.a.revision}")
        version = "$(.venv/bin/python -c 'import jax; print(jax.__version__)')"
        return self._on(f"""set -e
[ -d vla_jax ] || git clone -q {shlex.quote(self.a.repository)} vla_jax
cd vla_jax
git fetch -q
git checkout -q --detach {branch} 2>/dev/null || git checkout -q --detach {revision}
python=$(command -v python3.12 || true)
if [ -z "$python" ]; then
    python3 -m pip install -q --user uv
    python3 -m uv python install -q 3.12
    python=$(python3 -m uv python find --system 3.12)
fi
sudo tools/setup_system.sh "$python"
make setup PYTHON="$python"
.venv/bin/python -m pip install -q "jax[tpu]=={version}"
{self.a.setup}""")

    def training(self, words: list[str]) -> list[str]:
        """Trains, on every host the same."""
        flags = 'eval "$(.venv/bin/python launch/flags.py tpu)"'
        return self._on(f"cd vla_jax && {flags} && .venv/bin/vla train {shlex.join(words)}")

    def looking(self, workdir: str) -> list[str]:
        """Asks the first host for the newest checkpoint's train_step."""
        script = f".venv/bin/python launch/again.py begin --workdir {shlex.quote(workdir)}"
        return self._on(f"cd vla_jax && {script}", worker="0")

    def newest(self, workdir: str) -> tuple[int, int]:
        """(exit code of looking, train_step of the newest checkpoint or -1)."""
        command = self.looking(workdir)
        print(f"tpu_pod.py: {shlex.join(command)}", file=sys.stderr, flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        return done.returncode, -1 if done.returncode else int(done.stdout.split()[-1])

    def _on(self, script: str, worker: str = "all") -> list[str]:
        ssh = [*TPUS, "tpu-vm", "ssh", self.a.name, *self.where, f"--worker={worker}"]
        return [*ssh, "--command", script]


if __name__ == "__main__":
    sys.exit(main())
