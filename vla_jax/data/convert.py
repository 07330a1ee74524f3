"""One recorded data set written as another: array_record RLDS, or LeRobot v3.0.

    .OUT.partial-<key>/parts/000003.*        written by a worker, whole or not at all
                      /parts/000003.json     its word that it is done
                      /built ─rename─▶ OUT   when all are

The key is a hash of what is converted and how: a rerun of a conversion that was killed goes on
where it was, one of other data or settings begins anew. At OUT there is nothing until all is there.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Sequence

import filelock
import rich.console
import rich.progress

from vla_jax import plugin, storage
from vla_jax.data import images, recordings
from vla_jax.data import workers as workers_lib
from vla_jax.data.sources import _files
from vla_jax.data.writers import _lerobot_shards, _rlds_shards, _shards, _spool
from vla_jax.data.writers._shards import Job, Part

TARGETS = {"rlds": _rlds_shards, "lerobot": _lerobot_shards}
SHARD = 50  # episodes of a part at most
TOLD = "told.json"  # in the hidden folder: what is said of a data set that is whole
PARTS = 16  # into which fewer are cut, for the workers
BAD_EPISODES = ("error", "skip")


class WorkerKilled(plugin.UserError):
    """A worker is gone; what the others have done stays for a rerun."""


def convert(
    path: str | os.PathLike,
    out: str | os.PathLike,
    *,
    to: str,
    split: str | None = None,
    name: str | None = None,
    workers: int | None = None,
    progress: bool = True,
    **settings,
) -> dict:
    """Writes the episodes at `path` to the folder `out`; what was written, as JSON.

    Args:
      path: the data set, of any format that `recordings` knows.
      out: where the new one will be; there is nothing until it is whole.
      to: "rlds" (array_record) or "lerobot" (v3.0).
      split: one split or slice of the source; None: all that it has; `train` alone where they share
        episodes, as robomimic's filter keys do (the answer says what was left: `other_splits`).
      name: of the new data set; None: the folder's.
      workers: processes; 0 = this one; None = as many as there are cores, at most 8.
      progress: whether to draw a bar on stderr.
      settings: `standardizer`: "oxe:bridge", to have the data in our nouns instead of as recorded;
        `without`: fields to leave out; `resize`: (height, width) of all pictures, by `method` of
        images.resize; `pictures`: "jpeg" or "png" in RLDS (None: the bytes of RLDS as recorded
        and not resized, else jpeg), "h264", "av1" or "png" in LeRobot (None: h264); `task`: the
        text field that is LeRobot's task; `control_hz`: recorded steps per second, where nothing
        in the source says;
        `bad_episodes`: "error", or "skip" to leave out, and count, those that cannot be read.

    Raises:
      UserError: `out` is not empty, or is being written; settings that do not fit; episodes that
        cannot be read or do not have one form. Nothing is left behind.
      WorkerKilled: a worker was killed; a rerun goes on.
    """
    out = storage.local("--out", out)
    job, splits, others = _job(str(path), out, to, split, name, settings)
    raws = {part: _shards.source(job, part) for part in splits}
    raws = {part: raw for part, raw in raws.items() if len(raw)}
    if not raws:
        raise plugin.UserError(f"{path}: no episodes in {', '.join(splits) or 'any split'}")
    parts = _parts({part: len(raw) for part, raw in raws.items()})
    target, begun = TARGETS[to], time.monotonic()
    with Making(out, _key(job, raws)) as making:
        if making.told is None:
            plan = _planned(making, target, job, next(iter(raws.values())))
            made = list(_run(job, plan, parts, making.parts, workers, progress))
            if not any(told["episodes"] for told in made):
                said = next((told["skipped"][0] for told in made if told["skipped"]), "")
                raise plugin.UserError(f"{path}: no episode is whole, the first: {said}")
            shutil.rmtree(making.built, ignore_errors=True)
            target.finish(job, plan, parts, made, making.parts, making.built)
            # A file that cannot be opened is said of every split: once is enough.
            left_out = dict.fromkeys(
                t for raw in raws.values() for t in getattr(raw, "skipped", ())
            )
            making.tell(_told(job, making, parts, made, left_out) | {"other_splits": others})
            making.publish()
    return making.told | {"seconds": round(time.monotonic() - begun, 1)}


def write_part(job: Job, plan: dict, part: Part, folder: str) -> dict:
    """Writes one part, if that has not been done, and returns what it holds.

    Any process may, on any machine that sees `folder`; parts are independent of one another.
    """
    done = pathlib.Path(folder) / f"{part.number:06d}.json"
    if not done.is_file():
        made = TARGETS[job.to].write(job, plan, part, pathlib.Path(folder))
        _files.write(str(done), json.dumps(made).encode())
    return json.loads(done.read_bytes())


class Making(_spool.Folder):
    """The hidden folder of a conversion, which stays when its program is killed or interrupted.

    Args:
      out: where the data set will be.
      key: of what is converted; a folder of another key, that nobody writes, is removed.

    `told` is what a program of this key has said of the data set that it moved to `out`, if it was
    killed before it had removed this folder. Raises UserError when `out` is not empty otherwise, or
    another program is converting to it.
    """

    def __init__(self, out: str | os.PathLike, key: str):
        whole = _spool.kept(out, key) / TOLD
        done = whole.is_file() and not (whole.parent / "built").exists()
        super().__init__(out, replaces=done, key=key)
        self.told = json.loads(whole.read_bytes()) if done and self.old else None
        self.parts = self.folder / "parts"
        self._lock = filelock.FileLock(self.folder / "lock")
        self._take(self._lock)
        try:
            for other in self.out.parent.glob(f".{self.out.name}.partial-{_spool.KEPT}*"):
                if other != self.folder and other.is_dir():
                    lock = filelock.FileLock(other / "lock")
                    self._take(lock)
                    shutil.rmtree(other, ignore_errors=True)
                    lock.release()
        except plugin.UserError:
            if not self.parts.exists() and self.told is None:  # nothing to go on from
                shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.release()
            raise
        self.parts.mkdir(exist_ok=True)

    def tell(self, told: dict) -> None:
        """Lays down what is to be said of `built`, for a rerun if this program is killed."""
        self.told = told
        _files.write(str(self.folder / TOLD), json.dumps(told).encode())

    def _take(self, lock: filelock.FileLock) -> None:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise plugin.UserError(
                f"{self.out}: another program is converting to this folder; wait for it, or give "
                "another --out"
            ) from None

    def __exit__(self, kind, error, trace) -> None:
        """Removes the folder, but for what a rerun can go on from."""
        wrong = isinstance(error, plugin.UserError) and not isinstance(error, WorkerKilled)
        if error is None or wrong:
            for entry in self.folder.iterdir():  # TOLD last: until then a rerun sweeps up
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
            super().__exit__(kind, error, trace)
        self._lock.release()


def _job(path: str, out, to: str, split, name, settings: dict) -> tuple[Job, list[str], list[str]]:
    """(the job, the splits that are converted, those that are not as they share episodes)."""
    if to not in TARGETS:
        raise plugin.UserError(plugin.unknown("--to", to, TARGETS))
    known = {field.name for field in dataclasses.fields(Job)} - {"path", "to", "name"}
    for setting in settings:
        if setting not in known:
            raise plugin.UserError(plugin.unknown("convert", setting, known))
    name = _spool.plain_name(name or pathlib.Path(out).absolute().name)
    without = tuple(settings.pop("without", ()) or ())
    job = Job(path=path, to=to, name=name, without=without, **settings)
    for flag, value, allowed in (
        ("--pictures", job.pictures, (None, *TARGETS[to].PICTURES)),
        ("--method", job.method, images.METHODS),
        ("--bad-episodes", job.bad_episodes, BAD_EPISODES),
    ):
        if value not in allowed:
            raise plugin.UserError(plugin.unknown(f"{flag} (to {to})", value, allowed))
    if job.resize is not None and (len(job.resize) != 2 or min(job.resize) < 1):
        raise plugin.UserError(f"--resize: got {job.resize}, expected HEIGHTxWIDTH, e.g. 256x256")
    if job.control_hz is not None and not job.control_hz > 0:
        raise plugin.UserError(f"--hz: got {job.control_hz}, expected a number above 0")
    first = _shards.source(job, split)
    if getattr(first, "beside", None):
        reader = "native" if first.names_standardizer else "TYPE:ROW"
        raise plugin.UserError(
            f"{path}: as recorded, what stands beside the episodes ({', '.join(first.beside)}) "
            f"would be lost; give --standardizer {reader}"
        )
    splits = [split] if split else _apart(job, [n for n, c in first.splits.items() if c])
    names = [_rlds_shards.recorded_name(part) for part in splits]
    if len(set(names)) < len(names):
        raise plugin.UserError(f"{path}: splits {splits} would share a name; give one by --split")
    others = [] if split else [n for n, c in first.splits.items() if c and n not in splits]
    return job, splits, others


def _apart(job: Job, splits: list[str]) -> list[str]:
    """All of them, or `train` where two hold an episode; UserError where there is none."""
    owners: dict[str, str] = {}
    for part in splits if len(splits) > 1 else ():
        for episode in recordings.raw(job.path, part, job.bad_episodes).ids():
            owner = owners.setdefault(episode, part)
            if owner != part and "train" in splits:
                return ["train"]
            if owner != part:
                raise plugin.UserError(
                    f"{job.path}: splits {owner!r} and {part!r} both hold {episode}, which would "
                    f"be written twice; name one of {list(splits)} by --split"
                )
    return splits


def _told(job: Job, making: Making, parts: Sequence[Part], made: Sequence[dict], left_out) -> dict:
    """What was written, as JSON."""
    splits: dict[str, int] = {}
    for part, found in zip(parts, made, strict=True):
        name = _rlds_shards.recorded_name(part.split)
        splits[name] = splits.get(name, 0) + found["episodes"]
    return {
        "path": job.path,
        "out": str(making.out),
        "to": job.to,
        "splits": splits,
        "episodes": sum(splits.values()),
        "steps": sum(found["steps"] for found in made),
        "bytes": sum(file.stat().st_size for file in making.built.rglob("*") if file.is_file()),
        "skipped": [*left_out, *(message for found in made for message in found["skipped"])],
    }


def _parts(counts: dict[str, int]) -> list[Part]:
    """The same for any number of workers: a rerun may have another."""
    parts = []
    for split, count in counts.items():
        size = max(1, min(SHARD, -(-count // PARTS)))
        for begin in range(0, count, size):
            parts.append(Part(len(parts), split, begin, min(begin + size, count)))
    return parts


def _planned(making: Making, target, job: Job, raw) -> dict:
    """What all parts have in common; read once, so that parts of two runs agree."""
    file = making.folder / "plan.json"
    if not file.is_file():
        _files.write(str(file), json.dumps(target.plan(job, raw)).encode())
    return json.loads(file.read_bytes())


def _key(job: Job, raws: dict) -> str:
    """A hash of the data, of the settings, of the standardizer, and of the code of data/."""
    code = [file.read_text() for file in sorted(pathlib.Path(__file__).parent.rglob("*.py"))]
    told = {
        "job": dataclasses.asdict(job),
        "ids": {split: list(raw.ids()) for split, raw in raws.items()},
        "files": sorted(_stamps(job.path)),
        "standardizer": getattr(next(iter(raws.values())), "made_by", None),
        "code": code,
    }
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _stamps(path: str) -> Iterator[tuple]:
    """(path, size, version) of each file of the source but its indexes."""
    if not _files.is_dir(path):
        found = _files.stat(path)
        yield path, found.size, found.version
        return
    for name in _files.names(path):
        if name != "vla_index":
            yield from _stamps(_files.join(path, name))


def _run(
    job: Job, plan: dict, parts: Sequence[Part], folder: pathlib.Path, workers, progress: bool
) -> list[dict]:
    """What `write_part` says of each part, in order."""
    workers = min(os.cpu_count() or 1, 8) if workers is None else workers
    workers = 0 if "://" in job.path and job.path.startswith("memory") else workers
    made: dict[int, dict] = {}
    with _bar(progress) as bar, _pool(min(workers, len(parts))) as pool:
        shown = bar.add_task(f"to {job.to}", total=sum(p.last - p.first for p in parts))

        def told(part: Part, found: dict) -> None:
            made[part.number] = found
            bar.advance(shown, part.last - part.first)

        if pool is None:
            for part in parts:
                told(part, write_part(job, plan, part, str(folder)))
        else:
            futures = {pool.submit(write_part, job, plan, p, str(folder)): p for p in parts}
            try:
                for future in concurrent.futures.as_completed(futures):
                    told(futures[future], future.result())
            except concurrent.futures.process.BrokenProcessPool as error:
                raise WorkerKilled(
                    f"{job.path}: a worker was killed (short of memory? fewer --workers need "
                    "less); the same command goes on from the parts that are done"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)
    return [made[part.number] for part in parts]


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[concurrent.futures.ProcessPoolExecutor | None]:
    if workers < 2:
        yield None
        return
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, spawn, workers_lib.end_with_parent
    ) as pool:
        yield pool


def _bar(progress: bool) -> rich.progress.Progress:
    columns = (
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    console = rich.console.Console(stderr=True)
    return rich.progress.Progress(*columns, console=console, disable=not progress)
