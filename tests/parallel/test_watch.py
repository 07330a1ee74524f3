"""Processes without jax, and watchers beside them: who is missed, who is named, who ends."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from vla_jax.parallel import watch

PROGRAM = """
import atexit, pathlib, sys, time
sys.path.insert(0, sys.argv[3])
import watch
number, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
where = folder / "address"
while number and not where.exists():
    time.sleep(0.02)
made = watch.Watch(number, "127.0.0.1", where.read_text() if number else None, silence=3.0)
if number == 0:
    (folder / "part").write_text(made.address)
    (folder / "part").rename(where)
atexit.register(made.linger)
print(made.pid, flush=True)
for line in sys.stdin:
    if line == "leave\\n":
        made.leave()
        time.sleep(2.5)
        sys.exit(0)
    elif line.startswith("failed "):
        code, way = line.split()[1:]
        made.failed("ValueError: no such robot", int(code), "Traceback: ...\\n")
        while way == "hangs":
            time.sleep(1)
        sys.exit(3)
"""


@pytest.fixture
def started(tmp_path):
    """Three processes, each with the pid of its watcher."""
    here = str(pathlib.Path(watch.__file__).parent)
    pipe = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    made = []
    for number in range(3):
        words = [sys.executable, "-c", PROGRAM, str(number), str(tmp_path), here]
        made.append(subprocess.Popen(words, **pipe))
    for process in made:
        process.watcher = int(process.stdout.readline())
    time.sleep(1.0)  # all have been introduced
    yield made
    for process in made:
        process.kill()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
        process.wait()


def survivors(started, gone: int, code: int = watch.LOST) -> list[str]:
    """What those left have said; they must have ended with `code`."""
    left = [process for process in started if process is not started[gone]]
    for process in left:
        assert process.wait(timeout=60) == code
    return [process.stderr.read() for process in left]


@pytest.mark.parametrize("gone", [0, 2])
def test_a_killed_process_is_named_at_once(started, gone):
    started[gone].kill()
    for said in survivors(started, gone):
        assert f"process {gone} (host {os.uname().nodename}, pid {started[gone].pid}) is" in said
        assert "gone" in said and "Give the same command again" in said


@pytest.mark.parametrize("gone", [0, 1])
def test_a_host_that_falls_silent_is_named(started, gone):
    frozen = (started[gone].pid, started[gone].watcher)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)  # nothing is closed, nothing is sent: as without power
    for said in survivors(started, gone):
        assert f"process {gone} (" in said and "nothing heard of it for" in said
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    "gone, code, way",
    [(0, 2, "ends"), (1, 1, "ends"), (0, 1, "hangs"), (2, 1, "hangs")],
)
def test_an_error_ends_all_with_its_words_and_code(started, gone, code, way):
    say(started[gone], f"failed {code} {way}")
    for said in survivors(started, gone, code):
        assert f"process {gone} (" in said and "it failed: ValueError: no such robot" in said
        assert f"with exit code {code}: begun again, it would end the same." in said
        assert "Give the same command again" not in said
    # Its own code, and not what its way out would have made of it; what it could not say is said.
    assert started[gone].wait(timeout=20) == code
    said = started[gone].stderr.read()
    for words in ("does not end by itself", "Traceback: ..."):
        assert (words in said) == (way == "hangs")


@pytest.mark.parametrize("gone, struck", [(0, 1), (2, 1)])
def test_an_error_that_is_the_echo_of_a_death_is_not_taken_for_one(started, gone, struck):
    say(started[struck], "failed 1 ends")  # its connection broke before its watcher knew why
    started[gone].kill()
    for said in survivors(started, gone):
        assert f"process {gone} (" in said and "it failed" not in said


def test_two_that_fail_at_once_both_end_with_the_code(started):
    for process in started:
        say(process, "failed 1 ends")
    assert [process.wait(timeout=20) for process in started] == [1, 1, 1]


def say(process, line: str) -> None:
    process.stdin.write(line + "\n")
    process.stdin.flush()


def test_who_leaves_is_not_missed(started):
    for process in (started[2], started[0], started[1]):
        say(process, "leave")
        time.sleep(1.2)
    for process in started:
        assert process.wait(timeout=10) == 0, process.stderr.read()
    deadline = time.monotonic() + 5
    while any(pathlib.Path(f"/proc/{process.watcher}").exists() for process in started):
        assert time.monotonic() < deadline, "a watcher is left behind"
        time.sleep(0.1)


def test_a_stranger_is_not_listened_to(started, tmp_path):
    _, port = (tmp_path / "address").read_text().split("@")
    gone = b'{"token": "x", "name": "y"}\n{"gone": "process 1", "why": "no"}\n'
    for words in (gone, b"GET / HTTP/1.1\r\n\r\n", b"[1]\n"):
        with socket.create_connection(("127.0.0.1", int(port))) as stranger:
            stranger.sendall(words)
            assert stranger.recv(10) == b""
    time.sleep(1.0)
    assert all(process.poll() is None for process in started)


def test_a_stranger_that_waits_hears_nothing_and_is_not_missed(started, tmp_path):
    _, port = (tmp_path / "address").read_text().split("@")
    with socket.create_connection(("127.0.0.1", int(port))) as stranger:
        stranger.settimeout(10)
        assert stranger.recv(10) == b""  # hung up after `silence`, with no beat before
    time.sleep(1.0)
    assert all(process.poll() is None for process in started)
