"""Two processes that were not started alike end before they train, and say what differs."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest

from tests import two_streams
from tests.test_processes import CONFIG, LOCAL, PROJECT
from vla_jax import plugin
from vla_jax.parallel import processes
from vla_jax.train import agree, provenance

# Process 1 has another rate, another jax, another line in one file of the package.
PROGRAM = """
import os, pathlib, sys
from vla_jax.cli import main
words = sys.argv[2:]
if os.environ["VLA_PROCESS"] == "1":
    words.append("--config.optimizer.lr=0.125")
    from vla_jax.train import agree, provenance
    agree.PACKAGE, versions = pathlib.Path(sys.argv[1]), provenance.versions()
    provenance.versions = lambda: {**versions, "jax": "0.0.1"}
sys.exit(main.main(words))
"""


@pytest.mark.mesh
@pytest.mark.timeout(700)
def test_two_that_differ_are_refused(tmp_path):
    tree = two_streams.tree(tmp_path / "nowhere", "no.model", vl=False, mesh=dict(data=2))
    (tmp_path / "both.json").write_text(json.dumps(tree))
    (tmp_path / "both.py").write_text(CONFIG)
    package = shutil.copytree(
        PROJECT / "vla_jax", tmp_path / "vla_jax", ignore=shutil.ignore_patterns("__pycache__")
    )
    with (package / "train/step.py").open("a") as file:
        file.write("# a change\n")
    run = tmp_path / "run"
    verb = ["train", "--config", str(tmp_path / "both.py"), "--workdir", str(run)]
    command = [*LOCAL, "--processes", "2", "--", sys.executable, "-c", PROGRAM, str(package)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [*command, *verb], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 2, done.stdout[-3000:]
    # Both say it, perhaps at once; who says it last may be ended in the middle.
    told = []
    for number in range(2):
        said = [line[4:] for line in done.stdout.splitlines() if line[:3] == f"[{number}]"]
        starts = [i for i, line in enumerate(said) if "processes of this run differ" in line]
        told += [said[start + 1 : start + 6] for start in starts[:1]]
    who, *lines, advice = max(told, key=len)
    assert who.startswith(f"process 1 (host {socket.gethostname()}, pid ")
    assert "compared with process 0 (host" in who
    assert lines[0] == f"  config.optimizer.lr: 0.125 there, {tree['optimizer']['lr']} here"
    assert lines[1] == f"  package jax: 0.0.1 there, {provenance.versions()['jax']} here"
    assert lines[2].startswith("  vla_jax/train/step.py: ")
    assert advice.startswith("Give the same command on every host")
    assert not run.exists()


def test_what_is_compared(monkeypatch):
    monkeypatch.setenv(
        "XLA_FLAGS", "--xla_force_host_platform_device_count=2 --xla_a=1 --xla_dump_to=/x --xla_b"
    )
    monkeypatch.setattr(agree.jax, "process_count", lambda: 2)
    tree = two_streams.tree(pathlib.Path("/nowhere"), "no.model", vl=False)
    config = two_streams.config_lib.parse(two_streams.config_lib.TrainConfig, tree)
    seen = {}

    def differ(facts):
        seen.update(facts)
        return "all of it"

    monkeypatch.setattr(processes, "differences", differ)
    with pytest.raises(plugin.UserError, match="this run differ:\nall of it\n"):
        agree.on_start(config, "/runs/x")
    assert {name: seen[name] for name in seen if name.startswith("flag")} == {
        "flag --xla_a": "1",
        "flag --xla_b": "",
    }
    assert seen["--workdir"] == "/runs/x" and "config.optimizer.lr" in seen
    assert "vla_jax/train/agree.py" in seen and seen["package jax"]
    assert max(map(len, seen.values())) < 200
