"""Which collectives a compiled program runs, and how many bytes they move: read from its HLO text.

A loop's body counts as often as it runs, where XLA says so (`known_trip_count`) or its condition
is a comparison with one constant, as that of a scan. Bytes of a kind are those that one device
sends in the ring algorithm, per run of the program:

    all-gather of S bytes over g devices      (g - 1) / g · S
    all-reduce                                2 · (g - 1) / g · S
    reduce-scatter to S / g                   (g - 1) / g · S
    all-to-all, collective-permute            (g - 1) / g · S,  S
"""

from __future__ import annotations

import collections
import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s4": 1, "u4": 1, "token": 0, "opaque": 0, "c64": 8, "c128": 16}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\])")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_ROUNDS = re.compile(r"condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"^(\d+)\)")


def collectives(hlo: str, devices: int) -> dict[str, dict[str, float]]:
    """{kind: {"count": runs, "bytes": sent per device}} of one run of a program over `devices`.

    A loop whose number of rounds is unknown counts once, and is counted under "unknown_loops".
    """
    computations, entry = _computations(hlo)
    found = {kind: {"count": 0, "bytes": 0.0} for kind in KINDS}
    unknown = 0
    for name, times in _times(computations, entry).items():
        scattered = "all-reduce-scatter" in name  # TPU: a fusion that keeps its part of a sum
        for shape, op, rest in computations[name]:
            if op == "while" and _trips(rest, computations) is None:
                unknown += times
            kind = op.removesuffix("-start")
            if kind not in KINDS:
                continue
            size, group = _bytes(shape, started=op != kind, kind=kind), _group(rest, devices)
            kind = "reduce-scatter" if scattered and kind == "all-reduce" else kind
            if group == 1:
                continue
            found[kind]["count"] += times
            found[kind]["bytes"] += times * size * _share(kind, group, scattered)
    found = {kind: entry for kind, entry in found.items() if entry["count"]}
    return found | ({"unknown_loops": {"count": unknown, "bytes": 0.0}} if unknown else {})


def _share(kind: str, group: int, whole: bool) -> float:
    """Bytes sent over bytes of the result."""
    part = (group - 1) / group
    if kind == "all-reduce":
        return 2 * part
    if kind == "reduce-scatter" and not whole:
        return float(group - 1)  # the result is a device's part of what was summed
    return 1.0 if kind == "collective-permute" else part


def _computations(hlo: str) -> tuple[dict[str, list[tuple[str, str, str]]], str]:
    """({computation: [(shape, operation, the rest of the line)]}, the entry's name)."""
    found: dict[str, list] = {}
    entry, current = "", None
    for line in hlo.splitlines():
        if head := _HEAD.match(line):
            current = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (match := _LINE.match(line)):
            current.append((match[2], match[3], match[4]))
    return found, entry


def _times(computations: dict, entry: str) -> dict[str, int]:
    """How often each computation runs when the entry runs once."""
    times: collections.Counter[str] = collections.Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for _, op, rest in computations[name]:
            inner = count * (_trips(rest, computations) or 1) if op == "while" else count
            called = _CALLED.findall(rest)
            if branches := _BRANCHES.search(rest):
                called += [b.strip().lstrip("%") for b in branches[1].split(",")]
            for other in called:
                if other in computations:
                    visit(other, inner)

    visit(entry, 1)
    return times


def _trips(rest: str, computations: dict) -> int | None:
    """How often a loop's body runs, or None."""
    if known := _TRIPS.search(rest):
        return int(known[1])
    condition = computations.get(_ROUNDS.search(rest)[1], [])
    constants = [_CONSTANT.match(rest) for _, op, rest in condition if op == "constant"]
    less = any("direction=LT" in rest for _, op, rest in condition if op == "compare")
    return int(constants[0][1]) if less and len(constants) == 1 and constants[0] else None


def _bytes(shape: str, started: bool, kind: str) -> float:
    """Bytes of a result; of a started one, (operands, results, …), the results alone."""
    sizes = [_size(*array) for array in _ARRAY.findall(shape)]
    if started and kind != "all-reduce" and len(sizes) >= 2:
        return sizes[1]
    return sum(sizes)


def _size(dtype: str, dimensions: str) -> float:
    number = math.prod(int(d) for d in dimensions.split(",") if d)
    if dtype in BYTES:
        return number * BYTES[dtype]
    bits = re.search(r"(\d+)", dtype)
    return number * -(-int(bits[1]) // 8) if bits else 0


def _group(rest: str, devices: int) -> int:
    """How many devices take part in one instance of a collective."""
    if along := _MESH_GROUPS.search(rest):  # mesh['a'=4,'b'=2] {'a'}
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", along[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", along[2]))
    match = _GROUPS.search(rest)
    if match is None:  # all of them, or pairs
        return devices
    return len(match[1].split(",")) if match[1] is not None else int(match[2])
