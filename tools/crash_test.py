"""Kills a training again and again, and says whether anything but time was lost.

    python tools/crash_test.py --seed 0 --kills 20 --workdir /tmp/crash    (again: goes on there)
    python tools/crash_test.py --seed 0 --kill-host

A tiny policy trains on recorded data (configs/debug.py) on 2 processes x 4 devices: once
undisturbed, once with `--kills` times kill -9 for one of the processes, after its first save, in
the middle of a train_step or of a save (one is left unfinished then), at times drawn from `--seed`;
both kinds come equally often. After each kill every array of the saves that are left is read. Then
the run is resumed on the same 2 x 4, where every loss must equal the undisturbed run's bit for bit;
after every other kill also, from a copy, on 1 x 2, where losses may differ by 1e-5 of their size
within 50 train_steps. WORKDIR/{undisturbed,killed,elastic}.jsonl hold a line per train_step and
attempt: its loss (also as hexadecimal float), its rows, each hashed.

`--kill-host` stops a process and its watcher, as a host without power: nothing closes, nothing is
sent. It measures how long the other one takes to name it and to end, for each of the two.

The last line on stdout is one JSON object; the exit code is 0 if all is as promised, else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import crash_verdict
import numpy as np
import psutil

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
EVERY = 5  # train_steps between saves
SLACK = EVERY + 2  # a kill is meant to come at most so many train_steps after a resume
ELASTIC = 50  # train_steps that the run on 1 x 2 is followed
MOST = 1800.0  # seconds after which a training that does not move is given up
KINDS = ("train_step", "save")
SMALL = (
    *("model.trunk.width=16", "model.trunk.depth=1", "model.trunk.heads=2", "model.trunk.mlp=16"),
    *("model.tokenizers.primary.image_size=(24,24)", "model.tokenizers.primary.grid_stride=8"),
    *("model.tokenizers.primary.widths=(8,8,16)", "streams.robot.image_sizes.primary=(24,24)"),
    *(
        "model.heads.action.hidden=(8,)",
        "mesh.fsdp=2",
        "sharding.small=512",
        "validation.every=None",
    ),
    *(f"checkpoint.every={EVERY}", "checkpoint.checksums=True", "log_every=1"),
    *("writers=('jsonl',)",),
)


def main(argv: list[str] | None = None) -> int:
    """0 when all is as promised."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--child"]:
        return child(pathlib.Path(argv[1]), argv[2:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--workdir", default="runs/crash_test")
    parser.add_argument("--data", default=str(ROOT.parent / "shared/fixtures/bridge_dataset/1.0.0"))
    parser.add_argument("--kill-host", action="store_true")
    arguments = parser.parse_args(argv)
    test = Test(arguments)
    found = test.kill_hosts() if arguments.kill_host else test.kills()
    print(json.dumps(found), flush=True)
    return 0 if found["passed"] else 1


def child(notes: pathlib.Path, words: list[str]) -> int:
    """`vla WORDS`, with a line in a file of `notes` for every batch that the training draws."""
    from jax._src import cache_key

    from vla_jax.cli import main as cli
    from vla_jax.data import engine

    # Else only process 0 finds its kept programs: on CPUs the key tells apart where a process is.
    cache_key._hash_accelerator_config = cache_key._hash_devices
    draw = engine.Stream.__next__
    file = notes.with_name(f"{notes.name}-{os.environ['VLA_PROCESS']}.jsonl").open("a")

    def noted(stream):
        before, batch = stream.n, draw(stream)
        rows = {str(row): fingerprint(batch, i) for i, row in enumerate(batch["row_id"].tolist())}
        file.write(json.dumps({"train_step": stream.n // (stream.n - before), "rows": rows}) + "\n")
        file.flush()
        return batch

    engine.Stream.__next__ = noted
    return cli.main(words)


def fingerprint(batch: dict, i: int) -> str:
    """A hash of row `i` of everything in a batch."""
    digest = hashlib.sha256()

    def feed(value):
        if isinstance(value, dict):
            for name in sorted(value):
                digest.update(name.encode())
                feed(value[name])
        else:
            digest.update(np.ascontiguousarray(value[i]).tobytes())

    feed(batch)
    return digest.hexdigest()[:16]


class Test:
    """The runs below one folder; what has been done stands in its state.json."""

    def __init__(self, arguments: argparse.Namespace):
        self.seed, self.count = arguments.seed, arguments.kills
        self.root = pathlib.Path(arguments.workdir).absolute()
        self.root.mkdir(parents=True, exist_ok=True)
        self.steps = 3 * EVERY + self.count * (SLACK + 2)
        self.words = [
            "--config",
            f"{ROOT}/configs/debug.py:data={arguments.data},steps={self.steps}",
        ]
        self.words += [f"--config.{setting}" for setting in (f"seed={self.seed}", *SMALL)]
        about = {"seed": self.seed, "kills": self.count}
        self.file = self.root / "state.json"
        self.state = {**about, "undisturbed": False, "killed": [], "elastic": []}
        if self.file.exists():
            self.state = json.loads(self.file.read_text())
            if {name: self.state[name] for name in about} != about:
                raise SystemExit(f"{self.root} holds a test of another --seed or --kills")
        self.keep()

    # ------------------------------------------------------------------------------------ kills

    def kills(self) -> dict:
        """Runs what has not been run yet; the verdict."""
        if not self.state["undisturbed"]:
            for left in self.root.glob("undisturbed*"):  # by a test that was itself interrupted
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            self.finish("undisturbed", 2, 4)
            self.state["undisturbed"] = True
            self.keep()
        for number in range(len(self.state["killed"]), self.count):
            self.state["killed"].append(self.kill(number))
            self.keep()
        for number in range(1, self.count, 2):
            if number not in self.state["elastic"]:
                self.state["elastic"].append(number)  # its copy was made after the kill
                self.elastic(number)
                self.keep()
        self.finish("killed", 2, 4)
        return crash_verdict.verdict(self.root, self.state, self.steps, EVERY)

    def kill(self, number: int) -> dict:
        """Resumes, kills one process, reads the checkpoint that is left."""
        chance, run = random.Random(f"{self.seed}/{number}"), self.root / "killed"
        begin, before = newest(run), len(losses(run))
        stale = saving(run)  # of saves that kills interrupted
        wanted = self.rarer(number)
        target, delay = (begin or EVERY) + chance.randint(2, SLACK), chance.random()
        victim, ready = chance.randrange(2), False
        with self.training(run, 2, 4) as launcher:
            while not ready:
                alive(launcher, run)
                time.sleep(0.003)
                made, in_save = losses(run)[before:], not saving(run) <= stale
                if not made or newest(run) is None:
                    continue
                under = processes(launcher)
                late = made[-1] >= target + EVERY  # where a save is always under way
                ready = in_save if wanted == "save" else made[-1] >= target and not in_save or late
            time.sleep(delay * 0.1)
            under[victim].kill()
            launcher.wait(timeout=120)
            done = max(losses(run)[before:])
        left, wrong = newest(run), unreadable(run)
        begun = [int(name.split(".")[0]) for name, _ in saving(run) - stale]
        where, during = KINDS[bool(begun)], max(0, done - max(begun)) if begun else 0
        say(f"kill {number}: process {victim}, {where} {begin} -> {done}, saved {left}, {wrong=}")
        if done >= self.steps:
            raise SystemExit(f"{run} has come to its end before kill {number}")
        if number % 2:
            copy = self.root / f"elastic-{number}"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(run, copy)
        found = dict(begin=begin, done=done, saved=left, lost=done - left, where=where)
        return dict(found, during=during, victim=victim, wrong=wrong)

    def rarer(self, number: int) -> str:
        """The kind of which fewer kills have been followed as kill `number` will be."""
        kinds = [kill["where"] for kill in self.state["killed"][number % 2 :: 2]]
        return min(KINDS[:: -1 if number % 2 else 1], key=kinds.count)

    def elastic(self, number: int) -> None:
        """Goes on from what kill `number` left on 1 process x 2 devices."""
        run = self.root / f"elastic-{number}"
        stop = min((newest(run) or 0) + ELASTIC, self.steps)
        (run / "metrics.jsonl").unlink(missing_ok=True)
        with self.training(run, 1, 2) as launcher:
            while last_step(run) < stop:
                if launcher.poll() == 0:
                    break
                alive(launcher, run)
                time.sleep(0.05)
            launcher.terminate()
            launcher.wait(timeout=120)
        say(f"elastic {number}: to train_step {last_step(run)}")

    def finish(self, name: str, hosts: int, devices: int) -> None:
        """Trains a run to its end."""
        run = self.root / name
        while last_step(run) < self.steps or newest(run) != self.steps:
            with self.training(run, hosts, devices) as launcher:
                while launcher.poll() is None:
                    time.sleep(0.2)
                if launcher.returncode:
                    raise SystemExit(f"{name} failed:\n{tail(run)}")
        say(f"{name}: {self.steps} train_steps")

    @contextlib.contextmanager
    def training(self, run: pathlib.Path, hosts: int, devices: int) -> Iterator[subprocess.Popen]:
        """`launch/local.py` with the training under it; nothing of it outlives the block."""
        run.mkdir(exist_ok=True)
        attempt = len(list(self.root.glob(f"{run.name}.rows-*-0.jsonl")))
        command = [sys.executable, str(ROOT / "launch/local.py")]
        command += ["--processes", str(hosts), "--devices", str(devices), "--"]
        command += self.command(run, attempt)
        with (self.root / f"{run.name}.log").open("ab") as log:
            launcher = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(),
                start_new_session=True,
            )
        launcher.begun = time.monotonic()
        try:
            yield launcher
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(launcher.pid, signal.SIGKILL)
            launcher.wait()

    def command(self, run: pathlib.Path, attempt: int) -> list[str]:
        """One process's."""
        notes = self.root / f"{run.name}.rows-{attempt:03d}"
        program = [sys.executable, str(pathlib.Path(__file__)), "--child", str(notes)]
        return [*program, "train", *self.words, "--workdir", str(run)]

    def environment(self) -> dict[str, str]:
        """Compiled programs are kept between the attempts, and shared: the same ones, sooner."""
        cache = dict(
            JAX_COMPILATION_CACHE_DIR=str(self.root / "cache"),
            JAX_COMPILATION_CACHE_MAX_SIZE=str(2**30),  # bounded: locked, see cli/main.py
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.1",
        )
        index = {"VLA_JAX_INDEX_DIR": str(self.root / "index")}  # recorded data may be read-only
        return {**index, **os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **cache}

    def keep(self) -> None:
        """Writes what has been done."""
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.state, indent=1))
        part.replace(self.file)

    # ------------------------------------------------------------------------------------ hosts

    def kill_hosts(self) -> dict:
        """Stops each of the two hosts in turn; how long until the other names it and ends."""
        found = [self.kill_host(victim) for victim in (1, 0)]
        return dict(
            detected_s=max(seconds for seconds, _, _ in found),
            named=all(named for _, named, _ in found),
            exit_codes=[code for _, _, code in found],
            passed=all(s <= 60 and named and code not in (0, 75) for s, named, code in found),
        )

    def kill_host(self, victim: int) -> tuple[float, bool, int]:
        """(seconds until the survivor ended, whether it named the other, its exit code)."""
        from launch import local

        run, coordinator = self.root / f"host-{victim}", f"127.0.0.1:{local.free_port()}"
        shutil.rmtree(run, ignore_errors=True)
        for file in self.root.glob(f"{run.name}*"):
            file.unlink()
        run.mkdir()
        os.environ.update(self.environment())
        started = []
        for number in range(2):
            with (self.root / f"{run.name}-{number}.log").open("wb") as log:
                started.append(
                    psutil.Popen(
                        self.command(run, 0),
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=local.environment(coordinator, 2, number, 4),
                    )
                )
        host = [started[victim]]
        try:
            while last_step(run) < 2:
                if any(process.poll() is not None for process in started):
                    raise SystemExit((self.root / f"{run.name}-{1 - victim}.log").read_text())
                time.sleep(0.05)
            host += started[victim].children(recursive=True)  # its watcher
            begun = time.monotonic()
            for process in host:
                process.suspend()
            code = started[1 - victim].wait(timeout=200)
            seconds = time.monotonic() - begun
        finally:
            for process in (*host, *started):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            for process in started:
                process.wait()
        time.sleep(0.5)
        said = (self.root / f"{run.name}-{1 - victim}.log").read_text()
        named = f"vla: process {victim} (host " in said and f"pid {host[0].pid}) is gone" in said
        say(f"host {victim}: the other ended after {seconds:.1f} s with {code}, named: {named}")
        return round(seconds, 1), named, code


def last_step(run: pathlib.Path) -> int:
    """The train_step of the last loss that was written, 0 before the first."""
    return (losses(run) or [0])[-1]


def losses(run: pathlib.Path) -> list[int]:
    """The train_steps whose losses have been written, in that order."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def saving(run: pathlib.Path) -> set[tuple[str, int]]:
    """(folder, time of its last change) of saves that have begun and not ended."""
    found = set()
    for path in (run / "checkpoints").glob("*.orbax-checkpoint-tmp*"):
        with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def newest(run: pathlib.Path) -> int | None:
    """The train_step of the newest complete save."""
    names = [path.name for path in (run / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=None)


def unreadable(run: pathlib.Path) -> list[str]:
    """What is wrong with any of a run's complete saves; every array is read."""
    from vla_jax.train import examine

    places = [path for path in (run / "checkpoints").glob("*") if path.name.isdigit()]
    return [line for place in sorted(places) for line in examine.verify(place)["wrong"]]


def processes(launcher: subprocess.Popen) -> list[psutil.Process]:
    """The processes under `launch/local.py`, by number."""
    under = psutil.Process(launcher.pid).children()
    return sorted(under, key=lambda process: int(process.environ()["VLA_PROCESS"]))


def alive(launcher: subprocess.Popen, run: pathlib.Path) -> None:
    """SystemExit with the end of its log when the training has ended by itself, or hangs."""
    if launcher.poll() is not None or time.monotonic() - launcher.begun > MOST:
        raise SystemExit(f"{run} ended ({launcher.poll()}) or hangs:\n{tail(run)}")


def tail(run: pathlib.Path) -> str:
    """The end of a run's log."""
    return run.with_name(f"{run.name}.log").read_text(errors="replace")[-3000:]


def say(text: str) -> None:
    """A line on stderr: stdout's last line is for programs."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if "--child" not in sys.argv:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what it has started
    sys.exit(main())
