"""Quotas: how many weights of each layer go, in whole numbers, from ratios."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from spectail.errors import PruneError

_NEARLY = Fraction(1, 10**6)
"""A ratio times a number of weights this close to a whole number means that number: 0.7 is no
binary fraction."""


@dataclass(frozen=True)
class Zeros:
    """So many zeros, anywhere in the layer."""

    count: int


@dataclass(frozen=True)
class Pattern:
    """``n`` zeros in every ``m`` neighbours along the input, written ``n:m``."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 <= self.n <= self.m or self.m < 1:
            raise PruneError(
                f"a pattern N:M has N zeros in every M weights, 0 <= N <= M, not {self.n}:{self.m}"
            )

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read ``2:4``; PruneError for anything else."""
        match = re.fullmatch(r"(\d+):(\d+)", text.strip())
        if match is None:
            raise PruneError(f"a pattern is written N:M, such as 2:4, not {text!r}")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def zeros(self, rows: int, cols: int) -> int:
        """How many zeros it makes in a matrix; columns left over stay."""
        return rows * (cols // self.m) * self.n


Quota: TypeAlias = Zeros | Pattern


def zero_counts(ratios: Sequence[float], numels: Sequence[int]) -> list[Zeros]:
    """Whole numbers of zeros, each within one of ratio x numel, whose sum is the nearest to what all ratios ask.

    >>> [quota.count for quota in zero_counts([0.5, 0.5, 0.7], [3, 3, 10])]
    [2, 1, 7]
    """
    wanted = [
        _exact(ratio * numel) for ratio, numel in zip(map(Fraction, ratios), numels, strict=True)
    ]
    counts = [int(x) for x in wanted]
    missing = round(sum(wanted)) - sum(counts)
    by_rest = sorted(range(len(wanted)), key=lambda i: (counts[i] - wanted[i], i))
    for i in by_rest[: max(0, missing)]:
        counts[i] += 1
    return [Zeros(count) for count in counts]


def pattern_counts(
    ratios: Sequence[float], shapes: Sequence[tuple[int, int]], m: int
) -> list[Pattern]:
    """One n:m per layer, the largest n not above its ratio, then one more where the total still allows it.

    So the total meets what all ratios ask from below. Those whose ratio lies furthest above their n
    come first.
    """
    wanted = [_exact(Fraction(ratio) * m) for ratio in ratios]
    budget = sum(w * rows * cols for w, (rows, cols) in zip(wanted, shapes, strict=True)) / m
    numbers = [int(w) for w in wanted]
    spent = sum(Pattern(n, m).zeros(*shape) for n, shape in zip(numbers, shapes, strict=True))
    for i in sorted(range(len(wanted)), key=lambda i: (numbers[i] - wanted[i], i)):
        step = Pattern(1, m).zeros(*shapes[i]) if m else 0
        if wanted[i] > numbers[i] and spent + step <= budget:
            numbers[i] += 1
            spent += step
    return [Pattern(n, m) for n in numbers]


def _exact(value: Fraction) -> Fraction:
    whole = Fraction(round(value))
    return whole if abs(value - whole) < _NEARLY else value
