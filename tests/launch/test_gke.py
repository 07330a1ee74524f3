"""The JobSet that the GKE launcher renders: pods find one another, restarts fit the exit codes."""

import os
import re
import shlex
import signal
import stat
import subprocess

import pytest
import yaml

from launch import gke
from vla_jax.parallel import launchers

WORDS = ["--config", "configs/octo_base.py:data=/x", "--workdir", "gs://b/run s"]
TPU = ["--name", "octo", "--image", "i:1", "--tpu", "v5e:4x4"]
GPU = ["--name", "octo", "--image", "i:1", "--gpu", "nvidia-h100-80gb:8", "--nodes", "3"]


def rendered(capsys, *words: str) -> dict:
    assert gke.main([*words, "--dry-run", "--", *WORDS]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def pods(jobset: dict) -> list[dict[str, str]]:
    """The environments of all pods, as Kubernetes and JobSet fill in the fields' annotations."""
    (each,) = jobset["spec"]["replicatedJobs"]
    job, found = each["template"]["spec"], []
    (container,) = job["template"]["spec"]["containers"]
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"]
    for replica in range(each["replicas"]):
        for pod in range(job["completions"]):
            annotations = {
                "jobset.sigs.k8s.io/jobset-name": jobset["metadata"]["name"],
                "jobset.sigs.k8s.io/replicatedjob-name": each["name"],
                "jobset.sigs.k8s.io/job-index": str(replica),
                "batch.kubernetes.io/job-completion-index": str(pod),
            }
            environment = {}
            for entry in container["env"]:
                value = entry.get("value")
                if value is None:
                    path = entry["valueFrom"]["fieldRef"]["fieldPath"]
                    value = annotations[path.removeprefix("metadata.annotations['")[:-2]]
                environment[entry["name"]] = value
            found.append(environment)
    return found


def seats(environments: list[dict[str, str]]) -> list[launchers.Seat]:
    found = [launchers.find(environment) for environment in environments]
    assert [seat.process for seat in found] == list(range(len(environments)))
    assert {seat.processes for seat in found} == {len(environments)}
    assert len({seat.coordinator for seat in found}) == 1
    return found


def test_pods_with_gpus_find_one_another(capsys):
    jobset = rendered(capsys, *GPU, "--spot", "--queue", "q", "--claim", "disk:/mnt/shared")
    found = seats(pods(jobset))
    assert len(found) == 3 and found[0].launcher == "jobset" and found[0].devices is None
    assert found[0].coordinator == "octo-host-0-0.octo:55527"
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-h100-80gb",
        "cloud.google.com/gke-spot": "true",
    }
    assert spec["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}
    names = {volume["name"] for volume in spec["volumes"]}
    assert names == {mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"}


@pytest.mark.parametrize("slices", [1, 3])
def test_pods_with_tpus_find_one_another(capsys, slices):
    jobset = rendered(capsys, *TPU, "--slices", str(slices))
    environments, hosts = pods(jobset), 4
    assert len(environments) == slices * hosts
    for environment in environments:  # what GKE adds to pods that ask for TPUs
        slice_ = int(environment["JOB_INDEX"])
        names = [f"octo-host-{slice_}-{host}.octo" for host in range(hosts)]
        environment["TPU_WORKER_HOSTNAMES"] = ",".join(names)
        environment["TPU_WORKER_ID"] = environment["JOB_COMPLETION_INDEX"]
        if slices > 1:
            environment["MEGASCALE_NUM_SLICES"] = str(slices)
            environment["MEGASCALE_SLICE_ID"] = str(slice_)
            environment["MEGASCALE_COORDINATOR_ADDRESS"] = "octo-host-0-0.octo"
    assert seats(environments)[0].coordinator == "octo-host-0-0.octo:8482"


def outcome(jobset: dict, code: int, conditions: tuple[str, ...] = ()) -> str:
    """What Kubernetes and JobSet make of one pod's end, by their documents."""
    (each,) = jobset["spec"]["replicatedJobs"]
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(each["template"]["spec"]["podFailurePolicy"]["rules"]):
        codes = rule.get("onExitCodes", {"values": []})["values"]
        kinds = [condition["type"] for condition in rule.get("onPodConditions", [])]
        if rule["action"] == "FailJob" and (code in codes or set(kinds) & set(conditions)):
            reason = "PodFailurePolicy"
            what = "has condition DisruptionTarget"
            if code in codes:
                what = f"failed with exit code {code}"
            who = "Container vla for pod default/octo" if code in codes else "Pod default/octo"
            message = f"{who} {what} matching FailJob rule at index {index}"
            break
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return rule["action"]
    return "RestartJobSet"  # JobSet's default; counts towards maxRestarts


def test_restarts_fit_the_exit_codes(capsys):
    jobset = rendered(capsys, *GPU, "--restarts", "7")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 7
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
    for code in (76, 134, 137, 139, 143):
        assert outcome(jobset, code) == "RestartJobSet"
    for code in (1, 2, 7):
        assert outcome(jobset, code) == "FailJobSet"
    for conditions in ((), ("DisruptionTarget",)):
        assert outcome(jobset, 75, conditions) == "RestartJobSetAndIgnoreMaxRestarts"
    assert outcome(jobset, 1, ("DisruptionTarget",)) == "RestartJobSet"


def script(jobset: dict, folder) -> tuple[list[str], dict[str, str]]:
    """The container's command and environment, with stand-ins for what the image holds."""
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    return spec["containers"][0]["command"], {**os.environ, "PATH": f"{folder}:/usr/bin:/bin"}


def program(path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_the_container_trains_under_the_flags_and_hears_sigterm(tmp_path, capsys):
    jobset = rendered(capsys, *TPU, "--project", str(tmp_path))
    program(tmp_path / "python", "echo \"export LIBTPU_INIT_ARGS='for $2'\"")
    waits = 'trap "exit 75" TERM; echo "$LIBTPU_INIT_ARGS|$*"; while true; do sleep 0.05; done'
    program(tmp_path / "vla", waits)
    command, environment = script(jobset, tmp_path)
    started = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        said = started.stdout.readline().strip()
        started.send_signal(signal.SIGTERM)
        assert started.wait(timeout=20) == 75
    finally:
        started.kill()
        started.stdout.close()
    assert said == "for tpu|train " + " ".join(WORDS)
    assert shlex.join(WORDS) in command[-1]


def test_it_is_handed_to_kubectl(tmp_path, monkeypatch, capsys):
    program(tmp_path / "kubectl", f'echo "$*" >> {tmp_path}/calls; cat > {tmp_path}/given; exit 3')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gke.main([*GPU, "--namespace", "lab", "--", *WORDS]) == 3
    assert "kubectl --namespace lab logs" in capsys.readouterr().err
    given = yaml.safe_load((tmp_path / "given").read_text())
    assert given == rendered(capsys, *GPU, "--namespace", "lab")
    monkeypatch.setattr("sys.stdin", None)
    gke.main(["--name", "octo", "--delete"])
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["--namespace lab create -f -", "--namespace default delete jobset octo"]


@pytest.mark.parametrize("form", [("--workdir", "{}"), ("--workdir={}",)])
@pytest.mark.parametrize(
    "workdir, lasts",
    [
        ("gs://b/runs/x", True),
        ("/mnt/shared/runs/x", True),
        ("../mnt/shared/x", True),  # from /vla_jax
        ("/mnt/sharedx/runs", False),
        ("/mnt/shared/../own", False),
        ("runs/x", False),
    ],
)
def test_a_workdir_outlives_its_pod(form, workdir, lasts, capsys):
    words = ["--config", "c.py", *(part.format(workdir) for part in form), "--config.steps=3"]
    given = [*GPU, "--claim", "disk:/mnt/shared/", "--dry-run", "--", *words]
    if lasts:
        assert gke.main(given) == 0
        return
    with pytest.raises(SystemExit) as stopped:
        gke.main(given)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and repr(workdir) in said and "claims: /mnt/shared/" in said


@pytest.mark.parametrize(
    "words, said",
    [
        (["--name", "n"], "--image"),
        ([*TPU, "--gpu", "x:1"], "either --tpu or --gpu"),
        (["--name", "No Name", *TPU[2:]], "--name"),
        ([*TPU[:-1], "v9:4x4"], "v5e, v5p"),
        ([*TPU[:-1], "v5e:16"], "v5e:16x16"),
        ([*TPU[:-1], "v5e:3x3"], "whole number of hosts"),
        ([*GPU[:5], "h100"], "TYPE:N"),
        ([*GPU, "--claim", "disk"], "CLAIM:/path"),
    ],
)
def test_what_is_wrong_is_said(words, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        gke.main([*words, "--dry-run", "--", *WORDS])
    assert stopped.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--config", "c.py"], ["--config", "c.py", "--workdir", ""]])
def test_a_workdir_is_asked_for(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        gke.main([*TPU, "--dry-run", "--", *words])
    assert stopped.value.code == 2 and "--workdir W" in capsys.readouterr().err
