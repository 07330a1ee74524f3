"""Ctrl-C under the launcher for one machine: who saves may finish, unless it is given again."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from launch import local

PROJECT = pathlib.Path(local.__file__).resolve().parent.parent
# Who is begun in the background of a script ignores SIGINT, and so do its children: not here.
HURRIED = """
import signal, sys
from launch import local
signal.signal(signal.SIGINT, signal.default_int_handler)
local.GRACE = 0.2
sys.exit(local.main())
"""


@pytest.mark.parametrize(
    "ends, times, code",
    [
        ("trap 'sleep 1; exit 75' INT TERM", 1, 75),  # a save that is longer than GRACE
        ("trap '' INT TERM", 2, 128 + signal.SIGINT),
    ],
)
def test_ctrl_c_waits_for_a_save(ends, times, code):
    script = f"{ends}; echo ready; while true; do sleep 0.05; done"
    command = [sys.executable, "-c", HURRIED, "--processes", "2", "--", "bash", "-c", script]
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    started = subprocess.Popen(command, cwd=PROJECT, start_new_session=True, **pipe)
    try:
        said = sorted(started.stdout.readline() for _ in range(2))
        assert said == ["[0] ready\n", "[1] ready\n"]
        os.killpg(started.pid, signal.SIGINT)  # as a terminal does
        assert "waits until all have ended" in started.stdout.readline()
        limit = time.monotonic() + 30
        while times > 1 and started.poll() is None and time.monotonic() < limit:
            os.killpg(started.pid, signal.SIGINT)  # and more, which are not heard
            time.sleep(0.05)
        assert started.wait(timeout=30) == code
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.stdout.close()
