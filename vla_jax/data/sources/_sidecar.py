"""What a scan of one file found, kept beside it or in a folder: arrays under a stamp.

    00012.tar                      the data
    00012.tar.index.npz            its index, found beside it, or
    DIR/00012.tar-1f3c….index.npz  in `index_dir` (or the environment's), where it is written, too

An index is derived: one that is absent, damaged or of another version of the file is made anew. It
appears whole or not at all (`_files.write`), and zip's checksums tell a damaged one. No plug-in.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import hashlib
import io
import json
import multiprocessing
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.data import workers as workers_lib
from vla_jax.data.sources import _files

ABOUT = "about"
SMALL = 2**28  # bytes of all files up to which starting workers would cost more than they save
Scan = Callable[[_files.File], Mapping[str, np.ndarray]]


def indexed(
    path: str, kind: str, scan: Scan, index_dir: str | None = None
) -> tuple[_files.File, dict[str, np.ndarray]]:
    """(the file, what `scan` finds in it), from its index where there is a good one.

    `kind` names what is scanned for, with a version. With `index_dir`, or where the environment
    names one, a new index is written there.
    """
    file = _files.File(path)
    index_dir = index_dir or os.environ.get(_files.INDEX_DIR)
    _, found = _kept(file, kind, index_dir)
    if found is None:
        found = dict(scan(file))
        if index_dir is not None:
            _keep(file, kind, found, index_dir)
    return file, found


def build(
    paths: Sequence[str],
    kind: str,
    scan: Scan,
    index_dir: str | None = None,
    workers: int | None = None,
) -> dict:
    """Makes the indexes that are absent or stale, and says what they hold.

    Args:
      paths: the files.
      kind, scan: as for `indexed`; `scan` is a module's function with an array `share` [S].
      index_dir: where indexes are written; None: the environment's folder, or beside each file.
      workers: processes; 0 = this one; None = as many as pay.

    Returns {index, shards, made, samples, bytes, faults}: `index` is the folder, `faults` say which
    files are broken. Raises UserError where a folder cannot be written, or a worker was killed.
    """
    index_dir = index_dir or os.environ.get(_files.INDEX_DIR)
    if workers is None:
        size = sum(_files.stat(path).size for path in paths)
        workers = min(os.cpu_count() or 1, 8, len(paths)) if size > SMALL else 0
    if workers < 2 or any(path.startswith("memory://") for path in paths):
        done = [_one(path, kind, scan, index_dir) for path in paths]
    else:
        done = list(_in_workers(paths, kind, scan, index_dir, workers))
    places = [place for place, _, _, fault in done if not fault]
    return {
        "index": index_dir or _files.parent(_files.normal(paths[0])),
        "shards": len(paths),
        "made": sum(made for _, made, _, _ in done),
        "samples": sum(samples for _, _, samples, _ in done),
        "bytes": sum(_files.stat(place).size for place in places),
        "faults": [fault for _, _, _, fault in done if fault],
    }


def _one(path: str, kind: str, scan: Scan, index_dir: str | None) -> tuple[str, bool, int, str]:
    """(where the index lies, whether it was made, its samples, what is wrong with the file)."""
    file = _files.File(path)
    place, found = _kept(file, kind, index_dir)
    if found is not None:
        return place, False, len(found["share"]), ""
    folder = index_dir or _files.parent(file.path)
    if not _files.writable(folder):
        raise plugin.UserError(
            f"{file.path}: needs an index, and {folder} cannot be written; name a folder that can: "
            f"--index-dir DIR, or the environment {_files.INDEX_DIR}"
        )
    try:
        found = dict(scan(file))
    except plugin.UserError as error:
        return "", False, 0, str(error)
    return _keep(file, kind, found, index_dir), True, len(found["share"]), ""


def _in_workers(paths: Sequence[str], kind, scan, index_dir, workers: int) -> Iterator[tuple]:
    """`_one` of each path, in order; a worker ends when its parent is gone."""
    context = multiprocessing.get_context("spawn")  # not forks: a caller may have threads
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, workers_lib.end_with_parent)
    try:
        tasks = [pool.submit(_one, path, kind, scan, index_dir) for path in paths]
        for task in tasks:
            yield task.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise plugin.UserError(
            f"{paths[0]}: an indexing worker was killed (short of memory?); start again, files "
            "that are done are kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _places(file: _files.File, index_dir: str | None) -> list[str]:
    """Where an index may lie; the first is where it is written."""
    beside = f"{file.path}.index.npz"
    if index_dir is None:
        return [beside]
    digest = hashlib.blake2b(file.path.encode(), digest_size=6).hexdigest()
    name = f"{_files.name(file.path)}-{digest}.index.npz"
    return [_files.join(index_dir, name), beside]


def _kept(file: _files.File, kind: str, index_dir: str | None) -> tuple[str, dict | None]:
    """(where a good index lies, what it holds), or ("", None)."""
    for place in _places(file, index_dir):
        found = _load(place, _about(file, kind))
        if found is not None:
            return place, found
    return "", None


def _keep(file: _files.File, kind: str, found: Mapping, index_dir: str | None) -> str:
    """Writes an index and returns where."""
    (place, *_), stream = _places(file, index_dir), io.BytesIO()
    about = np.frombuffer(_about(file, kind).encode(), np.uint8)
    np.savez(stream, **found, **{ABOUT: about})
    _files.write(place, stream.getvalue())
    return place


def _about(file: _files.File, kind: str) -> str:
    return json.dumps([kind, file.stamp.size, file.stamp.version])


def _load(place: str, about: str) -> dict[str, np.ndarray] | None:
    if not _files.is_file(place):
        return None
    try:
        with np.load(io.BytesIO(_files.read(place)), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        return None
    return found if found.pop(ABOUT, np.zeros(0, np.uint8)).tobytes().decode() == about else None
