"""The main job from one command: the `vla` verbs in sequence, timed, with their memory measured.

    python tools/demo.py --split 0 --seed 0 --out runs/demo            (make demo)
    python tools/demo.py --arms --out runs/demo-arms                   (make demo-arms)

SPLIT deals the names into A, B and C; SEED draws the training. Nothing here but the two tables
below is of the demo: the rest is how to run any list of stages. OUT/stages.json says what was run,
how long it took and the peak of the process tree's memory (PSS). A stage that fails stops the demo
with its exit code; `--resume` goes on there: what has finished under the same command is skipped,
an interrupted training goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import psutil

from vla_jax.parallel import fake_devices

ROOT = pathlib.Path(__file__).resolve().parent.parent

PRETRAIN = "train --config configs/demo_pretrain.py:split={split},out={out}"
COFINETUNE = "train --config configs/demo_cofinetune.py:split={split},out={out}"

# (stage, what it makes in OUT, the `vla` command)
DATA = (
    (
        "text_tokenizer",
        "text_tokenizer.model",
        "data text-tokenizer --config configs/demo_pretrain.py:split={split},out={out}"
        " --out {out}/text_tokenizer.model",
    ),
    (
        "demonstrations",
        "demos",
        "data collect --out {out}/demos --split {split} --names a --episodes 1000 --seed 0"
        " --embodiment sawyer_cards --workers {cores}",
    ),
)


def _train(stage: str, config: str, arguments: str) -> tuple[str, str, str]:
    return stage, stage, f"{config},{arguments} --workdir {{out}}/{stage}"


def _close(controls: bool) -> tuple:
    arguments = "split={split},out={out},workers={cores}" + (",controls=true" if controls else "")
    evaluate = f"eval --config configs/demo_eval.py:{arguments} --out {{out}}"
    return (
        ("evaluation", "episodes.jsonl", evaluate),
        ("report", "report.html", "report --run {out}"),
    )


DEMO = (
    *DATA,
    _train("pretrain", PRETRAIN, "seed={seed}"),
    _train("cofinetuned", COFINETUNE, "seed={seed}"),
    _train("scratch", COFINETUNE, "seed={seed},arm=scratch"),
    *_close(controls=False),
)
ARMS = (
    *DATA,
    _train("pretrain", PRETRAIN, "seed={seed}"),
    _train("cofinetuned", COFINETUNE, "seed={seed}"),
    _train("pretrained_only", COFINETUNE, "seed={seed},arm=pretrained_only"),
    _train("plain", COFINETUNE, "seed={seed},arm=plain"),
    _train("plain4", COFINETUNE, "seed={seed},arm=plain4"),
    _train("pretrain_web_without_B", PRETRAIN, "seed={seed},arm=web_without_B"),
    _train(
        "web_without_B",
        COFINETUNE,
        "seed={seed},arm=web_without_B,pretrain={out}/pretrain_web_without_B",
    ),
    _train("pretrain_same_artist", PRETRAIN, "seed={seed},arm=same_artist"),
    _train(
        "same_artist",
        COFINETUNE,
        "seed={seed},arm=same_artist,pretrain={out}/pretrain_same_artist",
    ),
    _train("pretrain_2", PRETRAIN, "seed={seed2}"),
    _train("cofinetuned_2", COFINETUNE, "seed={seed2},pretrain={out}/pretrain_2"),
    _train("pretrain_3", PRETRAIN, "seed={seed3}"),
    _train("cofinetuned_3", COFINETUNE, "seed={seed3},pretrain={out}/pretrain_3"),
    *_close(controls=True),
)


# XLA on a CPU takes its buffers from malloc. Kept and on huge pages, they cost no page faults in
# each train_step: 0.20 instead of 0.25 s here (docs/LOG.md). Other C libraries ignore this.
MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"


@dataclasses.dataclass(frozen=True)
class Stage:
    """One `vla` command and the file or folder in OUT that it makes."""

    name: str
    makes: str
    words: tuple[str, ...]


def stages(table, *, split: int, seed: int, out: str, cores: int) -> list[Stage]:
    """The table's commands with its blanks filled in."""
    values = dict(split=split, seed=seed, out=out, cores=cores, seed2=seed + 1, seed3=seed + 2)
    return [
        # Split before filling in: a folder's name may hold spaces.
        Stage(name, makes, tuple(word.format(**values) for word in shlex.split(command)))
        for name, makes, command in table
    ]


def cores() -> int:
    """CPU cores this process may use, as a power of two (batches divide by it), at most 8."""
    count = min(8, len(os.sched_getaffinity(0)))
    return 1 << (count.bit_length() - 1)


def environment(stage: Stage, devices: int) -> dict[str, str]:
    """The command's environment; a training gets a mesh of `devices` fake CPU devices."""
    chosen = dict(os.environ, PYTHONUNBUFFERED="1")
    chosen.setdefault("JAX_PLATFORMS", "cpu")
    chosen.setdefault("MUJOCO_GL", "osmesa")
    if stage.words[0] == "train":
        chosen["XLA_FLAGS"] = fake_devices.flags(devices)
        chosen.setdefault("GLIBC_TUNABLES", MALLOC)
    return chosen


class Memory:
    """The peak of the memory of this process and all below it, sampled every second.

    PSS: pages shared between processes are counted once. `peak` in MiB.
    """

    def __init__(self, seconds: float = 1.0):
        self.peak, self._seconds = 0.0, seconds
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._end.set()
        self._thread.join()

    def sample(self) -> float:
        """The memory of the process tree now, MiB."""
        me, total = psutil.Process(), 0
        for process in (me, *me.children(recursive=True)):
            # A process may end while it is looked at.
            with contextlib.suppress(psutil.Error, FileNotFoundError):
                total += process.memory_full_info().pss
        return total / 2**20

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self.sample())
            if self._end.wait(self._seconds):
                return


class Ledger:
    """OUT/stages.json: what was started, what has finished, how long it took."""

    def __init__(self, out: pathlib.Path, resume: bool, about: dict):
        self._path = out / "stages.json"
        before = json.loads(self._path.read_text()) if resume and self._path.is_file() else {}
        self.stages: dict[str, dict] = before.get("stages", {})
        self._about = about

    def finished(self, stage: Stage) -> bool:
        """Whether the stage has finished under this very command."""
        return self.started(stage) and "seconds" in self.stages[stage.name]

    def started(self, stage: Stage) -> bool:
        """Whether the stage was begun under this very command."""
        return self.stages.get(stage.name, {}).get("command") == shlex.join(stage.words)

    def note(self, stage: Stage, **facts) -> None:
        """Writes down a stage: without facts it has begun; `seconds` and `peak_pss_mb` end it."""
        self.stages[stage.name] = {"command": shlex.join(stage.words), **facts}
        seconds = {name: s["seconds"] for name, s in self.stages.items() if "seconds" in s}
        peak = max((s.get("peak_pss_mb", 0) for s in self.stages.values()), default=0)
        text = {**self._about, "seconds": seconds, "peak_pss_mb": peak, "stages": self.stages}
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(text, indent=1) + "\n")
        os.replace(new, self._path)


def run(todo: Sequence[Stage], ledger: Ledger, out: pathlib.Path, devices: int) -> int:
    """Runs the stages; the exit code of the first that fails, else 0."""
    fresh = False  # whether an earlier stage was run: then nothing after it is up to date
    for number, stage in enumerate(todo, 1):
        title = f"[{number}/{len(todo)}] {stage.name}"
        if not fresh and ledger.finished(stage):
            print(f"{title}: done already", flush=True)
            continue
        if fresh or not ledger.started(stage):
            _remove(out / stage.makes)
        fresh = True
        print(f"\n{title}: vla {shlex.join(stage.words)}", flush=True)
        ledger.note(stage)
        begin = time.monotonic()
        with Memory() as memory:
            code = subprocess.run(
                _command(stage), env=environment(stage, devices), cwd=ROOT
            ).returncode
        seconds = round(time.monotonic() - begin, 1)
        if code:
            print(
                f"demo: stage {stage.name} failed with exit code {code} after {seconds} s; "
                "when its cause is gone, go on with --resume",
                file=sys.stderr,
            )
            return code if 0 < code < 256 else 1
        ledger.note(stage, seconds=seconds, peak_pss_mb=round(memory.peak, 1))
        print(f"{title}: {seconds} s, {memory.peak:.0f} MiB", flush=True)
    return 0


def _command(stage: Stage) -> list[str]:
    return [str(pathlib.Path(sys.executable).with_name("vla")), *stage.words]


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _outcome(out: pathlib.Path, ledger: Ledger) -> Iterator[str]:
    total = sum(stage.get("seconds", 0.0) for stage in ledger.stages.values())
    yield f"{total:.0f} s in all"
    for name, stage in ledger.stages.items():
        yield f"  {name:<24} {stage.get('seconds', 0.0):8.1f} s"
    yield f"report: {out / 'report.html'}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo, or with --arms its longer controls."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", type=int, default=0, help="deals the names into A, B and C")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings")
    parser.add_argument("--out", default="runs/demo", help="the folder of everything")
    parser.add_argument("--arms", action="store_true", help="the longer controls")
    parser.add_argument("--resume", action="store_true", help="skip what has finished")
    arguments = parser.parse_args(argv)
    out = pathlib.Path(arguments.out)
    if pathlib.Path.cwd() != ROOT:
        out = out.resolve()
    if set(",=") & set(str(out)):
        parser.error(f"--out {out}: configs take it as an argument; use a name without , and =")
    if out.exists() and any(out.iterdir()) and not (out / "stages.json").is_file():
        parser.error(f"--out {out}: the folder holds something else; give a new one")
    out.mkdir(parents=True, exist_ok=True)
    devices = cores()
    table = ARMS if arguments.arms else DEMO
    todo = stages(table, split=arguments.split, seed=arguments.seed, out=str(out), cores=devices)
    about = dict(split=arguments.split, seed=arguments.seed, cores=devices)
    ledger = Ledger(out, arguments.resume, about)
    code = run(todo, ledger, out, devices)
    if code == 0:
        print("\n" + "\n".join(_outcome(out, ledger)))
    return code


if __name__ == "__main__":
    sys.exit(main())
