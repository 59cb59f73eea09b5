"""The FARMS estimator as plainly as it can be said: one SVD per window, a loop over every xmin,
float64 throughout.

An eigenvalue is a squared singular value; windows are (rows, cols) cut at (top, left) corners.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Fit(NamedTuple):
    """A tail: p(x) ~ x^-alpha from xmin up."""

    alpha: float
    xmin: float
    ks: float
    n_tail: int


def pooled_eigenvalues(
    matrices: Sequence[NDArray[Any]], shape: tuple[int, int], corners: Iterable[tuple[int, int]]
) -> Array:
    """Squared singular values of every window of every matrix, ascending."""
    rows, cols = shape
    pooled: list[float] = []
    for matrix in matrices:
        wide = torch.from_numpy(np.array(matrix)).to(
            torch.complex128 if np.iscomplexobj(matrix) else torch.float64
        )
        for top, left in corners:
            window = wide[top : top + rows, left : left + cols]
            pooled += [s * s for s in torch.linalg.svdvals(window).tolist()]
    return np.array(sorted(pooled))


def fit_at_or_above(eigenvalues: Array, xmin: float) -> Fit:
    """Alpha = 1 + n / sum ln(x / xmin) over all x >= xmin, and the largest
    |model - share of the tail below x|.
    """
    tail = eigenvalues[eigenvalues >= xmin]
    n, total = len(tail), float(np.sum(np.log(tail / xmin)))
    if total == 0:
        return Fit(math.inf, xmin, math.nan, n)
    alpha = 1 + n / total
    model = 1 - (tail / xmin) ** (1 - alpha)
    return Fit(alpha, xmin, float(np.max(np.abs(model - np.arange(n) / n))), n)


def fit_best_ks(eigenvalues: Array, candidates: Iterable[float]) -> Fit:
    """The candidate xmin with the least KS distance; the first where two are equal."""
    best = Fit(math.nan, math.nan, math.inf, 0)
    for xmin in candidates:
        if xmin >= eigenvalues[-1]:
            continue
        fit = fit_at_or_above(eigenvalues, xmin)
        if fit.ks < best.ks:
            best = fit
    return best


def histogram_peak(eigenvalues: Array, bins: int = 100) -> float:
    """Left edge of the fullest of ``bins`` equal bins of log10(eigenvalue), as an eigenvalue."""
    logs = np.log10(eigenvalues)
    edges = np.linspace(logs.min(), logs.max(), bins + 1)
    counts = [int(np.sum((logs >= low) & (logs < high))) for low, high in itertools.pairwise(edges)]
    counts[-1] += int(np.sum(logs == edges[-1]))
    return float(10 ** edges[int(np.argmax(counts))])


def near_peak(eigenvalues: Array, *, log_lower_bound: bool) -> list[float]:
    """Eigenvalues from 0.95 peak to 1.5 peak; the published code compares
    with log10(0.95 peak) from below.
    """
    peak = histogram_peak(eigenvalues)
    low = math.log10(0.95 * peak) if log_lower_bound else 0.95 * peak
    return [x for x in eigenvalues[:-1].tolist() if low <= x <= 1.5 * peak]


def fit(eigenvalues: Array, cutoff: str, *, legacy: bool = False) -> Fit:
    """The fit by the cutoff's short text: ``median``, ``ks``, ``peak``, ``top:F`` or
    ``fixed:X``."""
    kind, _, number = cutoff.partition(":")
    size = len(eigenvalues)
    if kind == "ks":
        return fit_best_ks(eigenvalues, eigenvalues[:-1].tolist())
    if kind == "peak":
        return fit_best_ks(eigenvalues, near_peak(eigenvalues, log_lower_bound=legacy))
    if kind == "fixed":
        return fit_at_or_above(
            eigenvalues, min(x for x in eigenvalues.tolist() if x >= float(number))
        )
    start = size // 2 if kind == "median" else size - max(1, math.floor(float(number) * size + 0.5))
    return fit_at_or_above(eigenvalues, float(eigenvalues[start]))
