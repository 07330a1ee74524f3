"""Trains on Google Kubernetes Engine: renders a JobSet and hands it to kubectl.

  python launch/gke.py --name octo --image REGION-docker.pkg.dev/P/R/vla_jax:1 --tpu v5e:16x16 \\
      --spot -- --config configs/octo_base.py:data=gs://bucket/bridge \\
      --workdir gs://bucket/runs/octo
  python launch/gke.py --name octo --image … --gpu nvidia-h100-80gb:8 --nodes 4 \\
      --claim runs:/mnt/shared -- … --workdir /mnt/shared/runs/octo
  … --dry-run                                     prints the YAML, creates nothing

One pod per host, one process per pod; each finds its place by the variables that stand in its spec
(parallel/launchers.py). A pod that ends with 75 (saved, run me again) makes JobSet begin all of
them again at no cost; one that ends with 76 (another one is gone), is taken away or is killed does
so at most `--restarts` times in all, for JobSet cannot look into a workdir. The training goes on
from its last save. An error (1, 2, on every host) ends the job: parallel/endings.py. `--delete`
deletes it.
The cluster needs JobSet 0.10 or newer and a node pool of the kind asked for; the image holds this
project, set up, in `--project`. Not tried on a cluster: none was at hand.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import posixpath
import re
import shlex
import subprocess
import sys
from typing import Any

import yaml

from vla_jax.parallel import endings

GRACE = 180  # seconds between SIGTERM and the end: a save takes less
JOB = "host"  # of the replicated job; a slice is one replica of it
CHIPS = {  # as `vla plan --topology` calls them -> GKE's name of the slices' nodes
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
SET = "metadata.annotations['jobset.sigs.k8s.io/{}']"
FIELDS = {
    "JOBSET_NAME": SET.format("jobset-name"),
    "REPLICATED_JOB_NAME": SET.format("replicatedjob-name"),
    "JOB_INDEX": SET.format("job-index"),
    "JOB_COMPLETION_INDEX": "metadata.annotations['batch.kubernetes.io/job-completion-index']",
}


def main(argv: list[str] | None = None) -> int:
    """Kubectl's exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", required=True, help="of the JobSet")
    parser.add_argument("--image", help="with this project, set up, in --project")
    parser.add_argument("--project", default="/vla_jax", help="where it lies in the image")
    parser.add_argument("--tpu", help=f"CHIP:AxB, the shape of one slice; {', '.join(CHIPS)}")
    parser.add_argument("--slices", type=int, default=1, help="of TPUs")
    parser.add_argument("--chips", type=int, default=4, help="of TPUs, on each host")
    parser.add_argument("--gpu", help="TYPE:N of each node, e.g. nvidia-h100-80gb:8")
    parser.add_argument("--nodes", type=int, default=1, help="of GPUs")
    parser.add_argument("--spot", action="store_true", help="cheaper, may be taken away")
    parser.add_argument("--restarts", type=int, default=20, help="that count, in all")
    parser.add_argument("--claim", action="append", default=[], help="CLAIM:/path, a shared disk")
    parser.add_argument("--service-account", help="that may read and write the buckets")
    parser.add_argument("--queue", help="a local queue of Kueue")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--delete", action="store_true", help="delete the JobSet, and end")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- arguments of vla train")
    arguments = parser.parse_args(argv)
    words = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    kubectl = ["kubectl", "--namespace", arguments.namespace]
    if arguments.delete:
        return subprocess.run([*kubectl, "delete", "jobset", arguments.name]).returncode
    if not words or not arguments.image or bool(arguments.tpu) == bool(arguments.gpu):
        parser.error("expected --image, either --tpu or --gpu, and -- --config C --workdir W")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", arguments.name):
        parser.error(f"--name: got {arguments.name!r}, expected at most 40 of a-z, 0-9 and -")
    try:
        text = yaml.safe_dump(render(arguments, words), sort_keys=False)
    except ValueError as error:
        parser.error(str(error))
    if arguments.dry_run:
        print(text)
        return 0
    code = subprocess.run([*kubectl, "create", "-f", "-"], input=text, text=True).returncode
    label = f"jobset.sigs.k8s.io/jobset-name={arguments.name}"
    look = [*kubectl, "logs", "-f", "-l", label, "--prefix"]
    print(f"gke.py: look with {shlex.join(look)}", file=sys.stderr)
    return code


def render(arguments: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    """The JobSet as Kubernetes reads it.

    ValueError for chips or shapes that there are not, no workdir, and one that ends with its pod.
    """
    _check_workdir(arguments, words)
    hosts, replicas, selector, resource, platform = _machines(arguments)
    if arguments.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "nodeSelector": selector,
        "containers": [_container(arguments, words, hosts, replicas, resource, platform)],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
    for i, (claim, _) in enumerate(_claims(arguments)):
        volume = {"name": f"claim{i}", "persistentVolumeClaim": {"claimName": claim}}
        pod["volumes"].append(volume)
    if arguments.service_account:
        pod["serviceAccountName"] = arguments.service_account
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one pod by itself is of no use: JobSet begins all again
        "podFailurePolicy": {"rules": _ends_of_a_job()},
        "template": {"spec": pod},
    }
    metadata: dict[str, Any] = {"name": arguments.name, "namespace": arguments.namespace}
    if platform == "tpu":  # a slice is a node pool: one job each
        pools = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        metadata["annotations"] = pools
    if arguments.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": arguments.queue}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": arguments.restarts,
                "restartStrategy": "BlockingRecreate",  # the old pods hold the chips
                "rules": _ends_of_all(),
            },
            "replicatedJobs": [{"name": JOB, "replicas": replicas, "template": {"spec": job}}],
        },
    }


def _ends_of_a_job() -> list[dict[str, Any]]:
    """The ends of a pod after which all are begun again; Kubernetes takes the first that applies.

    They fail its job by the reason PodFailurePolicy, and its words say which code it was; others
    fail it by its limit of 0 tries.
    """
    taken = [{"type": "DisruptionTarget", "status": "True"}]
    free, counted = _on_exit(endings.PREEMPTED), _on_exit(*endings.COUNTED)
    return [free, counted, {"action": "FailJob", "onPodConditions": taken}]


def _ends_of_all() -> list[dict[str, Any]]:
    """What JobSet makes of a failed job; where no rule applies it restarts all, and counts."""
    saved = f"failed with exit code {endings.PREEMPTED} matching FailJob rule"
    return [
        {
            "name": "saved",
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["PodFailurePolicy"],
            "onJobFailureMessagePatterns": [saved],
        },
        {"name": "over", "action": "FailJobSet", "onJobFailureReasons": ["BackoffLimitExceeded"]},
    ]


def _on_exit(*codes: int) -> dict[str, Any]:
    """A rule by which a pod that ends so fails its job, by a reason of its own."""
    on = {"containerName": "vla", "operator": "In", "values": list(codes)}
    return {"action": "FailJob", "onExitCodes": on}


def _machines(arguments: argparse.Namespace) -> tuple[int, int, dict, dict, str]:
    """(hosts of a job, jobs, which nodes, what a pod takes of one, the platform of flags.py)."""
    if arguments.tpu:
        chip, _, shape = arguments.tpu.partition(":")
        if chip not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
            raise ValueError(
                f"--tpu: got {arguments.tpu!r}, expected CHIP:AxB or AxBxC, like v5e:16x16; chips: "
                f"{', '.join(CHIPS)}"
            )
        chips = math.prod(map(int, shape.split("x")))
        each = min(arguments.chips, chips)
        if each < 1 or chips % each or arguments.slices < 1:
            raise ValueError(f"--tpu {arguments.tpu}: not a whole number of hosts of {each} chips")
        nodes = {"accelerator": CHIPS[chip], "topology": shape}
        selector = {f"cloud.google.com/gke-tpu-{name}": value for name, value in nodes.items()}
        return chips // each, arguments.slices, selector, {"google.com/tpu": each}, "tpu"
    kind, _, each = arguments.gpu.partition(":")
    if not kind or not each.isdecimal() or int(each) < 1 or arguments.nodes < 1:
        raise ValueError(f"--gpu: got {arguments.gpu!r}, expected TYPE:N, like nvidia-h100-80gb:8")
    selector = {"cloud.google.com/gke-accelerator": kind}
    return arguments.nodes, 1, selector, {"nvidia.com/gpu": int(each)}, "gpu"


def _container(arguments, words, hosts: int, replicas: int, resource: dict, platform: str) -> dict:
    script = f"""set -e
cd {shlex.quote(arguments.project)}
eval "$(python launch/flags.py {platform})"
exec vla train {shlex.join(words)}"""  # exec: SIGTERM reaches the training
    fields = [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for name, path in FIELDS.items()
    ]
    counts = {"PROCESSES_IN_JOB": hosts, "JAX_PROCESS_COUNT": hosts * replicas}
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]  # data workers hand batches over there
    for i, (_, path) in enumerate(_claims(arguments)):
        mounts.append({"name": f"claim{i}", "mountPath": path})
    return {
        "name": "vla",
        "image": arguments.image,
        "command": ["bash", "-c", script],
        "env": fields + [{"name": name, "value": str(count)} for name, count in counts.items()],
        "resources": {"requests": dict(resource), "limits": dict(resource)},
        "securityContext": {"privileged": platform == "tpu"},
        "volumeMounts": mounts,
    }


def _check_workdir(arguments: argparse.Namespace, words: list[str]) -> None:
    """ValueError for none, and for one on a pod's own disk: each would write there, and lose it."""
    workdir = endings.workdir(words)
    if not workdir:
        raise ValueError("expected --image, --tpu or --gpu, and -- --config C --workdir W")
    if "://" in workdir:
        return
    place = pathlib.PurePosixPath(posixpath.normpath(posixpath.join(arguments.project, workdir)))
    shared = [path for _, path in _claims(arguments)]
    if not any(place.is_relative_to(posixpath.normpath(path)) for path in shared):
        raise ValueError(
            f"--workdir: got {workdir!r}, which lies on each pod's own disk and ends with it; "
            f"expected gs://… or a folder below a --claim CLAIM:/path; claims: "
            f"{', '.join(shared) or 'none'}"
        )


def _claims(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """(claim, path) of each --claim."""
    for text in arguments.claim:
        if not re.fullmatch(r"[a-z0-9.-]+:/.+", text):
            raise ValueError(f"--claim: got {text!r}, expected CLAIM:/path")
    return [tuple(text.split(":", 1)) for text in arguments.claim]


if __name__ == "__main__":
    sys.exit(main())
