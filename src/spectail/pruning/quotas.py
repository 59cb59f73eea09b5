"""Quotas: turn the ratios of an allocation into whole numbers of zeros for each layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from spectail.errors import PruneError

_NEARLY = Fraction(1, 10**6)
"""Ratio x weights this close to a whole number counts as that number: a float 0.7 is not exactly
7/10."""


@dataclass(frozen=True)
class Zeros:
    """A number of zeros that may lie anywhere in the layer."""

    count: int


@dataclass(frozen=True)
class Pattern:
    """A pattern ``n:m``: ``n`` zeros in every ``m`` neighbouring weights along the input."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 <= self.n <= self.m or self.m < 1:
            raise PruneError(
                f"a pattern N:M has N zeros in every M weights, 0 <= N <= M, not {self.n}:{self.m}"
            )

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read a text such as ``2:4``; PruneError for anything else."""
        # No layer has a group of a billion weights, and int() refuses thousands of digits.
        match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text.strip())
        if match is None:
            raise PruneError(f"a pattern is written N:M, such as 2:4, not {text[:80]!r}")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def check_mean(self, sparsity: float) -> None:
        """Raise PruneError unless the pattern is a sparsity of this value."""
        # Allocations meet their budget far more closely than this.
        if abs(sparsity - self.n / self.m) > 1e-6:
            raise PruneError(
                f"pattern {self} is a sparsity of {self.n / self.m:g}, the allocation's mean is "
                f"{sparsity:g}: make them equal"
            )

    def zeros(self, rows: int, cols: int) -> int:
        """Return the number of zeros in a matrix; columns that do not fill a group get none."""
        return rows * (cols // self.m) * self.n


Quota: TypeAlias = Zeros | Pattern


def zero_counts(ratios: Sequence[float], numels: Sequence[int]) -> list[Zeros]:
    """Round ratio x numel of every layer so that the total is the nearest whole number.

    Each count is within one of its ratio x numel (largest-remainder rounding).

    >>> [quota.count for quota in zero_counts([0.5, 0.5, 0.7], [3, 3, 10])]
    [2, 1, 7]
    """
    wanted = [
        _exact(ratio * numel) for ratio, numel in zip(map(Fraction, ratios), numels, strict=True)
    ]
    counts = [int(x) for x in wanted]
    # Sums of exact fractions: no rounding error moves the total by a weight.
    missing = round(sum(wanted)) - sum(counts)
    # The largest remainders first; of equal ones the first layer.
    by_rest = sorted(range(len(wanted)), key=lambda i: (counts[i] - wanted[i], i))
    for i in by_rest[: max(0, missing)]:
        counts[i] += 1
    return [Zeros(count) for count in counts]


def pattern_counts(
    ratios: Sequence[float], shapes: Sequence[tuple[int, int]], m: int
) -> list[Pattern]:
    """Return one n:m per layer: the largest n not above its ratio, or one more.

    The total stays at or below the one that the ratios ask for. One more goes first to the layers
    whose ratio lies furthest above their n.
    """
    wanted = [_exact(Fraction(ratio) * m) for ratio in ratios]
    # In zeros, counting columns that fill no group: the ratios were meant for all weights.
    budget = sum(w * rows * cols for w, (rows, cols) in zip(wanted, shapes, strict=True)) / m
    numbers = [int(w) for w in wanted]
    spent = sum(Pattern(n, m).zeros(*shape) for n, shape in zip(numbers, shapes, strict=True))
    for i in sorted(range(len(wanted)), key=lambda i: (numbers[i] - wanted[i], i)):
        step = Pattern(1, m).zeros(*shapes[i]) if m else 0
        # A layer whose ratio is a whole n:m keeps it.
        if wanted[i] > numbers[i] and spent + step <= budget:
            numbers[i] += 1
            spent += step
    return [Pattern(n, m) for n in numbers]


def _exact(value: Fraction) -> Fraction:
    """Return the nearest whole number if it is very near, else the value itself."""
    whole = Fraction(round(value))
    return whole if abs(value - whole) < _NEARLY else value
