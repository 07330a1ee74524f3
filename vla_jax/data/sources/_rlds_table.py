"""The table of a split's episodes under one standardizer, made from the indexes and kept.

    shards ─▶ indexes (_index) ─▶ standardizer ─▶ Episodes ─▶ <index>/tables/<key>.safetensors

The key is a hash of all that the table depends on: shards and their stamps, the split, the
standardizer's row and the code that reads it. It is mapped, so that workers share its pages.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.data import episodes as episodes_lib
from vla_jax.data import mapped, passing
from vla_jax.data.sources import _files, _index, _index_build, _rlds_folder, _rlds_record
from vla_jax.data.sources._rlds_folder import Folder, Piece
from vla_jax.types import SourceContext

# What a table's numbers come from, beside the standardizer's own file.
CODE = ("data.episodes", "data.mapped", "data.passing", "data.standardizers",
        "data.sources._rlds_table", "data.sources._rlds_record", "data.sources._rlds_folder",
        "data.sources._example", "data.sources._index", "codecs")  # fmt: skip
BAD_SAMPLES = ("error", "skip")
METADATA = "episode_metadata/"


def open_table(
    folder: Folder,
    split: str,
    spec: Mapping,
    bad_samples: str = "error",
    index_dir: str | None = None,
    workers: int | None = None,
) -> tuple[episodes_lib.Episodes, list[_index_build.Shard], list[str]]:
    """(the table, the shards its episodes lie in, the file that each shard's images are read from).

    Args:
      folder: the data set.
      split: a split or slice of it.
      spec: of the standardizer.
      bad_samples: "error", or "skip" to leave broken episodes out (counted in the table).
      index_dir: see _index_build.place.
      workers: for indexes that are to be made.

    Raises UserError as sources/rlds.py:make says.
    """
    if bad_samples not in BAD_SAMPLES:
        raise plugin.UserError(
            plugin.unknown(f"{folder.path}: bad_samples", bad_samples, BAD_SAMPLES)
        )
    where = f"{folder.path} {split}"
    standardizer = plugin.build("data.standardizers", spec, SourceContext(name=where, stream=""))
    pieces = folder.pieces(split)
    shards = _index_build.shards(folder, {p.path: p.count for p in pieces}, index_dir)
    of = {"path": folder.path, "split": split, "bad_samples": bad_samples}
    of |= {"spec": spec, "row": described(standardizer), "code": code(standardizer)}
    of["pieces"] = [dataclasses.astuple(p) for p in pieces]
    of["shards"] = [[s.path, s.stamp.size, s.stamp.version] for s in shards]
    of["features"] = _index.Header.of(folder, "", shards[0].stamp, 0).features
    told = json.dumps(of, sort_keys=True, default=repr).encode()
    key = hashlib.blake2b(told, digest_size=16).hexdigest()
    path = os.path.join(_tables(_files.parent(shards[0].target)), f"{key}.safetensors")

    def make() -> tuple[dict, dict]:
        _index_build.ensure(folder, shards, workers)
        table = _standardized(where, folder, pieces, shards, standardizer, bad_samples)
        arrays, about = episodes_lib.pack(table)
        return arrays, about | {"plain": [_file(shard) != shard.path for shard in shards]}

    arrays, about = kept(path, make)
    copies = [_index.plain_copy(shard.target) for shard in shards]
    files = [c if plain else s.path for c, plain, s in zip(copies, about["plain"], shards)]
    if any(plain and not _files.is_file(c) for c, plain in zip(copies, about["plain"])):
        _index_build.ensure(folder, shards, workers)  # an unpacked copy was removed
    table = episodes_lib.unpack(where, arrays, about)
    views = standardizer.views(folder.features)
    origin = functools.partial(_origin, [shard.path for shard in shards], table.shard, views)
    return dataclasses.replace(table, origin=origin), shards, files


def _origin(paths: Sequence[str], shard: np.ndarray, views: Mapping, view: str, episode: int):
    """See Episodes.origin."""
    return f"{paths[int(shard[episode])]}: {views[view]}"


def _file(shard: _index_build.Shard) -> str:
    """Where the records lie: in the shard, or, if it is compressed, in the unpacked copy."""
    made = _index.header_of(shard.target)
    return _index.plain_copy(shard.target) if made and made.plain else shard.path


def _tables(index: str) -> str:
    """Where tables lie: beside the indexes, or, as only local files are mapped, in the cache."""
    if not _files.is_url(index):
        return os.path.join(index, "tables")
    return cached(index)


def cached(place: str) -> str:
    """A local folder of this user in place of one that cannot be mapped or written."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    mark = hashlib.blake2b(place.encode(), digest_size=6).hexdigest()
    return os.path.join(cache, "vla_jax", "tables", mark)


def kept(path: str, make) -> tuple[dict, dict]:
    """What the file holds; made where it is absent or broken.

    A table that lacks episodes for a fault that may pass serves this process alone, which is said.
    """
    try:
        return _load(path, os.stat(path).st_mtime_ns)
    except (FileNotFoundError, plugin.UserError):
        arrays, about = make()
        if about.get("passing"):  # not of what else is kept so
            print(
                f"The table {path} is not kept, the next start reads all episodes again: "
                f"{len(about['passing'])} faults that may pass left some out, the first: "
                f"{about['passing'][0]}",
                file=sys.stderr,
                flush=True,
            )
            path = os.path.join(mapped.scratch("tables"), os.path.basename(path))
        _files.write(path, mapped.save(arrays, about))
        return _load(path, os.stat(path).st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _load(path: str, written: int) -> tuple[dict, dict]:
    """Once per process: members of a mixture that read the same table share its arrays."""
    return mapped.load(path)


def described(standardizer) -> str:
    """All that a standardizer is made of, as text."""
    return f"{type(standardizer).__module__}.{type(standardizer).__qualname__} {vars(standardizer)}"


def code(standardizer) -> str:
    """A hash of the code that makes tables and of the files that a standardizer came from."""
    digest = hashlib.blake2b(_own_code().encode(), digest_size=16)
    with_functions = [type(standardizer), *_functions(vars(standardizer).values())]
    for file in sorted({inspect.getsourcefile(part) for part in with_functions}):
        digest.update(pathlib.Path(file).read_bytes())
    return digest.hexdigest()


def _functions(values) -> list:
    """Functions that a row names, one level deep."""
    parts = [p for v in values for p in (v, *(vars(v).values() if hasattr(v, "__dict__") else ()))]
    return [part for part in parts if inspect.isfunction(part)]


@functools.cache
def _own_code() -> str:
    root = pathlib.Path(importlib.import_module("vla_jax").__file__).parent
    digest = hashlib.blake2b(digest_size=16)
    for name in CODE:
        place = root.joinpath(*name.split("."))
        files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
        for file in files:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _standardized(
    where: str,
    folder: Folder,
    pieces: Sequence[Piece],
    shards: Sequence[_index_build.Shard],
    standardizer,
    bad_samples: str,
) -> episodes_lib.Episodes:
    columns, views = standardizer.columns(folder.features), standardizer.views(folder.features)
    for view, name in views.items():
        feature = folder.features[name]
        if feature.kind != "image" or feature.shape[-1:] not in ((3,), ()) or feature.rank != 1:
            raise plugin.UserError(
                f"{where}: {name} (view {view}) is {feature}, expected an RGB image per step"
            )
    wanted = sorted(set(columns) | set(views.values()))
    said = [f.name for f in folder.features.values() if _says(f)]
    numbers = {shard.path: i for i, shard in enumerate(shards)}
    rows, places, skipped = [], {}, []
    for piece in pieces:
        shard = numbers[piece.path]
        reading = _Shard(folder, shards[shard], wanted, said)
        for number in range(piece.first, piece.last):
            try:
                found, length, at = reading.episode(number)
                episode = standardizer.episode(found, length, at)
                facts = {n.removeprefix(METADATA): found[n] for n in said if n in found}
                episode = dataclasses.replace(episode, metadata={**facts, **episode.metadata})
                episodes_lib.check(at, episode, rows[0][0] if rows else None)
                episodes_lib.distinct(at, episode.id, places)
            except plugin.UserError as error:
                if bad_samples == "error":
                    raise
                skipped.append(passing.fault(error))
                continue
            frames = _frames(episode, {view: found[name] for view, name in views.items()})
            rows.append((episode, frames, shard, number, int(reading.index.offsets[number])))
    if not rows:
        first = f", the first: {skipped[0]}" if skipped else ""
        raise plugin.UserError(f"{where}: no episode is whole ({len(skipped)} are not{first})")
    table = episodes_lib.collect(where, folder.name, rows, tuple(views))
    return dataclasses.replace(table, skipped=tuple(skipped))


def _says(feature: _rlds_record.Feature) -> bool:
    """Whether it is one number or text about an episode, which filters may ask for."""
    one = feature.rank == 0 and feature.shape in ((), (1,)) and feature.kind != "image"
    return one and feature.name.startswith(METADATA)


def _frames(episode: episodes_lib.Episode, spans: Mapping) -> dict:
    found = {}
    for view, places in spans.items():
        kept = places[episode.steps]
        mask = episode.image_masks.get(view, True)
        found[view] = (kept.offsets, np.where(mask, kept.lengths, 0))
    return found


class _Shard:
    """Episodes of one shard, by its index and, for wide columns, its records.

    What is `wanted` must be there, what is `said` may be.
    """

    def __init__(self, folder: Folder, shard: _index_build.Shard, wanted, said=()):
        self.folder, self.shard, self.wanted = folder, shard, wanted
        self.names = sorted({*wanted, *said})
        self.index = _index_build.load(folder, shard)
        features = [folder.features[name] for name in self.names]
        self.inside = [f for f in features if self.index.holds(f)]
        self.wide = [f.name for f in features if not self.index.holds(f)]

    def episode(self, number: int) -> tuple[dict, int, str]:
        """(columns, T, where); UserError for a record that is missing or broken."""
        index, path = self.index, self.shard.path
        if number >= index.count:
            _rlds_folder.check_count(path, index.count, self.shard.count)
            raise plugin.UserError(f"{path}: record {number}: there are {index.count}")
        at = f"{path}: record {number} at byte {index.offsets[number]}"
        for fault in index.faults(number, set(self.names)):
            raise plugin.UserError(fault)
        found = index.found(number, self.inside)
        if self.wide:
            found |= _rlds_folder.parse(self.folder, self.wide, self._record(number), at)
        columns = _rlds_record.columns(self.folder.features, self.names, found, at)
        missing = sorted(set(self.wanted) - set(columns))
        if missing:
            raise plugin.UserError(f"{at}: lacks {missing}, which features.json promises")
        return columns, _rlds_record.length(columns, at), at

    @functools.cached_property
    def _reader(self):
        return self.folder.reader(_file(self.shard))

    def _record(self, number: int) -> bytes:
        span = (0, int(self.index.lengths[number]))
        return self._reader.read(number, int(self.index.offsets[number]), [span])[0]
