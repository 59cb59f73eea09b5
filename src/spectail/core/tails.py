"""Fit power-law tails p(x) ~ x^-alpha for x >= xmin by maximum likelihood, natural logarithms.

``alpha = 1 + n / sum(ln(x_i / xmin))`` over the n eigenvalues at or above xmin, xmin included
(Clauset, Shalizi and Newman 2009, eq. 3.1). The Kolmogorov-Smirnov (KS) distance is the largest gap
between the fitted distribution and the share of the tail *below* each eigenvalue, as in the code of
the power-law literature. ``spectail.tail_fit``, which takes a matrix, is in ``measure``.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

_FIRST_LOOKS = 16
"""Points of each tail at which gaps are computed before the first full distance."""
_ROUNDING = 1e-12
"""Bounds and distances are equal up to rounding, so candidates this close to the best are computed
in full."""

NO_EXPONENT = "all eigenvalues of the tail are equal: no exponent describes them"
EQUAL = 0.02
"""Eigenvalues within this ratio of each other are equal up to rounding. Storing an orthogonal
matrix of any size in bfloat16 spreads its eigenvalues over 0.95 %, and in float16 over 0.12 %."""
_LARGE_SHARE = 0.1
"""This share of all eigenvalues is never within EQUAL of the largest by chance."""
_SINGLE_ROUNDING = 1e-6
"""The same ratio for smaller tails: what float32 does to equal eigenvalues."""
_TIES_MATTER = 0.01
"""Ties at xmin are mentioned if they can move alpha - 1 by this ratio."""


class PowerLaw(NamedTuple):
    """A fitted tail: exponent, ``xmin``, KS distance and number of eigenvalues in the tail."""

    alpha: float
    xmin: float
    ks: float
    n_tail: int


def fit_from(eigenvalues: Array, start: int) -> PowerLaw:
    """Fit the tail of ascending positive eigenvalues that starts at index ``start``.

    Eigenvalues equal to xmin all belong to the tail. alpha is inf if all tail eigenvalues are
    equal.
    """
    xmin = float(eigenvalues[start])
    tail = eigenvalues[np.searchsorted(eigenvalues, xmin, side="left") :]
    logs = np.log(tail / xmin)
    total = float(logs.sum())
    # Equal eigenvalues: the likelihood grows without limit as alpha does.
    if total <= 0:
        return PowerLaw(math.inf, xmin, math.nan, tail.size)
    alpha = 1 + tail.size / total
    return PowerLaw(alpha, xmin, float(_gaps(logs, alpha).max()), tail.size)


def why_no_exponent(eigenvalues: Array, tail: PowerLaw) -> str:
    """Return why no exponent describes a tail, or an empty string.

    A tail of equal eigenvalues has none. Rounding spreads them a little, which would give an alpha
    of hundreds to millions with a small error bar. So eigenvalues within EQUAL of each other count
    as equal, unless they are a small part of the spectrum: a few of many are always close.
    """
    if not math.isfinite(tail.alpha):
        return NO_EXPONENT
    largest = eigenvalues[-1]
    if largest <= (1 + EQUAL) * eigenvalues[0]:
        return "all eigenvalues equal up to rounding: no exponent describes them"
    close = eigenvalues.size - np.searchsorted(eigenvalues, largest / (1 + EQUAL))
    # A search over xmin may choose a few of the many that are equal.
    near = EQUAL if close >= _LARGE_SHARE * eigenvalues.size else _SINGLE_ROUNDING
    if largest <= (1 + near) * tail.xmin:
        return "all eigenvalues of the tail equal up to rounding: no exponent describes them"
    return ""


def remark_on_ties(eigenvalues: Array, tail: PowerLaw, rounding: float) -> str:
    """Return a remark if alpha depends on how eigenvalues near xmin were rounded, or nothing.

    Ternary, sparse and quantised weights have many equal eigenvalues. Rounding decides which of
    those equal to xmin lie at or above it; ``rounding`` is the largest error of an eigenvalue.
    """
    first, after = np.searchsorted(
        eigenvalues, [tail.xmin - rounding, np.nextafter(tail.xmin + rounding, math.inf)]
    )
    most, least = eigenvalues.size - first, eigenvalues.size - after + 1
    if most - least < _TIES_MATTER * tail.n_tail:
        return ""
    # ln(x / xmin) is 0 for eigenvalues equal to xmin, so only the number in the tail changes.
    low, high = (1 + (tail.alpha - 1) * size / tail.n_tail for size in (least, most))
    return (
        f"{after - first} eigenvalues are equal to xmin up to rounding: "
        f"alpha moves with rounding, from {low:.3g} to {high:.3g}"
    )


def best_ks_start(eigenvalues: Array, first: int, stop: int) -> int:
    """Return the index in [first, stop) whose tail has the least KS distance to its fit.

    Of equal distances the first index wins; ``first`` is returned if no tail can be fitted.

    The search is exact and uses cutting planes. Each candidate has a lower bound of its distance:
    the largest gap at the points evaluated so far. The candidate with the least bound is computed
    in full. Where its gap is largest, its neighbours have large gaps too, so that point is
    evaluated for all remaining candidates. The search ends when no bound is below the best
    distance. A plain scan takes time proportional to N^2; this search computes a handful of
    distances in full, even if the whole spectrum is a power law (a test counts them, and
    ``benchmarks/fit.py`` measures the time).
    """
    if stop - first < 1:
        return min(first, eigenvalues.size - 1)
    logs = np.log(eigenvalues / _power_of_two(eigenvalues[-1]))
    left = _candidates(eigenvalues, logs, first, stop)
    # A few points spread over every tail give first bounds that already exclude most candidates.
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
        # A tail that starts above the worst point is evaluated at its own first eigenvalue.
        left = left.look_at(logs, np.maximum(left.starts, start + worst))
        left = left.keep(left.bounds <= best * (1 + _ROUNDING))
    return best_start


def _candidates(eigenvalues: Array, logs: Array, first: int, stop: int) -> _Candidates:
    """Return every xmin in [first, stop) whose tail can be fitted, with bounds of zero."""
    starts = np.arange(first, stop)
    # Of equal eigenvalues only the first can be xmin: its tail holds them all.
    starts = starts[(starts == 0) | (eigenvalues[starts] > eigenvalues[starts - 1])]
    sizes = eigenvalues.size - starts
    # sum(ln(x / xmin)) of every tail at once: a cumulative sum from the top, less n ln(xmin).
    tail_sums = np.cumsum(logs[::-1])[::-1][starts] - sizes * logs[starts]
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = sizes / tail_sums
    # A tail of equal eigenvalues has a sum of zero, or of either sign by rounding: no exponent.
    usable = np.isfinite(slopes) & (slopes > 0)
    bounds = np.zeros(int(usable.sum()))
    return _Candidates(starts[usable], sizes[usable], slopes[usable], bounds)


class _Candidates(NamedTuple):
    """Possible xmin: their index, tail size, alpha - 1 and the largest gap computed so far."""

    starts: NDArray[np.intp]
    sizes: NDArray[np.intp]
    slopes: Array
    bounds: Array

    def look_at(self, logs: Array, points: NDArray[np.intp]) -> _Candidates:
        """Raise every bound to the gap at ``points``, the index of one eigenvalue for each tail."""
        # Fitted distribution minus the share of the tail below the point, as in _gaps.
        gaps = (
            1
            - np.exp(-self.slopes * (logs[points] - logs[self.starts]))
            - (points - self.starts) / self.sizes
        )
        return self._replace(bounds=np.maximum(self.bounds, np.abs(gaps)))

    def keep(self, which: NDArray[np.bool_]) -> _Candidates:
        """Return only these candidates."""
        return _Candidates(
            self.starts[which], self.sizes[which], self.slopes[which], self.bounds[which]
        )


def _gaps(logs: Array, alpha: float) -> Array:
    """Return the gap between fit and data at each eigenvalue, given ascending ln(x / xmin)."""
    below = np.arange(logs.size) / logs.size
    gaps: Array = np.abs(1 - np.exp((1 - alpha) * logs) - below)
    return gaps


def _power_of_two(value: float) -> float:
    """Return the largest power of two up to a positive value, so that dividing by it is exact.

    Exact scaling cannot change the order of two xmin that fit almost equally well.
    """
    return math.ldexp(1.0, math.frexp(value)[1] - 1)
