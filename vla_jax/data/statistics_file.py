"""A finished file of statistics: written whole or not at all, checked when it is read.

    {"content": "5f1c…",              hash of all that follows
     "format_version": 1,
     "statistics": {dataset key: {
         "data": ["9a0b…"],           fingerprints of the data that were measured
         "fields": {"action": {"chunk": 8, "count": …, "mean": […], …, "rank_error": 0.0}}}}}

Keys are sorted, numbers survive exactly. Training that names such a file never computes statistics:
what does not fit the file is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

from vla_jax import plugin
from vla_jax.codecs.normalizer import Statistics
from vla_jax.data.sources import _files
from vla_jax.data.statistics import Column

FORMAT_VERSION = 1
REMEDY = "make it again with `vla data stats --config … --out {path}`"


def write(
    path: _files.Path,
    tables: Mapping[str, Mapping[str, Mapping[str, Column]]],
    found: Mapping[str, Mapping[str, Statistics]],
) -> str:
    """The content hash of the file that now holds `found`, measured on `tables`.

    The file appears, or replaces an older one, in one step: a process that is killed leaves what
    was there before (and at most a hidden temporary file, which nothing reads).
    """
    statistics = {}
    for key, data in tables.items():
        columns = next(iter(data.values()))
        fields = {
            field: {**dataclasses.asdict(numbers), "chunk": columns[field].chunk}
            for field, numbers in found[key].items()
        }
        statistics[key] = {"data": sorted(data), "fields": fields}
    body = {"format_version": FORMAT_VERSION, "statistics": statistics}
    content = _hash(body)
    text = json.dumps({**body, "content": content}, indent=1, sort_keys=True, allow_nan=False)
    _files.write(path, f"{text}\n".encode())
    return content


def exists(path: _files.Path) -> bool:
    """Whether there is a file of that name, local or by URL."""
    return _files.is_file(path)


def read(path: _files.Path) -> tuple[dict, str]:
    """({dataset key: {"data": …, "fields": {field: …}}}, content hash) of a file.

    Raises UserError where there is none, and for one that is not whole or was edited.
    """
    remedy = REMEDY.format(path=path)
    if not _files.is_file(path):
        raise plugin.UserError(f"statistics {path}: no such file; {remedy}")
    try:
        body = json.loads(_files.read(path))
    except ValueError as error:
        raise plugin.UserError(f"statistics {path}: no whole JSON ({error}); {remedy}") from error
    if not isinstance(body, dict) or "content" not in body or "statistics" not in body:
        raise plugin.UserError(
            f"statistics {path}: no file of `vla data stats`, it lacks `content` or `statistics`; "
            f"{remedy}"
        )
    content, version = body.pop("content"), body.get("format_version")
    if _hash(body) != content:
        raise plugin.UserError(
            f"statistics {path}: its numbers hash to {_hash(body)[:16]}, it says "
            f"{str(content)[:16]}: it was edited or damaged; {remedy}"
        )
    if version != FORMAT_VERSION:
        raise plugin.UserError(
            f"statistics {path}: got format_version {version}, expected {FORMAT_VERSION}; {remedy}"
        )
    return body["statistics"], content


def fitting(
    paths: Sequence[_files.Path],
    tables: Mapping[str, Mapping[str, Mapping[str, Column]]],
) -> dict[str, dict[str, Statistics]]:
    """Dataset key -> field -> Statistics from files, for all that statistics.gather found.

    Each key is in one of the files. Raises UserError as `read` does, for a key in none or in two,
    and for data, fields or chunks other than those that were measured.
    """
    stored: dict[str, tuple] = {}
    for path in paths:
        for key, entry in read(path)[0].items():
            if key in stored:
                raise plugin.UserError(
                    f"statistics: dataset key {key!r} stands in {stored[key][0]} and in {path}; "
                    "name one of them"
                )
            stored[key] = (path, entry)
    found = {}
    for key, data in tables.items():
        if key not in stored:
            where = f"statistics {', '.join(map(str, paths))}: dataset key"
            raise plugin.UserError(f"{plugin.unknown(where, key, stored)} Make a file that has it.")
        found[key] = _checked(*stored[key], key, data)
    return found


def _checked(
    path: _files.Path, entry: Mapping, key: str, data: Mapping[str, Mapping[str, Column]]
) -> dict[str, Statistics]:
    where, remedy = f"statistics {path}: dataset key {key!r}", REMEDY.format(path=path)
    if entry["data"] != sorted(data):
        raise plugin.UserError(
            f"{where}: measured on data with fingerprint {' + '.join(entry['data'])}, this config "
            f"reads {' + '.join(sorted(data))}: other episodes, standardizer or holdout; {remedy}, "
            "or read the data that it was made of"
        )
    columns, found = next(iter(data.values())), {}
    if sorted(entry["fields"]) != sorted(columns):
        raise plugin.UserError(
            f"{where}: has the fields {sorted(entry['fields'])}, expected {sorted(columns)}; "
            f"{remedy}"
        )
    for field, numbers in entry["fields"].items():
        numbers = {k: tuple(v) if isinstance(v, list) else v for k, v in numbers.items()}
        chunk = numbers.pop("chunk")
        if chunk != columns[field].chunk:
            raise plugin.UserError(
                f"{where}: {field}: measured over chunks of {chunk}, this config has "
                f"action_horizon={columns[field].chunk}; {remedy}"
            )
        found[field] = Statistics(**numbers)
    return found


def _hash(body: Mapping) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
