"""What a scan of one file found, kept beside it or in a folder: arrays under a stamp.

    00012.tar                      the data
    00012.tar.index.npz            its index, found beside it, or
    DIR/00012.tar-1f3c….index.npz  in `index_dir`, where it is written, too

An index is derived: one that is absent, damaged or of another version of the file is made anew. It
appears whole or not at all (`_files.write`), and zip's checksums tell a damaged one. No plug-in.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

from vla_jax.data.sources import _files

ABOUT = "about"


def indexed(
    path: str,
    kind: str,
    scan: Callable[[_files.File], Mapping[str, np.ndarray]],
    index_dir: str | None = None,
) -> tuple[_files.File, dict[str, np.ndarray]]:
    """(the file, what `scan` finds in it), from its index where there is a good one.

    `kind` names what is scanned for, with a version. With `index_dir` a new index is written there.
    """
    file = _files.File(path)
    beside = f"{file.path}.index.npz"
    about = json.dumps([kind, file.stamp.size, file.stamp.version])
    places = [beside]
    if index_dir is not None:
        digest = hashlib.blake2b(file.path.encode(), digest_size=6).hexdigest()
        places.insert(0, _files.join(index_dir, f"{_files.name(path)}-{digest}.index.npz"))
    for place in places:
        found = _load(place, about)
        if found is not None:
            return file, found
    found = dict(scan(file))
    if index_dir is not None:
        stream = io.BytesIO()
        np.savez(stream, **found, **{ABOUT: np.frombuffer(about.encode(), np.uint8)})
        _files.write(places[0], stream.getvalue())
    return file, found


def _load(place: str, about: str) -> dict[str, np.ndarray] | None:
    if not _files.is_file(place):
        return None
    try:
        with np.load(io.BytesIO(_files.read(place)), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        return None
    return found if found.pop(ABOUT, np.zeros(0, np.uint8)).tobytes().decode() == about else None
