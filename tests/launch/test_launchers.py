"""What the launchers would do: their scripts parse, and a stand-in for gcloud is led to the end."""

import json
import os
import pathlib
import shlex
import shutil
import stat
import subprocess
import sys

import pytest

from launch import again, slurm, tpu_pod

PROJECT = pathlib.Path(__file__).resolve().parent.parent.parent
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


class Cluster:
    """Stand-ins for srun and scontrol, and a checkout with the real again.py."""

    def __init__(self, folder, monkeypatch, capsys):
        self.folder, self.workdir, self.restart = folder, folder / "run s", 0
        monkeypatch.setattr(slurm, "PROJECT", folder)
        words = ["--restarts", "2", "--dry-run", "--", *WORDS[:2], "--workdir", str(self.workdir)]
        slurm.main(words)
        self.script = capsys.readouterr().out
        flags = '[[ $1 == *flags.py ]] && exec echo "export XLA_FLAGS=--for-$2"'
        real = f'export PYTHONPATH={PROJECT}; exec {sys.executable} "{PROJECT}/$1" "${{@:2}}"'
        program(folder / ".venv/bin/python", f"{flags}\n{real}")
        program(folder / "scontrol", f'echo "$*" >> {folder}/queued')

    def run(self, code: int, saves: int | None = None) -> bool:
        """One time that the job runs: whether it has queued itself again."""
        save = (
            ""
            if saves is None
            else f"mkdir -p '{self.workdir}'/checkpoints/{saves}/{{meta,params}};"
        )
        program(
            self.folder / "srun", f'echo "$XLA_FLAGS|$*" > {self.folder}/ran; {save} exit {code}'
        )
        environment = {"PATH": f"{self.folder}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
        if self.restart:
            environment["SLURM_RESTART_COUNT"] = str(self.restart)
        (self.folder / "queued").unlink(missing_ok=True)
        done = subprocess.run(["bash", "-c", self.script], env=environment)
        assert done.returncode == code
        self.restart += 1
        if not (self.folder / "queued").exists():
            return False
        assert (self.folder / "queued").read_text() == "requeue 7\n"
        return True


@pytest.fixture
def cluster(tmp_path, monkeypatch, capsys):
    return Cluster(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("code", [0, 1, 2, 75, 76, 137])
def test_the_slurm_script_queues_itself_again(cluster, code):
    assert cluster.run(code) == (code in (75, 76, 137))
    said = (cluster.folder / "ran").read_text()
    assert said.startswith("--for-gpu|--kill-on-bad-exit=0 --wait=")
    assert f".venv/bin/vla train {' '.join(WORDS[:2])} --workdir {cluster.workdir}" in said


def test_a_slurm_job_that_is_killed_each_time_comes_to_an_end(cluster):
    # Each row: how it ends, the train_step that it has saved, whether it queues itself again.
    story = [
        (137, None, True),  # the first without a save
        (76, 10, True),  # with one: the count begins anew
        (137, 10, True),
        (75, None, True),  # is free, and changes no count
        (76, None, True),  # the second
        (137, None, False),  # the third of at most two
    ]
    assert [cluster.run(code, saves) for code, saves, _ in story] == [again for *_, again in story]
    assert not (cluster.workdir / again.FILE).exists()
    cluster.restart = 0  # the user has looked, and submits it again: the count begins anew
    assert [cluster.run(137) for _ in range(3)] == [True, True, False]


def test_a_new_job_counts_anew_though_its_first_end_is_free(cluster):
    assert [cluster.run(137) for _ in range(2)] == [True, True]  # cancelled then, by scancel
    cluster.restart = 0
    assert [cluster.run(code) for code in (75, 137, 137, 137)] == [True, True, True, False]


def test_a_job_whose_workdir_cannot_be_looked_at_ends(cluster):
    cluster.script = cluster.script.replace(str(cluster.workdir), "s3://bucket/run")
    program(cluster.folder / "srun", f"touch {cluster.folder}/ran")
    done = subprocess.run(
        ["bash", "-c", cluster.script],
        env={"PATH": f"{cluster.folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "s3://bucket/run" in done.stderr
    assert not (cluster.folder / "ran").exists()


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
    if state in (None, "no line"):
        sys.exit("ERROR: NOT_FOUND: no such request" if state is None else "ERROR: no line")
    print(json.dumps(dict(state=dict(state=state))))
elif verb == "ssh":
    which = "look" if "again.py" in words[-1] else "train" if "vla train" in words[-1] else "set up"
    assert ("--worker=0" if which == "look" else "--worker=all") in words
    asked = plan[which]
    answer = asked.pop(0) if len(asked) > 1 else asked[0]
    (folder / "plan").write_text(json.dumps(plan))
    if which == "look":
        print(answer)
        sys.exit({{"no such folder": 1, "cut": 255}}.get(answer, 0))
    sys.exit(answer)
elif verb == "create":
    sys.exit(plan["look"][0] if plan["states"] in ([None], ["no line"]) else 0)
"""


ASK, RUN = "describe", "ssh ssh ssh"  # for the state; set up, look for a checkpoint, train


@pytest.mark.parametrize(
    "states, looks, trains, expected, verbs",
    [
        # A slice that is there: set up, train, done.
        (["ACTIVE"], [-1], [0], 0, f"{ASK} {RUN}"),
        # None yet: create, wait, train; the training fails by itself.
        ([None, "PROVISIONING", "ACTIVE"], [-1], [2], 2, f"{ASK} create {ASK} {ASK} {RUN} {ASK}"),
        (["ACTIVE"], [-1], [1], 1, f"{ASK} {RUN} {ASK}"),
        # Asked to stop: train again on the same slice, however often.
        (["ACTIVE"], [5], [75, 75, 75, 75, 0], 0, " ".join([f"{ASK} {RUN}"] * 5)),
        # A host is gone, or the line to it: again, as long as something comes of it.
        (["ACTIVE"], [1, 2, 3, 4, 5], [76, 137, 255, 76, 0], 0, None),
        (["ACTIVE"], [7], [76, 137, 255, 0], 76, None),
        (["ACTIVE"], [7, 7, 7, 8, 8, 8, 8], [137], 137, None),
        # The line is cut before the training; that counts, too.
        (["ACTIVE"], ["cut", -1], [0], 0, f"{ASK} ssh ssh {ASK} {RUN}"),
        (["ACTIVE"], ["cut"], [0], 76, " ".join([f"{ASK} ssh ssh"] * 4)),
        # That every other look is cut makes no checkpoint newer.
        (
            ["ACTIVE"],
            [7, "cut", 7, "cut"],
            [76],
            76,
            " ".join([f"{ASK} {RUN} {ASK} {ASK} ssh ssh"] * 2),
        ),
        # gcloud does not say how the request stands: no other is made, unless for long.
        (["no line", "no line", "ACTIVE"], [-1], [0], 0, f"{ASK} {ASK} {ASK} {RUN}"),
        (["no line"], [7], [0], 7, f"{ASK} {ASK} {ASK} create {ASK} {ASK} {ASK}"),
        # Taken away in the middle: delete, create, go on.
        (
            ["ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE"],
            [-1],
            [1, 0],
            0,
            f"{ASK} {RUN} {ASK} {ASK} delete create {ASK} {RUN}",
        ),
        # A request that comes to nothing each time, or that somebody takes back.
        ([None, "FAILED"], [-1], [0], 76, None),
        ([None], [0], [0], 1, f"{ASK} create {ASK} {ASK} {ASK}"),
        # It cannot be asked for (7, below), or the workdir not be looked at.
        ([None], [7], [0], 7, f"{ASK} create {ASK}"),
        (["ACTIVE"], ["no such folder"], [0], 1, f"{ASK} ssh ssh {ASK}"),
    ],
)
def test_a_pod_to_its_end(tmp_path, monkeypatch, states, looks, trains, expected, verbs):
    monkeypatch.setattr(tpu_pod, "POLL", 0.0)
    monkeypatch.setattr(tpu_pod, "ASKED", 3)
    program(tmp_path / "gcloud", f'exec {sys.executable} -I -S {tmp_path}/gcloud.py "$@"')
    (tmp_path / "gcloud.py").write_text(GCLOUD.format(folder=str(tmp_path)))
    plan = {"states": states, "look": looks, "train": trains, "set up": [0]}
    (tmp_path / "plan").write_text(json.dumps(plan))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert tpu_pod.main([*POD, "--spot", "--restarts", "2", "--", *WORDS]) == expected
    calls = [json.loads(line)[0] for line in (tmp_path / "calls").read_text().splitlines()]
    assert verbs is None or calls == verbs.split()
    left = json.loads((tmp_path / "plan").read_text())
    assert len(left["train"]) == len(left["look"]) == 1  # all that was planned has happened
    assert calls.count("create") <= 4


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
    create, _, prepare, look, train = (
        shlex.split(part) for part in _lines(capsys.readouterr().out)
    )
    assert create[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    for command in (prepare, look, train):
        assert subprocess.run(["bash", "-n"], input=command[-1], text=True).returncode == 0
    assert "'gs://b/run s'" in train[-1] and "launch/flags.py tpu" in train[-1]


@pytest.mark.parametrize("has", ["python3.12", "python3"])
def test_a_host_is_set_up(tmp_path, capsys, has):
    """The script, with stand-ins that write down how they were called; a branch and then a tag."""
    words = [*POD, "--revision", "fix", "--setup", "echo $HERE 'a b' >> calls", "--dry-run"]
    assert tpu_pod.main([*words, "--", *WORDS]) == 0
    script = shlex.split(_lines(capsys.readouterr().out)[2])[-1]
    (tmp_path / "vla_jax/tools").mkdir(parents=True)
    note = f'echo "$(basename $0) $*" >> {tmp_path}/vla_jax/calls'
    for name in ("bin/sudo", "bin/make"):
        program(tmp_path / name, note)
    program(tmp_path / "bin/git", f"{note}; [[ $* != *origin/* ]]")
    found = f'{note}; [ "$1 $2" = "-c import" ] || [ "$5" != --system ] || echo /new/python'
    program(tmp_path / f"bin/{has}", found)
    program(tmp_path / "vla_jax/.venv/bin/python", f'{note}; [ "$1" != -c ] || echo 1.2.3')
    (tmp_path / "bin/basename").symlink_to(shutil.which("basename"))
    environment = {"PATH": f"{tmp_path}/bin", "HERE": "here"}  # this machine may have a python3.12
    done = subprocess.run(["/bin/bash", "-c", script], cwd=tmp_path, env=environment)
    assert done.returncode == 0
    calls = (tmp_path / "vla_jax/calls").read_text().splitlines()
    python = f"{tmp_path}/bin/python3.12" if has == "python3.12" else "/new/python"
    assert calls[:3] == [
        "git fetch -q",
        "git checkout -q --detach origin/fix",
        "git checkout -q --detach fix",
    ]
    assert [f"sudo tools/setup_system.sh {python}", f"make setup PYTHON={python}"] == calls[-5:-3]
    assert calls[-2:] == ["python -m pip install -q jax[tpu]==1.2.3", "here a b"]
    assert ("python3 -m uv python install -q 3.12" in calls) == (has == "python3")


def _lines(text: str) -> list[str]:
    return [f"gcloud {part}" for part in text.split("gcloud ")[1:]]


@pytest.mark.parametrize("launcher", [slurm, tpu_pod])
def test_what_is_missing_is_said(launcher, capsys):
    with pytest.raises(SystemExit) as stopped:
        launcher.main(["--name", "n", "--zone", "z"] if launcher is tpu_pod else [])
    assert stopped.value.code == 2 and "expected" in capsys.readouterr().err


def program(path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
