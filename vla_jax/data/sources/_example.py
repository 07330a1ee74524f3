"""A serialized `tf.Example` to numpy, without TensorFlow: the protobuf wire format read by hand.

    Example { features: 1 { map entry: 1 { key: 1, value: 2 { bytes: 1 | floats: 2 | int64s: 3 }}}}

Byte strings come out as `Spans`, places inside the record, so that an image is neither copied nor
decoded before a sample asks for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Spans:
    """Where the byte strings of one feature lie in their record: offsets and lengths, int64 [T]."""

    offsets: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets)

    def read(self, record: bytes) -> list[bytes]:
        """The byte strings themselves."""
        places = zip(self.offsets.tolist(), self.lengths.tolist())
        return [record[start : start + length] for start, length in places]

    def __getitem__(self, steps) -> Spans:
        return Spans(self.offsets[steps], self.lengths[steps])


def parse(record: bytes, wanted: Callable[[str], bool] = lambda name: True) -> dict:
    """Feature name -> float32 [n], int64 [n] or Spans, for the names that `wanted` accepts.

    Raises ValueError (with the byte offset) where the bytes are no `tf.Example`.
    """
    found = {}
    for field, start, end in _fields(record, 0, len(record)):
        if field != 1:
            continue
        for entry, entry_start, entry_end in _fields(record, start, end):
            if entry != 1:
                continue
            name, value = None, None
            for part, part_start, part_end in _fields(record, entry_start, entry_end):
                if part == 1:
                    name = record[part_start:part_end].decode("utf-8")
                elif part == 2:
                    value = (part_start, part_end)
            if name is not None and value is not None and wanted(name):
                found[name] = _feature(record, *value)
    return found


def _feature(record: bytes, start: int, end: int):
    for kind, list_start, list_end in _fields(record, start, end):
        if kind == 1:
            places = [(s, e - s) for _, s, e in _fields(record, list_start, list_end)]
            table = np.asarray(places, np.int64).reshape(-1, 2)
            return Spans(table[:, 0].copy(), table[:, 1].copy())
        if kind == 2:
            return _floats(record, list_start, list_end)
        if kind == 3:
            return _integers(record, list_start, list_end)
    return np.zeros(0, np.float32)


def _floats(record: bytes, start: int, end: int) -> np.ndarray:
    runs = [record[s:e] for field, s, e in _fields(record, start, end) if field == 1]
    return np.frombuffer(b"".join(runs), "<f4")


def _integers(record: bytes, start: int, end: int) -> np.ndarray:
    runs = []
    position = start
    while position < end:
        tag, position = _varint(record, position, end)
        if tag == 0x0A:  # packed
            length, position = _varint(record, position, end)
            runs.append(record[position : position + length])
            position += length
        else:  # one by one
            _, after = _varint(record, position, end)
            runs.append(record[position:after])
            position = after
    return _varints(b"".join(runs))


def _varints(data: bytes) -> np.ndarray:
    """All varints of `data` as int64 (two's complement above 2**63)."""
    octets = np.frombuffer(data, np.uint8)
    if not np.any(octets & 0x80):
        return octets.astype(np.int64)
    last = np.flatnonzero(octets < 0x80)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(octets)) - np.repeat(first, last - first + 1)
    parts = (octets & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(parts, first).view(np.int64)


def _fields(record: bytes, position: int, end: int):
    """(field number, start, end) of each field's payload between two byte offsets."""
    while position < end:
        at = position
        tag, position = _varint(record, position, end)
        kind = tag & 7
        if kind == 2:
            length, position = _varint(record, position, end)
        elif kind == 0:
            _, after = _varint(record, position, end)
            length = after - position
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}, expected 0, 1, 2 or 5")
        if position + length > end:
            raise ValueError(f"a field of {length} bytes at byte {at} runs past byte {end}")
        yield tag >> 3, position, position + length
        position += length


def _varint(record: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end:
        octet = record[position]
        position += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, position
        shift += 7
    raise ValueError(f"a number runs past byte {end}")
