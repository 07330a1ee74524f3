"""Which source gives sample n of a stream, and which of its samples: pure functions of n.

Weights are piecewise-linear functions of n, split along a binary tree of the members:

                    W = cumulative weight of a node, W(n) = integral of its weight from 0 to n
         root       a node that has drawn p sends  floor(W_left(W_node^-1(p)) + 1/2)  of them to its
        /    \\      left child, the rest to its right
     left    right

so counts sum to n, never decrease, and stay within 1 + log2(k)/2 of the ideal for k members. All
arithmetic is exact: between two breakpoints W is a quadratic with rational coefficients, its
inverse lies in Q(sqrt d), and a floor there is decided by comparing squares.

Within a member every epoch is another permutation: Grain's index_shuffle (no memory), or a cached
table for up to 2**16 samples, where index_shuffle walks a cycle of 2**16 (185 us for a source of
207 samples, 16 us for a large one; the table 1 us).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from vla_jax import plugin

Weight = float | int | Sequence[tuple[int, float]]
HALF = Fraction(1, 2)
TABLE = 2**16  # up to here an epoch's permutation is a table; see the module's note


def fold(*parts) -> int:
    """128 bits that are a pure function of `parts` (their repr): the seed of everything random."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=16).digest(), "little")


def generator(seed: int, stream: str, source: str, n: int) -> np.random.Generator:
    """The random generator of sample n."""
    return np.random.Generator(np.random.Philox(key=fold(seed, stream, source, n)))


def permuted(draw: int, size: int, seed: int, stream: str, source: str) -> int:
    """Index in [0, size) of a source's draw number `draw`: every epoch is another permutation."""
    epoch, place = divmod(draw, size)
    key = _epoch_key(seed, stream, source, epoch)
    if size <= TABLE:
        return int(_permutation(key, size)[place])
    from grain import experimental  # here, so that importing an order stays light

    return int(experimental.index_shuffle(place, max_index=size - 1, seed=key, rounds=4))


@functools.lru_cache(maxsize=64)
def _permutation(key: int, size: int) -> np.ndarray:
    return np.argsort(np.random.Philox(key=key).random_raw(size), kind="stable").astype(np.int32)


@functools.lru_cache(maxsize=256)
def _epoch_key(seed: int, stream: str, source: str, epoch: int) -> int:
    return fold(seed, stream, source, "epoch", epoch) % 2**32


@dataclasses.dataclass(frozen=True, eq=False)
class Contiguous:
    """Runs of neighbouring samples and how an epoch goes through them (see data/runs.py).

    Attributes:
      bounds: int64 [R + 1], the first sample of each run, and the number of samples; increasing.
      num_runs: how many runs a block is made of.
    """

    bounds: np.ndarray
    num_runs: int

    def permuted(self, draw: int, seed: int, stream: str, source: str) -> int:
        """Index of a source's draw number `draw`: a permutation of runs, then of blocks of them.

        Every epoch is another permutation of all samples; a pure function of its arguments.
        """
        epoch, place = divmod(draw, int(self.bounds[-1]))
        key = _epoch_key(seed, stream, source, epoch)
        runs, ends = _run_order(self, key)
        block = int(np.searchsorted(ends[self.num_runs - 1 :: self.num_runs], place, "right"))
        first = block * self.num_runs
        begin = int(ends[first - 1]) if first else 0
        size = int(ends[min(first + self.num_runs, len(runs)) - 1]) - begin
        place = begin + permuted(place - begin, size, key, "block", str(block))
        k = int(np.searchsorted(ends, place, "right"))
        return int(self.bounds[runs[k] + 1]) - (int(ends[k]) - place)


@functools.lru_cache(maxsize=64)
def _run_order(order: Contiguous, key: int) -> tuple[np.ndarray, np.ndarray]:
    """(the runs in an epoch's order, how many samples stand up to the end of each)."""
    lengths = np.diff(order.bounds)
    runs = np.argsort(np.random.Philox(key=key).random_raw(len(lengths)), kind="stable")
    return runs, np.cumsum(lengths[runs])


@dataclasses.dataclass(frozen=True)
class Curve:
    """A node's weight: rational values at shared breakpoints, linear between, constant after."""

    points: tuple[int, ...]
    values: tuple[Fraction, ...]
    totals: tuple[Fraction, ...]  # W at the breakpoints

    @classmethod
    def make(cls, points: Sequence[int], values: Sequence[Fraction]) -> Curve:
        """The curve through (points, values); points begin with 0 and increase."""
        totals = [Fraction(0)]
        for i in range(1, len(points)):
            mean = (values[i - 1] + values[i]) / 2
            totals.append(totals[-1] + mean * (points[i] - points[i - 1]))
        return cls(tuple(points), tuple(values), tuple(totals))

    def piece(self, i: int) -> tuple[Fraction, Fraction, Fraction]:
        """(a, b, c) of W(points[i] + x) = a x² + b x + c."""
        slope = Fraction(0)
        if i + 1 < len(self.points):
            rise = self.values[i + 1] - self.values[i]
            slope = rise / (self.points[i + 1] - self.points[i])
        return slope / 2, self.values[i], self.totals[i]

    def total(self, n: int) -> Fraction:
        """W(n)."""
        i = max(j for j, point in enumerate(self.points) if point <= n)
        a, b, c = self.piece(i)
        x = n - self.points[i]
        return a * x * x + b * x + c


@dataclasses.dataclass(frozen=True)
class Node:
    """A leaf (`member`) or two children."""

    curve: Curve
    member: str | None = None
    left: Node | None = None
    right: Node | None = None

    @functools.cached_property
    def _share(self) -> tuple[int, int]:
        """The left child's part of a constant weight; a node without weight draws nothing."""
        own, left = self.curve.values[0], self.left.curve.values[0]
        return (left / own).as_integer_ratio() if own else (0, 1)

    def to_left(self, p: int) -> int:
        """How many of the first `p` samples of this node are its left child's."""
        if len(self.curve.points) == 1:  # weights that never change: the same, in whole numbers
            share, whole = self._share
            return (2 * p * share + whole) // (2 * whole)
        own, left = self.curve, self.left.curve
        i = 0
        while i + 1 < len(own.points) and own.totals[i + 1] < p:
            i += 1
        a, b, c = own.piece(i)
        la, lb, lc = left.piece(i)
        need = p - c  # a x² + b x = need, x >= 0 the smallest
        if a == 0:
            # A weight of zero to the end gives no more: the node has all that it will ever have.
            x = need / b if b > 0 else Fraction(0)
            return math.floor(la * x * x + lb * x + lc + HALF)
        # x = (sqrt(d) - b) / 2a solves it (the smaller root where a < 0, too).
        d = b * b + 4 * a * need
        # W_left = u + v sqrt(d)
        u = la * (d + b * b) / (4 * a * a) - lb * b / (2 * a) + lc
        v = (lb - la * b / a) / (2 * a)
        return _floor(u + HALF, v, d)


def _floor(u: Fraction, v: Fraction, d: Fraction) -> int:
    """floor(u + v sqrt(d)), exactly; d >= 0."""

    def reaches(k: int) -> bool:  # u + v sqrt(d) >= k
        rest, square = k - u, v * v * d
        if v >= 0:
            return rest <= 0 or square >= rest * rest
        return rest <= 0 and square <= rest * rest

    # An estimate within a few units, then exact steps.
    scale = 10**12
    root = Fraction(math.isqrt(math.floor(d * scale * scale)), scale)
    k = math.floor(u + v * root)
    while not reaches(k):
        k -= 1
    while reaches(k + 1):
        k += 1
    return k


@dataclasses.dataclass(frozen=True)
class Order:
    """Sample n of a stream -> (member, how many of that member came before)."""

    root: Node

    @classmethod
    def make(cls, weights: Mapping[str, Weight]) -> Order:
        """The order of weighted members; a weight is a number or a list of (n, weight) breakpoints.

        The tree is built over sorted names, so that the order of a dict does not matter. Decimal
        weights are taken as written (0.1 is 1/10). Raises UserError for no members, a negative
        weight, breakpoints that do not increase, or all weights zero at a breakpoint.
        """
        if not weights:
            raise plugin.UserError("mixture: no members, expected at least one")
        schedules = {name: _schedule(name, weight) for name, weight in sorted(weights.items())}
        points = sorted({0, *(n for schedule in schedules.values() for n, _ in schedule)})
        values = {name: [_at(schedule, n) for n in points] for name, schedule in schedules.items()}
        for i, n in enumerate(points):
            total = sum(row[i] for row in values.values())
            if total == 0:
                raise plugin.UserError(f"mixture: all weights are zero at n={n}; raise one")
            for row in values.values():
                row[i] /= total
        return cls(_tree(points, list(values.items())))

    def locate(self, n: int) -> tuple[str, int]:
        """(member, its draws before) of sample n."""
        node, p = self.root, n
        while node.member is None:
            before = node.to_left(p)
            if node.to_left(p + 1) > before:
                node, p = node.left, before
            else:
                node, p = node.right, p - before
        return node.member, p

    def counts(self, n: int) -> dict[str, int]:
        """Member -> how many of the first n samples are its."""
        found, todo = {}, [(self.root, n)]
        while todo:
            node, p = todo.pop()
            if node.member is not None:
                found[node.member] = p
            else:
                left = node.to_left(p)
                todo += [(node.left, left), (node.right, p - left)]
        return found

    def ideal(self, n: int) -> dict[str, Fraction]:
        """Member -> its cumulative weight at n."""
        found, todo = {}, [self.root]
        while todo:
            node = todo.pop()
            if node.member is not None:
                found[node.member] = node.curve.total(n)
            else:
                todo += [node.left, node.right]
        return found


def _tree(points, members: list[tuple[str, list[Fraction]]]) -> Node:
    values = [sum(column) for column in zip(*(row for _, row in members))]
    curve = Curve.make(points, values)
    if len(members) == 1:
        return Node(curve, member=members[0][0])
    half = len(members) // 2
    return Node(curve, None, _tree(points, members[:half]), _tree(points, members[half:]))


def _schedule(name: str, weight: Weight) -> list[tuple[int, Fraction]]:
    pairs = [(0, weight)] if isinstance(weight, int | float) else [tuple(p) for p in weight]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise plugin.UserError(
            f"mixture.{name}: weight={weight!r}, expected a number or a list of (n, weight)"
        )
    try:
        schedule = [(int(n), Fraction(str(value))) for n, value in pairs]
    except ValueError as error:
        raise plugin.UserError(f"mixture.{name}: weight={weight!r}: {error}") from error
    for (n, value), (after, _) in zip(schedule, [*schedule[1:], (math.inf, 0)]):
        if value < 0 or n < 0 or after <= n:
            raise plugin.UserError(
                f"mixture.{name}: weight={weight!r}, expected weights >= 0 at increasing n >= 0"
            )
    return schedule


def _at(schedule: list[tuple[int, Fraction]], n: int) -> Fraction:
    if n <= schedule[0][0]:
        return schedule[0][1]
    for (n0, v0), (n1, v1) in zip(schedule, schedule[1:]):
        if n <= n1:
            return v0 + (v1 - v0) * Fraction(n - n0, n1 - n0)
    return schedule[-1][1]
