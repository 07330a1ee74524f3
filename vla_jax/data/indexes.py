"""The indexes that data are read through, made ahead of a training, for whatever has one."""

from __future__ import annotations

from vla_jax import plugin
from vla_jax.data import captioned
from vla_jax.data.sources import _files, _rlds_folder, image_text, lerobot, llava, rlds

NONE = (
    "nothing needs indexing: meta/ says where everything lies; numbers are read once, at the first "
    "start, under the standardizer that it names"
)


def index(path: str, *, index_dir: str | None = None, workers: int | None = None) -> dict:
    """Makes the indexes at `path` that are absent or stale, and says what they hold.

    Args:
      path: an RLDS folder; tar shards (a tar, a folder of them, a pattern); a LLaVA-style .json or
        .jsonl. Of a LeRobot data set nothing is made, and `note` says so.
      index_dir: where indexes lie, if not beside the data.
      workers: processes; 0 = this one; None = as many as pay.

    Returns {path, kind, index, shards, made, episodes or samples, bytes, faults}: `faults` are the
    messages of what is broken. Raises UserError where nothing that has an index lies at `path`, a
    place cannot be written, or a worker was killed.
    """
    how = dict(index_dir=index_dir, workers=workers)
    if lerobot.is_at(path):
        found = {"kind": "lerobot", "index": None, "shards": 0, "made": 0, "bytes": 0, "faults": []}
        return {"path": path, **found, "note": NONE}
    kind = captioned.kind_at(path)
    if kind is not None:
        found = (image_text if kind == "tar" else llava).index(path, **how)
        return {"path": path, "kind": kind, **found}
    listed = [] if _rlds_folder.versions(path) else _files.names(path)
    files = [name for name in listed if name.endswith((".json", ".jsonl"))]
    if files:
        raise plugin.UserError(
            f"{path}: a folder with {', '.join(files[:3])}; of LLaVA-style JSON name the file, of "
            "other data the folder that `vla data inspect` knows"
        )
    return {"kind": "rlds", **rlds.index(path, **how)}
