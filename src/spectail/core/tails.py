"""Power-law tails: p(x) ~ x^-alpha for x >= xmin, natural logarithms, alpha by maximum likelihood.

``alpha = 1 + n / sum(ln(x_i / xmin))`` over the n eigenvalues at or above xmin, xmin counted (Clauset, Shalizi and
Newman 2009, eq. 3.1). The Kolmogorov-Smirnov distance compares the fit with the share of the tail *below* each
eigenvalue, as the power-law literature's code does.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

_PROBES = 48
"""Points of each tail at which a lower bound of its KS distance is taken before the exact distance is computed."""


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
    return PowerLaw(alpha, xmin, _ks_distance(logs, alpha), tail.size)


def best_ks_start(eigenvalues: Array, first: int, stop: int) -> int:
    """Index in [first, stop) whose tail has the least KS distance (the first of equals); ``first`` where none fits.

    Exact: every candidate gets a lower bound of its distance from a few points of its tail, and the true distance is
    computed in order of the bounds until no bound can beat the best. The plain scan grows with the square of N.
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
    starts, sizes, slopes = starts[usable], sizes[usable], slopes[usable]
    if not starts.size:
        return first
    bounds = np.zeros(starts.size)
    for share in np.linspace(0, 1, _PROBES):
        offset = np.floor(share * (sizes - 1)).astype(int)
        gap = 1 - np.exp(-slopes * (logs[starts + offset] - logs[starts])) - offset / sizes
        np.maximum(bounds, np.abs(gap), out=bounds)
    best, best_start = math.inf, first
    for i in np.argsort(bounds, kind="stable"):
        if bounds[i] > best:
            break
        start = int(starts[i])
        distance = _ks_distance(logs[start:] - logs[start], 1 + slopes[i])
        if distance < best or (distance == best and start < best_start):
            best, best_start = distance, start
    return best_start


def _ks_distance(logs: Array, alpha: float) -> float:
    """Largest gap between the fit and the empirical distribution; ``logs`` = ln(x / xmin), ascending."""
    below = np.arange(logs.size) / logs.size
    return float(np.max(np.abs(1 - np.exp((1 - alpha) * logs) - below)))


def _power_of_two(value: float) -> float:
    """The power of two next below a positive value: dividing by it is exact, so scale cannot move a near tie."""
    return math.ldexp(1.0, math.frexp(value)[1] - 1)
