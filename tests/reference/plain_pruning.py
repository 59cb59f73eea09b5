"""Pruning as plain loops, written from the papers' formulas: slow,
obvious, and only for small matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


def magnitude_mask(weights: Array, count: int) -> Array:
    """The ``count`` smallest absolute values; among equals the first in reading order."""
    rows, cols = weights.shape
    ranked = sorted((abs(weights[i, j]), i, j) for i in range(rows) for j in range(cols))
    mask = np.zeros(weights.shape, dtype=bool)
    for _, i, j in ranked[:count]:
        mask[i, j] = True
    return mask


def wanda_scores(weights: Array, inputs: Array) -> Array:
    """|W_ij| times the Euclidean norm of feature j over all tokens;
    ``inputs`` is (tokens, cols)."""
    rows, cols = weights.shape
    scores = np.zeros(weights.shape)
    for i in range(rows):
        for j in range(cols):
            scores[i, j] = abs(weights[i, j]) * np.sqrt(sum(x * x for x in inputs[:, j]))
    return scores


def wanda_mask(weights: Array, inputs: Array, each: int) -> Array:
    """Every row loses its ``each`` smallest scores."""
    scores = wanda_scores(weights, inputs)
    mask = np.zeros(weights.shape, dtype=bool)
    for i, row in enumerate(scores):
        for j in sorted(range(len(row)), key=lambda j: (row[j], j))[:each]:
            mask[i, j] = True
    return mask


def variant_mask(weights: Array, inputs: Array, sparsity: float, tolerance: float = 1e-3) -> Array:
    """Wanda's variant as published: bisect the share of each row's summed score that may go."""
    scores = wanda_scores(weights, inputs)
    low, high, share = 0.0, 0.8, 0.4
    for _ in range(100):
        mask = np.zeros(weights.shape, dtype=bool)
        for i, row in enumerate(scores):
            lost = 0.0
            for j in sorted(range(len(row)), key=lambda j: (row[j], j)):
                lost += row[j]
                if lost <= share * row.sum():
                    mask[i, j] = True
        if abs(mask.mean() - sparsity) <= tolerance:
            break
        low, high = (share, high) if mask.mean() < sparsity else (low, share)
        share = (low + high) / 2
    return mask


def pattern_mask(scores: Array, n: int, m: int) -> Array:
    """In every m neighbours the n whose scores have the least sum, by trying all choices."""
    rows, cols = scores.shape
    mask = np.zeros(scores.shape, dtype=bool)
    for i in range(rows):
        for left in range(0, cols - m + 1, m):
            best = min(
                combinations(range(left, left + m), n),
                key=lambda chosen: sum(scores[i, j] for j in chosen),
            )
            mask[i, list(best)] = True
    return mask


def brain_surgeon(
    weights: Array,
    inputs: Array,
    choose: Callable[[Array, int, int], Array],
    *,
    damping: float,
    block_size: int,
) -> tuple[Array, Array]:
    """SparseGPT from the formula of optimal brain surgeon, with an explicit inverse for every
    column.

    Column j of a row with remaining columns F = {j, ...}: removing it costs w_j^2 / [H_F^-1]_jj,
    and the others of F change by -w_j / [H_F^-1]_jj * [H_F^-1]_:j. ``choose(costs, left, right)``
    gives the mask of a block of columns. Within a block, costs are those before the block's own
    updates.
    """
    work = weights.copy()
    rows, cols = work.shape
    hessian = inputs.T @ inputs
    hessian = hessian + damping * np.mean(np.diag(hessian)) * np.eye(cols)
    mask = np.zeros(work.shape, dtype=bool)
    for left in range(0, cols, block_size):
        right = min(left + block_size, cols)
        costs = np.zeros((rows, right - left))
        for j in range(left, right):
            inverse = np.linalg.inv(hessian[j:, j:])
            costs[:, j - left] = work[:, j] ** 2 / inverse[0, 0]
        mask[:, left:right] = choose(costs, left, right)
        for j in range(left, right):
            inverse = np.linalg.inv(hessian[j:, j:])
            for i in range(rows):
                if mask[i, j]:
                    work[i, j:] -= work[i, j] / inverse[0, 0] * inverse[:, 0]
                    work[i, j] = 0.0
    return work, mask


def outlier_percent(scores: Sequence[Array], m: float) -> float:
    """OWL: percent of all scores of a block above m times their mean;
    ``scores`` is a list of matrices.
    """
    everything = [x for matrix in scores for row in matrix for x in row]
    mean = sum(everything) / len(everything)
    return float(100 * sum(x > m * mean for x in everything) / len(everything))
