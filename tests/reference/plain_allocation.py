"""Slow and obvious allocation: the papers' formulas in loops, bisection for
budgets, every assignment for bits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def published_ratios(
    alphas: Sequence[float], numel: Sequence[int], *, sparsity: float, epsilon: float
) -> list[float]:
    """AlphaPruning before any clipping: one alpha and one size per layer or block."""
    low, high = min(alphas), max(alphas)
    factors = [(a - low) / (high - low) * 2 * epsilon + 1 - epsilon for a in alphas]
    scale = sparsity * sum(numel) / sum(n * f for n, f in zip(numel, factors, strict=True))
    return [scale * f for f in factors]


def filled(
    factors: Sequence[float],
    numel: Sequence[int],
    *,
    budget: float,
    bounds: tuple[float, float],
) -> list[float]:
    """clip(c * factor) with the c that meets the budget, by bisection on c."""
    low, high = bounds

    def values(c: float) -> list[float]:
        return [min(max(c * f, low), high) for f in factors]

    def mean(c: float) -> float:
        return sum(v * n for v, n in zip(values(c), numel, strict=True)) / sum(numel)

    left, right = 0.0, 1.0
    while mean(right) < budget and right < 1e300:
        right *= 2
    for _ in range(400):
        middle = (left + right) / 2
        left, right = (middle, right) if mean(middle) < budget else (left, middle)
    return values(right)


def standardized_by_kind(kinds: Sequence[str], alphas: Sequence[float]) -> list[float]:
    """Standard scores within each kind; 0 where a kind has one alpha."""
    found = []
    for kind, alpha in zip(kinds, alphas, strict=True):
        same = [a for k, a in zip(kinds, alphas, strict=True) if k == kind]
        mean = sum(same) / len(same)
        spread = math.sqrt(sum((a - mean) ** 2 for a in same) / len(same))
        found.append((alpha - mean) / spread if spread > 0 else 0.0)
    return found


def bit_costs(
    alphas: Sequence[float],
    variances: Sequence[float],
    numel: Sequence[int],
    *,
    choices: Sequence[int],
    gamma: float,
) -> list[list[float]]:
    """numel (alpha0 / alpha) ** gamma Var 2 ** (-2 b), alpha0 the median."""
    ordered, n = sorted(alphas), len(alphas)
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return [
        [k * (median / a) ** gamma * v * 2.0 ** (-2 * b) for b in choices]
        for a, v, k in zip(alphas, variances, numel, strict=True)
    ]


def best_bits(
    costs: Sequence[Sequence[float]],
    numel: Sequence[int],
    *,
    choices: Sequence[int],
    budget: float,
) -> float:
    """The least total cost over every assignment whose mean width is at most the budget."""
    best = math.inf
    for picks in itertools.product(range(len(choices)), repeat=len(numel)):
        mean = sum(n * choices[p] for n, p in zip(numel, picks, strict=True)) / sum(numel)
        if mean <= budget:
            best = min(best, sum(row[p] for row, p in zip(costs, picks, strict=True)))
    return best


def plain_linear(alphas: Sequence[float], low: float, high: float) -> list[float]:
    """TempBalance's tb_linear_map."""
    a, b = min(alphas), max(alphas)
    return [low + (high - low) * (x - a) / (b - a) for x in alphas]


def plain_sqrt(alphas: Sequence[float]) -> list[float]:
    """TempBalance's tb_sqrt."""
    total = sum(math.sqrt(x) for x in alphas)
    return [math.sqrt(x) / total * len(alphas) for x in alphas]


def plain_log2(alphas: Sequence[float]) -> list[float]:
    """TempBalance's tb_log2."""
    total = sum(math.log2(x) for x in alphas)
    return [math.log2(x) / total * len(alphas) for x in alphas]


def plain_step(alphas: Sequence[float], low: float, high: float) -> list[float]:
    """TempBalance's tb_step, for alphas that are all different."""
    return [low + (high - low) * sum(y < x for y in alphas) / len(alphas) for x in alphas]


def plain_sigmoid(alphas: Sequence[float], down: float, up: float, tau: float) -> list[float]:
    """ModelBalancing's TB_Sigmoid."""
    mean = sum(alphas) / len(alphas)
    found = []
    for alpha in alphas:
        x = alpha - mean
        found.append(10 ** ((up if x > 0 else down) * (1 / (1 + math.exp(-tau * x)) - 0.5)))
    return found
