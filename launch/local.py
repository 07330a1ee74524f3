"""Starts a command as N processes on this machine that compute together.

  python launch/local.py --processes 2 --devices 4 -- \\
      vla train --config configs/debug.py --workdir runs/x

Each process gets VLA_COORDINATOR, VLA_PROCESSES and VLA_PROCESS (read by parallel/processes.py) and
`--devices` fake CPU devices. Output is forwarded with the process's number in front. When one
process fails, the others are ended and its exit code is passed on (parallel/endings.py says what
launchers make of it; this one begins nothing again). SIGTERM and Ctrl-C are passed on to all: a
training saves, and ends with exit code 75; a second Ctrl-C kills. With --dry-run the commands are
printed, and nothing is started.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

from vla_jax.parallel import endings, fake_devices

GRACE = 10.0  # seconds between asking a process to end and killing it


def main(argv: list[str] | None = None) -> int:
    """The first exit code that is not 0, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1, help="fake CPU devices per process")
    parser.add_argument("--dry-run", action="store_true", help="print what would be started")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND …")
    arguments = parser.parse_args(argv)
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command or arguments.processes < 1 or arguments.devices < 1:
        parser.error("expected: local.py --processes N --devices M -- COMMAND …")
    coordinator = f"127.0.0.1:{free_port()}"
    if arguments.dry_run:
        for number in range(arguments.processes):
            print(said(command, coordinator, arguments.processes, number, arguments.devices))
        return 0
    started = [
        subprocess.Popen(
            command,
            env=environment(coordinator, arguments.processes, number, arguments.devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        for number in range(arguments.processes)
    ]
    signal.signal(signal.SIGTERM, lambda *_: ask_to_end(started))
    readers = [
        threading.Thread(target=forward, args=(number, process), daemon=True)
        for number, process in enumerate(started)
    ]
    try:
        for reader in readers:
            reader.start()
        code = wait(started)
    except KeyboardInterrupt:
        code = let_end(started)
    finally:
        end(started)
    for reader in readers:
        reader.join(timeout=5)
    return code


def environment(coordinator: str, processes: int, number: int, devices: int) -> dict[str, str]:
    """The environment of process `number`."""
    return {
        **os.environ,
        **fake_devices.variables(devices),
        "VLA_COORDINATOR": coordinator,
        "VLA_PROCESSES": str(processes),
        "VLA_PROCESS": str(number),
        "PYTHONUNBUFFERED": "1",
    }


def said(command: list[str], coordinator: str, processes: int, number: int, devices: int) -> str:
    """The line for a shell that starts process `number`."""
    made = environment(coordinator, processes, number, devices)
    new = [f"{key}={value}" for key, value in made.items() if os.environ.get(key) != value]
    return shlex.join(["env", *new, *command])


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def forward(number: int, process: subprocess.Popen) -> None:
    """Prints a process's lines as they come, with its number in front."""
    for line in process.stdout:
        sys.stdout.write(f"[{number}] {line}" if line.endswith("\n") else f"[{number}] {line}\n")
        sys.stdout.flush()


def wait(processes: list[subprocess.Popen]) -> int:
    """0 when all have ended well, else the code of the first that has not, as soon as it ends.

    Of several at once, see `endings.of`; a signal's is as a shell says, 137 for SIGKILL.
    """
    while True:
        codes = [process.poll() for process in processes]
        if any(codes):
            return endings.of(128 - code if code < 0 else code for code in codes if code)
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.1)


def let_end(processes: list[subprocess.Popen]) -> int:
    """The exit code as of `wait`, after Ctrl-C: all may take their time, whoever fails meanwhile.

    A second one kills; nothing comes of more.
    """
    try:
        print(
            "local.py: waits until all have ended, Ctrl-C kills them", file=sys.stderr, flush=True
        )
        ask_to_end(processes)
        for process in processes:
            process.wait()
        return wait(processes)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for process in processes:
            process.kill()
        return 128 + signal.SIGINT


def ask_to_end(processes: list[subprocess.Popen]) -> None:
    """SIGTERM to those still running."""
    for process in processes:
        if process.poll() is None:
            process.terminate()


def end(processes: list[subprocess.Popen]) -> None:
    """Asks those still running to end, then kills them."""
    ask_to_end(processes)
    limit = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(timeout=max(0.0, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
