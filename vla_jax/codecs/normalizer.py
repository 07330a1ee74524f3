"""Numbers to unit scale and back: numeric, invertible, kept in the checkpoint. No jax.

One entry per (dataset key, field); fields are ``action`` and ``proprio/<group>``. Training, serving
and heads that do arithmetic in SI units use the same entry:

    normalized = (value - shift) / scale        value = normalized * scale + shift

    mode       shift              scale
    identity   0                  1
    zscore     mean               std
    minmax     (max + min) / 2    (max - min) / 2       -> [-1, 1]
    q01_q99    (q99 + q01) / 2    (q99 - q01) / 2       -> [-1, 1] for 98% of the data

ALIASES has other projects' names, which clash: "bounds" are quantiles in Octo, extremes in OpenVLA.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vla_jax import plugin

MODES = ("identity", "zscore", "minmax", "q01_q99")
# Another project's name -> (mode, the bound it clips to). Octo: octo/data/utils/data_utils.py;
# OpenVLA: prismatic/vla/datasets/rlds/utils/data_utils.py; openpi: src/openpi/transforms.py;
# LeRobot: src/lerobot/processor/normalize_processor.py.
ALIASES = {
    "octo/normal": ("zscore", None),
    "octo/bounds": ("q01_q99", 1.0),
    "openvla/normal": ("zscore", None),
    "openvla/bounds": ("minmax", 1.0),
    "openvla/bounds_q99": ("q01_q99", 1.0),
    "openpi/zscore": ("zscore", None),
    "openpi/quantile": ("q01_q99", None),
    "lerobot/IDENTITY": ("identity", None),
    "lerobot/MEAN_STD": ("zscore", None),
    "lerobot/MIN_MAX": ("minmax", None),
    "lerobot/QUANTILES": ("q01_q99", None),
}
DEGENERATE = 1e-6  # a spread below this share of the largest magnitude is float32 noise
BLOCK = 2**16  # rows normalized at a time
FORMAT_VERSION = 1


def resolve(where: str, name: str) -> tuple[str, float | None]:
    """(one of MODES, the bound that it clips to or None) of a mode or an alias.

    Raises UserError for an unknown name, and for one that means different things: "bounds".
    """
    if name in MODES:
        return name, None
    if name in ALIASES:
        return ALIASES[name]
    same = {alias: mode for alias, mode in ALIASES.items() if alias.partition("/")[2] == name}
    if len(set(same.values())) > 1:
        meanings = ", ".join(f"{a!r} is {m} clipped to {c}" for a, (m, c) in same.items())
        raise plugin.UserError(f"{where}: {name!r} is ambiguous: {meanings}; say which")
    raise plugin.UserError(plugin.unknown(where, name, (*MODES, *ALIASES)))


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Per-dim statistics of `count` rows, in raw units; each field has D numbers.

    `rank_error` is that of q01 and q99, as a share of the rows; 0 = exact.
    """

    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    rank_error: float = 0.0


@dataclasses.dataclass(frozen=True)
class Entry:
    """How one field of one data set is normalized.

    Attributes:
      mode: one of MODES.
      statistics: what scale and shift come from.
      active: bool [D]; False = left as it is (grippers).
      clip: bound of the normalized value, None = none.
      clipped: share of the training values that `clip` changes, per dim.
      unit_scale: value * unit_scale is in SI, per dim.
    """

    mode: str
    statistics: Statistics
    active: tuple[bool, ...]
    clip: float | None = None
    clipped: tuple[float, ...] = ()
    unit_scale: tuple[float, ...] = ()

    def shift_and_scale(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [D] each. A degenerate dim is shifted to zero and not scaled."""
        shift, scale = self._spread()
        scale = np.where(self.degenerate(), 1.0, scale)
        active = np.asarray(self.active, bool)
        return np.where(active, shift, 0.0), np.where(active, scale, 1.0)

    def degenerate(self) -> np.ndarray:
        """Whether the spread of a dim, in the sense of the mode, is nothing or noise: bool [D]."""
        s = self.statistics
        largest = np.maximum(np.abs(np.float64(s.min)), np.abs(np.float64(s.max)))
        return self._spread()[1] <= DEGENERATE * largest

    def _spread(self) -> tuple[np.ndarray, np.ndarray]:
        s = {k: np.asarray(v, np.float64) for k, v in dataclasses.asdict(self.statistics).items()}
        if self.mode == "identity":
            return np.zeros_like(s["mean"]), np.ones_like(s["mean"])
        if self.mode == "zscore":
            return s["mean"], s["std"]
        low, high = ("min", "max") if self.mode == "minmax" else ("q01", "q99")
        return (s[high] + s[low]) / 2, (s[high] - s[low]) / 2


@dataclasses.dataclass(frozen=True, eq=False)
class Normalizer:
    """A table: dataset key -> field -> Entry. `Batch.dataset_key` indexes its `keys`."""

    entries: Mapping[str, Mapping[str, Entry]]

    @property
    def keys(self) -> tuple[str, ...]:
        """The dataset keys, in order."""
        return tuple(self.entries)

    def index(self, key: str) -> int:
        """Row of `key`; UserError for an unknown one, naming the nearest."""
        if key not in self.entries:
            raise plugin.UserError(plugin.unknown("normalizer: dataset key", key, self.entries))
        return self.keys.index(key)

    def entry(self, key: str, field: str) -> Entry:
        """The entry; UserError where there is none."""
        self.index(key)
        if field not in self.entries[key]:
            known = self.entries[key]
            raise plugin.UserError(plugin.unknown(f"normalizer: field of {key!r}", field, known))
        return self.entries[key][field]

    def forward(self, key: str, field: str, values) -> np.ndarray:
        """float32 [..., D] raw -> normalized, clipped where the entry says so."""
        entry = self.entry(key, field)
        shift, scale = entry.shift_and_scale()
        values = _sized(key, field, values, len(shift))
        normalized = np.empty(values.shape, np.float32)
        flat, out = values.reshape(-1, len(shift)), normalized.reshape(-1, len(shift))
        for begin in range(0, len(flat), BLOCK):  # float64 of a block, not of all the data
            block = (flat[begin : begin + BLOCK].astype(np.float64) - shift) / scale
            if entry.clip is not None:
                clipped = np.clip(block, -entry.clip, entry.clip)
                block = np.where(np.asarray(entry.active), clipped, block)
            out[begin : begin + BLOCK] = block
        return normalized

    def inverse(self, key: str, field: str, values) -> np.ndarray:
        """float32 [..., D] normalized -> raw: the inverse of `forward` where nothing is clipped."""
        shift, scale = self.entry(key, field).shift_and_scale()
        return (_sized(key, field, values, len(shift)).astype(np.float64) * scale + shift).astype(
            np.float32
        )

    def clip_fraction(self, key: str, field: str, values) -> np.ndarray:
        """float64 [D]: share of the raw `values` [N, D] that `forward` clips."""
        entry = self.entry(key, field)
        shift, scale = entry.shift_and_scale()
        if entry.clip is None:
            return np.zeros(len(shift))
        outside = np.abs((np.asarray(values, np.float64) - shift) / scale) > entry.clip
        return np.where(entry.active, outside.mean(axis=0), 0.0)

    def constants(self, field: str) -> tuple[tuple, tuple]:
        """(shift, scale), nested tuples [dataset key][D]: SI = normalized * scale + shift.

        Keys without the field stand as (0, 1), so that the table keeps the order of `keys`.
        """
        size = max((len(e[field].active) for e in self.entries.values() if field in e), default=0)
        if size == 0:
            known = sorted({name for fields in self.entries.values() for name in fields})
            raise plugin.UserError(plugin.unknown("normalizer: field", field, known))
        shifts, scales = [], []
        for fields in self.entries.values():
            shift, scale = np.zeros(size), np.ones(size)
            if field in fields:
                raw_shift, raw_scale = fields[field].shift_and_scale()
                unit = np.asarray(fields[field].unit_scale or np.ones(len(raw_shift)), np.float64)
                shift[: len(unit)], scale[: len(unit)] = raw_shift * unit, raw_scale * unit
            shifts.append(tuple(map(float, shift)))
            scales.append(tuple(map(float, scale)))
        return tuple(shifts), tuple(scales)

    def table(self, keys: Iterable[str]) -> Normalizer:
        """The rows of `keys`, in that order; UserError for an unknown key."""
        return Normalizer({key: self.entries[self.keys[self.index(key)]] for key in keys})

    def merge(self, other: Normalizer) -> Normalizer:
        """Both tables, ours first; UserError where a key stands in both with other numbers."""
        for key in set(self.keys) & set(other.keys):
            if self.entries[key] != other.entries[key]:
                raise plugin.UserError(
                    f"normalizer: dataset key {key!r} has two different sets of statistics; "
                    "name the data sets apart (dataset_key=…) or recompute both together"
                )
        return Normalizer({**self.entries, **other.entries})

    def to_json(self) -> str:
        """The table as JSON; numbers survive exactly."""
        tree = {
            k: {f: dataclasses.asdict(e) for f, e in v.items()} for k, v in self.entries.items()
        }
        # A list keeps the order of keys whoever writes the JSON again.
        body = {"format_version": FORMAT_VERSION, "keys": list(self.keys), "entries": tree}
        return json.dumps(body, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Normalizer:
        """What `to_json` wrote; UserError for another format version."""
        body = json.loads(text)
        if body.get("format_version") != FORMAT_VERSION:
            raise plugin.UserError(
                f"normalizer: got format_version {body.get('format_version')}, expected "
                f"{FORMAT_VERSION}; recompute the statistics with this version of vla_jax"
            )
        return cls({k: {f: _entry(e) for f, e in body["entries"][k].items()} for k in body["keys"]})

    def close_to(self, other: Normalizer, rtol: float = 1e-6) -> bool:
        """Whether keys, fields, modes and dims are the same and all numbers within `rtol`."""
        return _close(json.loads(self.to_json()), json.loads(other.to_json()), rtol)

    @property
    def fingerprint(self) -> str:
        """A hash of the table; two normalizers with one fingerprint give the same numbers."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def __eq__(self, other) -> bool:
        return isinstance(other, Normalizer) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def _close(a: Any, b: Any, rtol: float) -> bool:
    """Whether two JSON trees are equal, floats within `rtol` of the larger one."""
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(_close(a[k], b[k], rtol) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_close(x, y, rtol) for x, y in zip(a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=rtol, abs_tol=1e-12)
    return type(a) is type(b) and a == b


def _entry(body: Mapping) -> Entry:
    lists = {k: tuple(v) if isinstance(v, list) else v for k, v in body.items()}
    numbers = {k: tuple(v) if isinstance(v, list) else v for k, v in body["statistics"].items()}
    return Entry(**{**lists, "statistics": Statistics(**numbers)})


def _sized(key: str, field: str, values, size: int) -> np.ndarray:
    values = np.asarray(values)
    if values.shape[-1:] != (size,):
        raise plugin.UserError(
            f"normalizer: {key}/{field}: got shape {values.shape}, expected [..., {size}]; the "
            "statistics are of another embodiment or action space"
        )
    return values
