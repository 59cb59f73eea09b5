"""Power-law tails: p(x) ~ x^-alpha for x >= xmin, natural logarithms, alpha by maximum likelihood.

``alpha = 1 + n / sum(ln(x_i / xmin))`` over the n eigenvalues at or above xmin, xmin counted
(Clauset, Shalizi and Newman 2009, eq. 3.1). The Kolmogorov-Smirnov distance compares the fit with
the share of the tail *below* each eigenvalue, as the power-law literature's code does.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

_FIRST_LOOKS = 16
"""Points of each tail that are looked at before the first distance is computed."""
_ROUNDING = 1e-12
"""Bounds and distances are the same numbers up to rounding: candidates this close are computed in
full."""


class PowerLaw(NamedTuple):
    """A fitted tail: p(x) ~ x^-alpha from ``xmin`` up, with its KS distance and the size of the tail."""

    alpha: float
    xmin: float
    ks: float
    n_tail: int


def fit_from(eigenvalues: Array, start: int) -> PowerLaw:
    """Fit the tail of ascending positive eigenvalues that starts at index ``start``; ties of xmin belong to the tail.

    alpha is inf where all tail eigenvalues are equal.
    """
    xmin = float(eigenvalues[start])
    tail = eigenvalues[np.searchsorted(eigenvalues, xmin, side="left") :]
    logs = np.log(tail / xmin)
    total = float(logs.sum())
    if total <= 0:
        return PowerLaw(math.inf, xmin, math.nan, tail.size)
    alpha = 1 + tail.size / total
    return PowerLaw(alpha, xmin, float(_gaps(logs, alpha).max()), tail.size)


def best_ks_start(eigenvalues: Array, first: int, stop: int) -> int:
    """Index in [first, stop) whose tail has the least KS distance (the first of equals); ``first`` where none fits.

    Exact, by cutting planes. Every candidate has a lower bound of its distance: the largest gap at
    the points looked at so far. The candidate with the least bound is computed in full; where its
    gap is largest, neighbours have large gaps too, so that point is looked at for all candidates
    left. Ends when no bound is below the best distance. The plain scan grows with the square of N;
    this one computes a handful of distances in full, on a power law throughout too (a test counts
    them; ``benchmarks/fit.py`` takes the time).
    """
    if stop - first < 1:
        return min(first, eigenvalues.size - 1)
    logs = np.log(eigenvalues / _power_of_two(eigenvalues[-1]))
    starts = np.arange(first, stop)
    # Of equal eigenvalues only the first can be xmin: its tail holds them all.
    starts = starts[(starts == 0) | (eigenvalues[starts] > eigenvalues[starts - 1])]
    sizes = eigenvalues.size - starts
    tail_sums = np.cumsum(logs[::-1])[::-1][starts] - sizes * logs[starts]
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = sizes / tail_sums
    usable = np.isfinite(slopes) & (slopes > 0)
    left = _Candidates(starts[usable], sizes[usable], slopes[usable], np.zeros(int(usable.sum())))
    for share in np.linspace(0, 1, _FIRST_LOOKS):
        left = left.look_at(logs, left.starts + np.floor(share * (left.sizes - 1)).astype(int))
    best, best_start = math.inf, first
    while left.starts.size:
        i = int(np.argmin(left.bounds))
        start = int(left.starts[i])
        gaps = _gaps(logs[start:] - logs[start], 1 + left.slopes[i])
        worst = int(np.argmax(gaps))
        if (gaps[worst], start) < (best, best_start) or best == math.inf:
            best, best_start = float(gaps[worst]), start
        left.bounds[i] = math.inf
        left = left.look_at(logs, np.maximum(left.starts, start + worst))
        left = left.keep(left.bounds <= best * (1 + _ROUNDING))
    return best_start


class _Candidates(NamedTuple):
    """Possible xmin: index of each, size of its tail, alpha - 1, and the largest gap seen so far."""

    starts: NDArray[np.intp]
    sizes: NDArray[np.intp]
    slopes: Array
    bounds: Array

    def look_at(self, logs: Array, points: NDArray[np.intp]) -> _Candidates:
        """Raise every bound to the gap at ``points``, one index of an eigenvalue in each tail."""
        gaps = (
            1
            - np.exp(-self.slopes * (logs[points] - logs[self.starts]))
            - (points - self.starts) / self.sizes
        )
        return self._replace(bounds=np.maximum(self.bounds, np.abs(gaps)))

    def keep(self, which: NDArray[np.bool_]) -> _Candidates:
        """Only these candidates."""
        return _Candidates(
            self.starts[which], self.sizes[which], self.slopes[which], self.bounds[which]
        )


def _gaps(logs: Array, alpha: float) -> Array:
    """Gaps between the fit and the share of the tail below each eigenvalue; ``logs`` = ln(x / xmin), ascending."""
    below = np.arange(logs.size) / logs.size
    gaps: Array = np.abs(1 - np.exp((1 - alpha) * logs) - below)
    return gaps


def _power_of_two(value: float) -> float:
    """The power of two next below a positive value: dividing by it is exact, so scale cannot move a near tie."""
    return math.ldexp(1.0, math.frexp(value)[1] - 1)
