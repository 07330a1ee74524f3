"""What the launchers would do: their scripts parse, and a stand-in for gcloud is led to the end."""

import json
import os
import shlex
import stat
import subprocess
import sys

import pytest

from launch import slurm, tpu_pod

WORDS = [
    "--config",
    "configs/octo_base.py:data=/x",
    "--workdir",
    "gs://b/run s",
    "--config.steps=3",
]


def test_the_slurm_script(capsys):
    extra = ["--sbatch=--constraint=nvlink", "--partition", "h100", "--dry-run"]
    assert slurm.main(["--nodes", "4", "--gpus", "2", *extra, "--", *WORDS]) == 0
    script = capsys.readouterr().out
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    for line in ("--nodes=4", "--ntasks-per-node=2", "--partition=h100", "--constraint=nvlink"):
        assert f"#SBATCH {line}\n" in script
    assert "#SBATCH --signal=TERM@" in script and "account" not in script
    assert "vla train --config configs/octo_base.py:data=/x --workdir 'gs://b/run s'" in script


@pytest.mark.parametrize(
    "code, queued",
    [*((code, ["requeue 7"]) for code in (75, 76, 134, 137, 143)), (0, []), (1, []), (2, [])],
)
def test_the_slurm_script_queues_itself_again(tmp_path, monkeypatch, capsys, code, queued):
    """Run with stand-ins for srun and scontrol, in a folder that looks like a checkout."""
    monkeypatch.setattr(slurm, "PROJECT", tmp_path)
    slurm.main(["--dry-run", "--", *WORDS])
    program(tmp_path / ".venv/bin/python", "echo export XLA_FLAGS=--some")
    program(tmp_path / "srun", f'echo "$XLA_FLAGS $*" > {tmp_path}/ran; exit {code}')
    program(tmp_path / "scontrol", f'echo "$*" >> {tmp_path}/queued')
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-c", capsys.readouterr().out], env=environment)
    assert done.returncode == code
    said = tmp_path / "queued"
    assert (said.read_text().splitlines() if said.exists() else []) == queued
    assert (tmp_path / "ran").read_text().startswith("--some --kill-on-bad-exit=1 .venv/bin/vla")


GCLOUD = """
import json, pathlib, sys
folder = pathlib.Path({folder!r})
words = sys.argv[1:]
verb = words[words.index("queued-resources") + 1] if "queued-resources" in words else "ssh"
with (folder / "calls").open("a") as file:
    file.write(json.dumps([verb, words[-1]]) + "\\n")
plan = json.loads((folder / "plan").read_text())
if verb == "describe":
    state = plan["states"].pop(0) if len(plan["states"]) > 1 else plan["states"][0]
    (folder / "plan").write_text(json.dumps(plan))
    if state is None:
        sys.exit(1)
    print(json.dumps(dict(state=dict(state=state))))
elif verb == "ssh":
    code = plan["codes"].pop(0)
    (folder / "plan").write_text(json.dumps(plan))
    sys.exit(code)
"""


LOOK, RUN = "describe describe", "ssh ssh describe"  # begun where a slice is; set up, trained


@pytest.mark.parametrize(
    "states, codes, expected, verbs",
    [
        # A slice that is there: set up, train, done.
        (["ACTIVE"], [0, 0], 0, f"{LOOK} {RUN}"),
        # None yet: create, wait, train; the training fails by itself.
        ([None, "PROVISIONING", "ACTIVE"], [0, 2], 2, f"describe create {LOOK} {RUN}"),
        # Asked to stop: train again on the same slice.
        (["ACTIVE"], [0, 75, 0, 0], 0, f"{LOOK} ssh ssh {LOOK} {RUN}"),
        (["ACTIVE"], [0, 76, 0, 0], 0, f"{LOOK} ssh ssh {LOOK} {RUN}"),
        # Taken away in the middle: delete, create, go on.
        (
            ["ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE"],
            [0, 255, 0, 0],
            0,
            f"{LOOK} ssh ssh {LOOK} delete create describe {RUN}",
        ),
    ],
)
def test_a_pod_to_its_end(tmp_path, monkeypatch, states, codes, expected, verbs):
    monkeypatch.setattr(tpu_pod, "POLL", 0.0)
    program(tmp_path / "gcloud", f'exec {sys.executable} {tmp_path}/gcloud.py "$@"')
    (tmp_path / "gcloud.py").write_text(GCLOUD.format(folder=str(tmp_path)))
    (tmp_path / "plan").write_text(json.dumps(dict(states=states, codes=codes)))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert tpu_pod.main([*POD, "--spot", "--", *WORDS]) == expected
    calls = [json.loads(line)[0] for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls == verbs.split()


POD = [
    "--name",
    "n",
    "--zone",
    "z",
    "--type",
    "v5litepod-16",
    "--runtime",
    "r",
    "--repository",
    "u",
]


def test_a_dry_run_prints_commands_whose_scripts_parse(capsys):
    assert tpu_pod.main([*POD, "--dry-run", "--", *WORDS]) == 0
    create, _, prepare, train = (shlex.split(part) for part in _lines(capsys.readouterr().out))
    assert create[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    for command in (prepare, train):
        assert subprocess.run(["bash", "-n"], input=command[-1], text=True).returncode == 0
    assert "'gs://b/run s'" in train[-1] and "launch/flags.py tpu" in train[-1]


def _lines(text: str) -> list[str]:
    return [f"gcloud {part}" for part in text.split("gcloud ")[1:]]


@pytest.mark.parametrize("launcher", [slurm, tpu_pod])
def test_what_is_missing_is_said(launcher, capsys):
    with pytest.raises(SystemExit) as stopped:
        launcher.main(["--name", "n", "--zone", "z"] if launcher is tpu_pod else [])
    assert stopped.value.code == 2 and "expected" in capsys.readouterr().err


def program(path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
