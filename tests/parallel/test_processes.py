"""Two processes that compile for different times begin a program's first run together."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from launch import local
from vla_jax import plugin
from vla_jax.parallel import processes, watch

PROJECT = pathlib.Path(__file__).resolve().parent.parent.parent
# Process 1 compiles what runs on all devices DELAY seconds longer. Whoever has run it says when its
# own compilation had ended, and when the run had.
PROGRAM = """
import functools, json, os, pathlib, sys, time
delay, waits, file = float(sys.argv[1]), sys.argv[2] == "waits", sys.argv[3]
import jax, jax.numpy as jnp, numpy as np
from jax._src import compiler
from vla_jax.parallel import mesh as meshes, processes
processes.initialize()
real, ended = compiler.compile_or_get_cached, []
@functools.wraps(real)
def late(*arguments, **named):
    compiled = real(*arguments, **named)
    if jax.process_index() == 1:
        time.sleep(delay)
    ended.append(time.monotonic())
    return compiled
mesh = meshes.make(dict(data=2))
rows = jax.make_array_from_callback(
    (2, 3), jax.NamedSharding(mesh, jax.P("data")), lambda index: np.ones((2, 3), np.float32)[index]
)
compiler.compile_or_get_cached = late
program = jax.jit(jnp.sum, out_shardings=jax.NamedSharding(mesh, jax.P()))
if waits:
    program = processes.beginning_together(program, "the sum")
found = {}
try:
    found["sum"] = float(program(rows).addressable_data(0))
    found |= dict(run=time.monotonic(), compiled=ended[-1])
    found["again"] = float(program(rows).addressable_data(0))
    found["compilations"] = len(ended)
    if waits:
        delay, processes.PATIENCE = 12.0, 1.0
        processes.beginning_together(jax.jit(jnp.max), "the greatest")(rows)
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}"
files = [pathlib.Path(f"{file}-{number}") for number in range(2)]
part = pathlib.Path(f"{file}.part-{jax.process_index()}")
part.write_text(json.dumps(found))
part.rename(files[jax.process_index()])
limit = time.monotonic() + 100
while waits and not all(path.exists() for path in files) and time.monotonic() < limit:
    time.sleep(0.1)
os._exit(0)
"""


def two(tmp_path, delay: float, waits: bool = True) -> list[dict]:
    """What each of the two processes has found; process 0 alone where nobody waits.

    The other may sit in Gloo until process 0 ends, and is ended by jax as soon as that has.
    """
    file = tmp_path / f"found-{waits}"
    command = [sys.executable, str(PROJECT / "launch/local.py"), "--processes", "2", "--"]
    words = [str(delay), "waits" if waits else "hurries", str(file)]
    command += [sys.executable, "-c", PROGRAM, *words]
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    started = subprocess.Popen(command, env=environment, start_new_session=True, **pipe)
    try:
        said, _ = started.communicate(timeout=delay + 200)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    files = [pathlib.Path(f"{file}-{number}") for number in range(2 if waits else 1)]
    assert all(path.exists() for path in files), said
    return [json.loads(path.read_text()) for path in files]


@pytest.mark.parametrize(
    "error, code", [(plugin.UserError("a typo"), 2), (OSError("no disk"), watch.FAILED)]
)
def test_the_others_end_as_after_a_mistake_only_after_one(monkeypatch, error, code):
    said = []
    monkeypatch.setattr(watch.Watch, "_say", lambda self, line: said.append(line))
    monkeypatch.setattr(processes, "_watch", object.__new__(watch.Watch))
    processes.note_error(type(error), error, None)
    assert said == [f"failed {code} {type(error).__name__}: {error}"]


def check(found: list[dict]) -> None:
    assert [one.get("sum") for one in found] == [6.0, 6.0], found
    assert [one["again"] for one in found] == [6.0, 6.0]
    assert [one["compilations"] for one in found] == [1, 1]  # the wait compiles nothing twice
    # One clock on this machine: nobody had run it before both had compiled it.
    assert min(one["run"] for one in found) > max(one["compiled"] for one in found)


# Both have joined; then one ends in its way, while the other waits for it inside of jax.
ENDING = """
import os, signal, sys
number, victim, way = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
from vla_jax import plugin
from vla_jax.parallel import processes
with processes.together():
    processes.meet("the beginning")
    if number == victim:
        if way == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise plugin.UserError("a typo") if way == "mistake" else ValueError("a bug")
    processes.meet("what never comes")
"""


def ends(
    program: str, words: dict[int, tuple], limit: float, host: str = "127.0.0.1"
) -> tuple[list, list]:
    """(exit codes, stderr) of processes of two, each by itself as on hosts of its own.

    `words`: number of a process -> its arguments; who is not named is not begun. `limit`: seconds
    for each to end.
    """
    address, started = f"{host}:{local.free_port()}", []
    try:
        for number, given in words.items():
            environment = local.environment(address, 2, number, 1) | {"PYTHONPATH": str(PROJECT)}
            command = [sys.executable, "-c", program, *given]
            started.append(
                subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            )
        said = [process.communicate(timeout=limit)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], said


@pytest.mark.parametrize(
    "victim, way, code",
    [
        (1, "bug", watch.FAILED),
        *(
            pytest.param(*values, marks=pytest.mark.slow)
            for values in (
                (0, "bug", watch.FAILED),
                (0, "mistake", 2),
                (1, "mistake", 2),
                (1, "killed", watch.LOST),
            )
        ),
    ],
)
def test_who_is_left_ends_with_the_code_of_who_failed(victim, way, code):
    """Each by itself: what a launcher over several hosts sees of them."""
    words = {number: (str(number), str(victim), way) for number in range(2)}
    codes, said = ends(ENDING, words, 120)
    assert codes[1 - victim] == code, said
    assert codes[victim] == (-signal.SIGKILL if way == "killed" else code), said
    assert f"vla: process {victim} (" in said[1 - victim]
    words = dict(bug="it failed: ValueError: a bug", mistake="it failed: UserError: a typo")
    assert words.get(way, "its connection closed") in said[1 - victim]
    assert way == "killed" or "Traceback" in said[victim]  # this program prints UserErrors so too


ALONE = """
import sys
from vla_jax.parallel import processes
processes.JOIN, processes.PATIENCE = 2, 2.0
if sys.argv[1] == "mute":
    processes.tell = lambda text: processes._get(processes.distributed.global_state.client, "x", 0)
with processes.together():
    raise AssertionError("joined nobody")
"""


@pytest.mark.parametrize(
    "number, host, way, expected",
    [
        (0, "127.0.0.1", "", "within 2 s not all processes have come"),
        (1, "127.0.0.1", "", "within 2 s not all processes have come"),
        (1, "no-such-host.invalid", "", "'no-such-host.invalid' has no address after 2 s"),
        pytest.param(None, "127.0.0.1", "mute", "nothing came from ", marks=pytest.mark.slow),
    ],
)
def test_who_joins_nobody_is_begun_again(number, host, way, expected):
    """Alone of two; "mute": both have come, but process 0 never says where it is watched."""
    words = dict.fromkeys(range(2) if number is None else [number], (way,))
    codes, said = ends(ALONE, words, 60, host)
    # jax aborts the other when process 0 has ended; launchers count that alike.
    assert codes[0] == watch.LOST, said
    assert all(code in (watch.LOST, -signal.SIGABRT) for code in codes)
    assert expected in said[0] and f"(exit code {watch.LOST})" in said[0]
    assert "Traceback" not in said[0] and "Check failure" not in said[0]


class Said:
    """In place of a watcher: what the process told it."""

    def __init__(self):
        self.words = []

    def failed(self, why, code, unsaid=""):
        self.words.append((why, code))


@pytest.mark.parametrize("moves", [True, False])
def test_who_does_not_move_on_says_so(monkeypatch, moves, capfd):
    said = Said()
    monkeypatch.setattr(processes, "_watch", said)
    monkeypatch.setattr(processes, "PATIENCE", processes.PATIENCE)  # put back at the end
    with processes.Progress(1.0) as progress:
        for number in range(6):
            if moves or not number:
                progress.at(f"the rows of train_step {number}")
            time.sleep(0.3)
        progress.at(None)  # a validation may take longer
        time.sleep(1.4)
    if moves:
        assert said.words == []
        return
    ((why, code),) = said.words
    assert why.startswith("process 0 (host ") and code == watch.LOST
    assert "hangs, for 1 s (config.patience), at the rows of train_step 0" in why
    assert "test_who_does_not_move_on_says_so" in capfd.readouterr().err  # its stack


LONE = """
import sys, time
from vla_jax.parallel import processes
with processes.together(), processes.Progress(1.0) as progress:
    progress.at("train_step 3", others=True)
    time.sleep(0.1 if sys.argv[1] == "moves" else 60)
"""


@pytest.mark.parametrize("way", ["moves", "hangs"])
def test_a_process_that_is_alone_ends_when_it_hangs(way):
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "VLA_SINGLE": "1"}
    command = [sys.executable, "-c", LONE, way]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=50)
    assert done.returncode == (0 if way == "moves" else watch.LOST), done.stderr
    if way == "hangs":
        assert "hangs, for 1 s (config.patience), at train_step 3" in done.stderr
        assert '"<string>", line 6' in done.stderr  # where it stands


# Nobody reads what it says: `vla train | head` under a launcher that is gone.
UNHEARD = """
import os, sys
from vla_jax.parallel import processes
ours, theirs = os.pipe()
os.close(ours)
os.dup2(theirs, 1)
os.dup2(theirs, 2)
print("a line that is kept back")
try:
    processes._lost("nothing comes")
finally:
    os._exit(3)
"""


def test_who_is_not_heard_ends_all_the_same():
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": ""}
    done = subprocess.run([sys.executable, "-c", UNHEARD], env=environment, timeout=50)
    assert done.returncode == watch.LOST


# Process 1 stands still where it draws its rows, or is stopped as a whole; its watcher goes on.
HANGING = """
import os, signal, sys, time
from vla_jax.parallel import processes
processes.GRACE = 2.0
with processes.together():
    processes.meet("the beginning")
    with processes.Progress(4.0) as progress:
        if sys.argv[1] == "1" and sys.argv[2] == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        mine = sys.argv[1] == "1" and sys.argv[2] == "hangs"
        progress.at("the rows of train_step 3" if mine else "train_step 3", others=not mine)
        time.sleep(100)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["hangs", "stopped", "waits"])
def test_who_hangs_is_named_and_all_end(way):
    codes, said = ends(HANGING, {number: (str(number), way) for number in range(2)}, 90)
    # jax aborts the other when process 0, its coordinator, has ended: launchers count that alike.
    allowed = [-signal.SIGKILL] if way == "stopped" else [watch.LOST, -signal.SIGABRT]
    assert codes[0] == watch.LOST and codes[1] in allowed, said
    assert way != "hangs" or '"<string>", line' in said[1]  # where it stands
    words = dict(
        hangs="config.patience), at the rows of train_step 3",
        stopped="at train_step 3; what hangs is process 1 (host ",
        waits="what hangs is no process by itself",
    )
    assert words[way] in said[0], said


@pytest.mark.slow
@pytest.mark.mesh
@pytest.mark.timeout(300)
def test_the_first_run_waits_and_names_who_does_not_come(tmp_path):
    found = two(tmp_path, 4.0)
    check(found)
    assert found[1]["compiled"] - found[0]["compiled"] > 2.0
    for one in found:
        assert one["error"].startswith("NotCome: the greatest: within 1 s these have not come")
        assert "process 1" in one["error"] and "process 0" not in one["error"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compilation_longer_than_gloo_waits(tmp_path):
    hurried = two(tmp_path, 40.0, waits=False)
    assert "Gloo" in hurried[0]["error"]  # what happens without the wait: else this shows nothing
    check(two(tmp_path, 40.0))
