"""Where the indexes of an RLDS folder lie, which are stale, and the making of those that are.

    <data>/vla_index/v1/<shard>.arrow                   beside the data, or in another folder
    <index_dir>/<name>-<version>-<hash of its path>/v1/…  index_dir=, --index-dir or the environment

Several processes may make the same indexes: each file appears whole or not at all. Workers are
plain programs, not forks (a training has threads), and a shard that one has finished stays finished
when it, or whoever started it, is killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from vla_jax import plugin
from vla_jax.data.sources import _files, _index, _rlds_folder
from vla_jax.data.sources._rlds_folder import Folder

ENVIRONMENT = _files.INDEX_DIR
SMALL = 2**28  # bytes up to which starting workers would cost more than they save
NOTE = 30.0  # s between lines about progress where there is no terminal


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard, what it is known by, and the path of its index."""

    path: str
    stamp: _files.Stamp
    count: int
    target: str


def place(folder: Folder, index_dir: str | None = None) -> str:
    """The folder of the indexes; see the module's drawing."""
    index_dir = index_dir or os.environ.get(ENVIRONMENT)
    if index_dir:
        where = folder.path if _files.is_url(folder.path) else os.path.realpath(folder.path)
        mark = hashlib.blake2b(where.encode(), digest_size=6).hexdigest()
        base = _files.join(index_dir, f"{folder.name}-{folder.version}-{mark}")
    else:
        base = _files.join(folder.path, "vla_index")
    return _files.join(base, f"v{_index.FORMAT}")


def shards(folder: Folder, counts: dict[str, int], index_dir: str | None = None) -> list[Shard]:
    """Each shard of `counts` (path -> episodes) with its stamp; UserError for a missing one."""
    stamps, base = {}, place(folder, index_dir)
    for parent in {_files.parent(path) for path in counts}:
        stamps.update(_files.stamps(parent))
    missing = [path for path in counts if path not in stamps]
    if missing:
        raise plugin.UserError(
            f"{missing[0]}: no such shard; dataset_info.json lists it"
            + (f" and {len(missing) - 1} more that are missing. " if missing[1:] else ". ")
            + "Copy or download the data set again."
        )
    return [
        Shard(path, stamps[path], count, _files.join(base, _files.name(path) + ".arrow"))
        for path, count in counts.items()
    ]


def stale(folder: Folder, wanted: Sequence[Shard]) -> list[Shard]:
    """Those whose index is absent, of another version of the shard or of another format."""
    todo = []
    for shard in wanted:
        made = _index.header_of(shard.target)
        fresh = _index.Header.of(folder, shard.path, shard.stamp, shard.count)
        if made is None or dataclasses.replace(made, plain=False) != fresh:
            todo.append(shard)
        elif made.plain and not _files.is_file(_index.plain_copy(shard.target)):
            todo.append(shard)
    return todo


def ensure(folder: Folder, wanted: Sequence[Shard], workers: int | None = None) -> int:
    """Makes the indexes that are stale and returns how many that were.

    Args:
      folder: the data set.
      wanted: its shards.
      workers: processes; 0 = this one; None = as many as pay.

    Raises UserError where the place cannot be written, or a worker was killed.
    """
    todo = stale(folder, wanted)
    if not todo:
        return 0
    # Hosts that begin together share the work: each in an order of its own, see `_one`.
    random.Random(f"{socket.gethostname()} {os.getpid()}").shuffle(todo)
    base = _files.parent(todo[0].target)
    if not _files.writable(base):
        raise plugin.UserError(
            f"{folder.path}: needs an index ({len(todo)} of {len(wanted)} shards have none), and "
            f"{base} cannot be written; name a folder that can: index_dir= of the source, "
            f"`vla data index {folder.path} --index-dir DIR`, or the environment {ENVIRONMENT}"
        )
    size = sum(shard.stamp.size for shard in todo)
    if workers is None:
        workers = min(os.cpu_count() or 1, 8) if size > SMALL else 0
    if folder.path.startswith("memory://"):  # another process has another memory
        workers = 0
    with progress(f"indexing {folder.name}", size, len(todo)) as done:
        if workers > 1 and len(todo) > 1:
            _in_workers(folder, todo, min(workers, len(todo)), done)
        else:
            for shard in todo:
                _one(folder, shard, done)
    return len(todo)


def load(folder: Folder, shard: Shard) -> _index.Index:
    """The index of a shard; a broken one is made again first."""
    try:
        return _index.load(shard.target)
    except plugin.UserError:
        _index.build(folder, shard.path, shard.stamp, shard.count, shard.target)
        return _index.load(shard.target)


def _one(folder: Folder, shard: Shard, done) -> None:
    if not stale(folder, [shard]):  # another process has made it meanwhile
        done(shard.stamp.size)
        return
    seen = 0

    def step(offset: int) -> None:
        nonlocal seen
        if offset - seen > 2**24:
            done(offset - seen)
            seen = offset

    _index.build(folder, shard.path, shard.stamp, shard.count, shard.target, step)
    done(shard.stamp.size - seen)


def _in_workers(folder: Folder, todo: Sequence[Shard], workers: int, done) -> None:
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "vla_jax.data.sources._index_build"]
    processes = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
        for _ in range(workers)
    ]
    said: list[str] = [""] * workers

    def follow(k: int) -> None:
        task = {"path": folder.path, "shards": [_plain(s) for s in todo[k::workers]]}
        with contextlib.suppress(BrokenPipeError):  # it was killed: its exit code says so
            processes[k].stdin.write(json.dumps(task))
            processes[k].stdin.close()
        for line in processes[k].stdout:
            done(int(line))
        said[k] = processes[k].stderr.read().strip()
        processes[k].wait()

    threads = [threading.Thread(target=follow, args=(k,), daemon=True) for k in range(workers)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
    for process, words in zip(processes, said):
        if process.returncode:
            raise plugin.UserError(
                f"{folder.path}: an indexing worker ended with {process.returncode}"
                f"{' (killed: short of memory?)' if process.returncode < 0 else ''}: "
                f"{words.splitlines()[-1] if words else 'no message'}; start again, shards "
                "that are done are kept"
            )


def _plain(shard: Shard) -> dict:
    return dataclasses.asdict(shard)


def main() -> None:
    """What a worker runs: shards as JSON on stdin, the bytes that are done on stdout."""
    task = json.loads(sys.stdin.read())
    folder = _rlds_folder.open_folder(task["path"])
    for entry in task["shards"]:
        shard = Shard(**{**entry, "stamp": _files.Stamp(**entry["stamp"])})
        _one(folder, shard, lambda size: print(size, flush=True))


@contextlib.contextmanager
def progress(words: str, size: int, count: int) -> Iterator:
    """A function that is told of bytes: a bar on a terminal, else a line now and then on stderr."""
    lock = threading.Lock()
    if sys.stderr.isatty():
        import rich.console
        import rich.progress as rich_progress

        columns = (
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.DownloadColumn(),
            rich_progress.TransferSpeedColumn(),
            rich_progress.TimeRemainingColumn(),
        )
        console = rich.console.Console(stderr=True)
        with rich_progress.Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(f"{words} ({count} shards)", total=size)
            yield lambda more: bar.advance(task, more)
        return
    total, told = 0, time.monotonic()

    def done(more: int) -> None:
        nonlocal total, told
        with lock:
            total += more
            if time.monotonic() - told > NOTE:
                told = time.monotonic()
                print(f"{words}: {total / 2**20:.0f} of {size / 2**20:.0f} MiB", file=sys.stderr)

    yield done


if __name__ == "__main__":
    try:
        main()
    except plugin.UserError as error:
        sys.exit(str(error))
