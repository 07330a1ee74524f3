"""The table of a LeRobot split's episodes under one standardizer, made once, kept and mapped.

    parquet files ─▶ standardizer ─▶ Episodes ─▶ <place>/tables/<key>.safetensors

The key is a hash of all that the table depends on, as in _rlds_table.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from vla_jax import plugin
from vla_jax.data import episodes as episodes_lib
from vla_jax.data import passing
from vla_jax.data.sources import (
    _files,
    _index_build,
    _lerobot_columns,
    _rlds_table,
)
from vla_jax.data.sources._lerobot_folder import Feature, Folder
from vla_jax.types import SourceContext

METADATA = "episode_metadata/"
CAMERA = "camera/"  # view -> float32 [3, 4], of our own writer


def open_table(
    folder: Folder, split: str, spec: Mapping, bad_samples: str, index_dir: str | None
) -> tuple[episodes_lib.Episodes, dict[str, str]]:
    """(the table, view -> the feature with its pictures).

    Args:
      folder: the data set.
      split: a split of it.
      spec: of the standardizer.
      bad_samples: "error", or "skip" to leave broken episodes out (counted in the table).
      index_dir: see sources/lerobot.py:make.

    Raises UserError as that does.
    """
    if bad_samples not in _rlds_table.BAD_SAMPLES:
        where = f"{folder.path}: bad_samples"
        raise plugin.UserError(plugin.unknown(where, bad_samples, _rlds_table.BAD_SAMPLES))
    where = f"{folder.path} {split}"
    standardizer = plugin.build("data.standardizers", spec, SourceContext(name=where, stream=""))
    views = _views(folder, where, standardizer)
    own = sorted(pathlib.Path(__file__).parent.glob("_lerobot_*.py"))
    of = {"path": folder.path, "split": split, "bad_samples": bad_samples, "spec": spec}
    of |= {"row": _rlds_table.described(standardizer), "code": _rlds_table.code(standardizer)}
    stamps = _stamps(folder, split, views, bad_samples)
    of |= {"own": [file.read_text() for file in own]}
    of["stamps"] = [(file, s.size, s.version) for file, s in sorted(stamps.items())]
    told = json.dumps(of, sort_keys=True, default=repr).encode()
    key = hashlib.blake2b(told, digest_size=16).hexdigest()
    path = os.path.join(_place(folder, index_dir), f"{key}.safetensors")

    def make() -> tuple[dict, dict]:
        made = _standardized(folder, split, where, standardizer, stamps, bad_samples)
        return episodes_lib.pack(made)

    return episodes_lib.unpack(where, *_rlds_table.kept(path, make)), views


def _place(folder: Folder, index_dir: str | None) -> str:
    """Where tables lie: beside the data or in `index_dir`; else, as they are mapped, in a cache."""
    place = _files.join(_index_build.place(folder, index_dir), "tables")
    if not _files.is_url(place) and _files.writable(place):
        return place
    return _rlds_table.cached(place)


def _stamps(
    folder: Folder, split: str, views: Mapping[str, str], bad_samples: str
) -> dict[str, _files.Stamp]:
    """File -> what changes when it does: those of meta/, of numbers and of pictures."""
    chosen, found = folder.split(split).tolist(), {}
    files = {}  # and whose they are
    for e in chosen:
        files.setdefault(folder.data_file(e), f"episode {e}")
    for name in views.values():
        for e in chosen if folder.features[name].kind == "video" else ():
            files.setdefault(folder.video_file(name, e), f"episode {e}, {name}")
    meta = _files.join(folder.path, "meta")
    listed = _files.join(meta, "episodes")
    told = {meta, *(_files.join(listed, chunk) for chunk in _files.names(listed))}
    for parent in sorted({_files.parent(file) for file in files} | told):
        found.update(_files.stamps(parent))
    missing = sorted(file for file in files if file not in found)
    if missing and bad_samples == "error":
        more = f" and {len(missing) - 1} more that are missing" if missing[1:] else ""
        raise _missing(missing[0], files[missing[0]], more)
    return found


def _missing(file: str, of: str, more: str = "") -> plugin.UserError:
    return plugin.UserError(
        f"{file}: no such file ({of}); meta/ names it{more}; copy the data set again"
    )


def _views(folder: Folder, where: str, standardizer) -> dict[str, str]:
    views = standardizer.views(_named(folder))
    views = {view: name.removeprefix("steps/") for view, name in views.items()}
    for view, name in views.items():
        feature = folder.features[name]
        if feature.kind not in ("image", "video"):
            raise plugin.UserError(
                f"{where}: {name} (view {view}) is {feature}, expected a feature of dtype image "
                "or video that is no depth map"
            )
    return views


def _standardized(
    folder: Folder,
    split: str,
    where: str,
    standardizer,
    stamps: Mapping[str, _files.Stamp],
    bad_samples: str,
) -> episodes_lib.Episodes:
    views = _views(folder, where, standardizer)
    columns = standardizer.columns(_named(folder))
    names = {c.removeprefix("steps/") for c in columns if c.startswith("steps/")}
    timed = {_lerobot_columns.TIME} if views else set()
    kept = [name for name in views.values() if folder.features[name].kind == "image"]
    chosen, rows, skipped, places = folder.split(split).tolist(), [], [], {}
    # One file after the other; or, if broken ones are left out, one episode after the other.
    parts = [chosen] if bad_samples == "error" else [[number] for number in chosen]
    for part in parts:
        try:
            for number, file, *found in _lerobot_columns.episodes(
                folder, part, names | timed, kept
            ):
                row = _row(folder, standardizer, names, views, stamps, number, file, *found)
                episodes_lib.check(file, row[0], rows[0][0] if rows else None)
                episodes_lib.distinct(f"{file}: episode {number}", row[0].id, places)
                rows.append(row)
        except plugin.UserError as error:
            if bad_samples == "error":
                raise
            skipped.append(passing.fault(error))
    if not rows:
        first = f", the first: {skipped[0]}" if skipped else ""
        raise plugin.UserError(f"{where}: no episode is whole ({len(skipped)} are not{first})")
    table = episodes_lib.collect(where, folder.name, rows, tuple(views))
    return dataclasses.replace(table, skipped=tuple(skipped))


def _row(
    folder: Folder,
    standardizer,
    names: set[str],
    views: Mapping[str, str],
    stamps: Mapping[str, _files.Stamp],
    number: int,
    file: str,
    first: int,
    values: Mapping,
) -> tuple:
    """What episodes.collect takes: an episode, and where its pictures lie."""
    here = f"{file}: episode {number}"
    given = {f"steps/{name}": values[name] for name in names} | metadata(folder, number)
    episode = standardizer.episode(given, int(folder.lengths[number]), here)
    if here.endswith(episode.id):  # the row names none
        episode = dataclasses.replace(episode, id=f"episode_{number:06d}")
    said = {name.removeprefix(METADATA): value for name, value in metadata(folder, number).items()}
    cameras = {
        name.removeprefix(CAMERA): np.asarray(value, np.float32).reshape(3, 4)
        for name, value in said.items()
        if name.startswith(CAMERA)
    }
    said = {name: value for name, value in said.items() if not name.startswith(CAMERA)}
    facts = {name: values[number] for name, values in folder.facts.items()}
    episode = dataclasses.replace(
        episode,
        cameras=episode.cameras or cameras,
        metadata={episodes_lib.RATE: folder.fps, **facts, **said, **episode.metadata},
    )
    frames = {}
    for view, name in views.items():
        if folder.features[name].kind == "video":
            seconds = folder.times(name, number, values[_lerobot_columns.TIME])
            offsets = np.rint(seconds[episode.steps] * 1e9).astype(np.int64)
            held = folder.video_file(name, number)
            if held not in stamps:
                raise _missing(held, f"episode {number}, {name}")
        else:
            offsets, held = first + np.asarray(episode.steps, np.int64), file
        size = stamps[held].size
        mask = np.broadcast_to(episode.image_masks.get(view, True), len(offsets))
        frames[view] = (offsets, np.where(mask, size, 0).astype(np.int64))
    return episode, frames, 0, number, first


def _named(folder: Folder) -> dict[str, Feature]:
    """What a standardizer may name, by its full name."""
    found = {f"steps/{n}": f for n, f in folder.features.items() if f.kind != "language"}
    for name, value in metadata(folder, 0).items() if len(folder.lengths) else ():
        array = np.asarray(value)
        kind = "text" if isinstance(value, str) else "tensor"
        found[name] = Feature(kind, array.shape, array.dtype.name)
    return found


def metadata(folder: Folder, number: int) -> dict:
    """`episode_metadata/…` of an episode: its number, and what our own writer added."""
    found = {f"{METADATA}episode_index": np.int64(number)}
    if folder.metadata is not None:
        for name in folder.metadata.column_names:
            value = folder.metadata[name][number].as_py()
            found[METADATA + name] = value if isinstance(value, str) else np.asarray(value)
    return found
