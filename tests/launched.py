"""Programs as several processes on this machine: by launch/local.py, or each started by itself."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

PROJECT = pathlib.Path(__file__).resolve().parent.parent
LOCAL = [sys.executable, str(PROJECT / "launch" / "local.py")]
# A config from the JSON beside it.
CONFIG = """
import json, pathlib
def get_config(arg):
    return json.loads(pathlib.Path(__file__).with_suffix(".json").read_text())
"""


def local(
    processes: int, *command: str, timeout: float, devices: int = 1, dry_run: bool = False
) -> subprocess.CompletedProcess:
    """What `launch/local.py` said and ended with."""
    words = ["--processes", str(processes), "--devices", str(devices)]
    words += [*(["--dry-run"] if dry_run else []), "--", *command]
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    # This tree's package, also where another is installed.
    settings = dict(cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)})
    started = subprocess.Popen([*LOCAL, *words], start_new_session=True, **settings, **pipe)
    try:
        said, _ = started.communicate(timeout=timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):  # those that a time-out left behind
            os.killpg(started.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(started.args, started.returncode, stdout=said)


@contextlib.contextmanager
def each(command: list[str], count: int, folder: pathlib.Path) -> Iterator[list[subprocess.Popen]]:
    """`count` processes without a launcher over them, as on hosts of their own.

    What process I says goes to FOLDER/I.log; none outlives the block.
    """
    from launch import local as launcher

    address, started = f"127.0.0.1:{launcher.free_port()}", []
    try:
        for number in range(count):
            with (folder / f"{number}.log").open("wb") as log:
                started.append(
                    subprocess.Popen(
                        command,
                        cwd=PROJECT,
                        env=launcher.environment(address, count, number, 1),
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()
