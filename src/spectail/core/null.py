"""Alpha of random matrices (the null): the Marchenko-Pastur law and seeded simulations.

X is m x n with m <= n and independent entries of variance v; ratio = m / n. As m and n grow, the
non-zero eigenvalues of X X^T, divided by n v, follow a law with the support [(1 - sqrt(ratio))^2,
(1 + sqrt(ratio))^2] (Marchenko and Pastur 1967). A window of m real rows differs from it by a term
in 1 / m, which windows of complex entries lack (Bai and Silverstein, Annals of Probability 32,
2004). It moves the median alpha of square windows by -0.0006 at m = 1024 and by -0.009 at m = 64.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.core.tails import fit_from
from spectail.core.windows import Window

Array: TypeAlias = NDArray[np.float64]

_SIMULATED_SIDE = 256
"""Longest short side at which the spread of a null is simulated, since time grows with it alone.
Results for larger windows are scaled from it."""
_SMOOTH_WINDOWS, _SMOOTH_DRAWS = 4, 64
"""For median and top:F only the spread is simulated, and then scaled: many draws of few windows."""
_SEARCH_EIGENVALUES, _SEARCH_DRAWS = 20_000, 12
"""For ks and peak the mean is simulated too, and it depends on the number of eigenvalues: few large
draws."""
_TAIL = 30
"""Least number of eigenvalues in the tail of a smooth draw, if the layer has as many. A tail of one
has no alpha."""
_POINTS = 20_001
_LEAST_IN_TAIL = 0.5
"""Eigenvalues of a window that the tail must hold for the term in 1 / m to be used as it is."""


def marchenko_pastur_density(x: Array, ratio: float, variance: float = 1.0) -> Array:
    """Return the Marchenko-Pastur density at eigenvalues ``x`` of X X^T / n.

    ``ratio`` is m / n in (0, 1], ``variance`` that of the entries.
    """
    lower, upper = variance * (1 - math.sqrt(ratio)) ** 2, variance * (1 + math.sqrt(ratio)) ** 2
    x = np.asarray(x, dtype=np.float64)
    inside = (x > max(lower, 0.0)) & (x < upper)
    # Outside the support the formula divides by zero or takes roots of negative numbers.
    safe = np.where(inside, x, 1.0)
    root = np.sqrt(np.clip((upper - safe) * (safe - lower), 0, None))
    return np.where(inside, root / (2 * math.pi * ratio * variance * safe), 0.0)


@lru_cache(maxsize=256)
def _marchenko_pastur_nodes(ratio: float) -> tuple[Array, Array]:
    """Return eigenvalues and their probabilities on a grid of 20,001 points.

    The points are midpoints in an angle, which removes the square-root singularities at both edges
    of the law.
    """
    angle = (np.arange(_POINTS) + 0.5) * math.pi / _POINTS
    # dx is proportional to sin(angle) d(angle), hence the factor in the weights.
    x = 1 + ratio - 2 * math.sqrt(ratio) * np.cos(angle)
    weights = marchenko_pastur_density(x, ratio) * np.sin(angle)
    return x, weights / weights.sum()


def _term_of_real_windows() -> Array:
    """Return the term in 1 / m as weights of the nodes: m times what is added to their probability.

    By Bai and Silverstein (2004) it is a quarter of a point mass at either edge of the law, less
    half of the arcsine law between them, which is uniform in the angle of the nodes.
    """
    term = np.full(_POINTS, -0.5 / _POINTS)
    term[[0, -1]] += 0.25
    return term


@lru_cache(maxsize=1024)
def marchenko_pastur_alpha(
    ratio: float,
    *,
    fraction: float | None = None,
    xmin: float | None = None,
    side: float = math.inf,
) -> float:
    """Return alpha of the law's tail: its largest ``fraction``, or all eigenvalues above ``xmin``.

    ``xmin`` is for variance 1 and divided by n. The result is NaN if it lies above the law's upper
    edge. ``side`` is the short side of windows of real entries; without it the result is the limit
    of large windows. If windows have less than one eigenvalue in the tail on average, the result is
    too large (by a sixth at a third of an eigenvalue).
    """
    x, weights = _marchenko_pastur_nodes(ratio)
    share = float(weights[x >= xmin].sum()) if xmin is not None else fraction
    if share is None:
        raise ValueError("give fraction or xmin")
    if share <= 0:
        return math.nan
    # In smaller windows the point mass at the upper edge would be the whole tail.
    weights = weights + _term_of_real_windows() / max(side, _LEAST_IN_TAIL / share)
    if xmin is None:
        # Probability above each node; -above ascends with x, as np.interp requires.
        above = np.cumsum(weights[::-1])[::-1]
        xmin = float(np.interp(-share, -above, x))
    # 1 + 1 / E[ln(x / xmin)] over the tail: the maximum-likelihood alpha of infinitely many values.
    tail = x >= xmin
    mass = float(weights[tail].sum())
    return 1 + mass / float((weights[tail] * np.log(x[tail] / xmin)).sum())


def alpha_of_random_windows(
    window: Window,
    *,
    is_complex: bool,
    fraction: float | None = None,
    xmin: float | None = None,
) -> float:
    """Return ``marchenko_pastur_alpha`` of windows of a shape, of real or of complex entries."""
    short, long = min(window), max(window)
    side = math.inf if is_complex else short
    return marchenko_pastur_alpha(short / long, fraction=fraction, xmin=xmin, side=side)


class Rule(Hashable, Protocol):
    """The part of a cutoff that the simulation uses; it is hashable because draws are cached."""

    @property
    def share(self) -> float | None:
        """The share of the eigenvalues that it selects, if that is one number for all spectra."""

    def start(self, eigenvalues: Array) -> int:
        """Return the index of xmin in the ascending eigenvalues."""


def null_by_simulation(
    window: Window,
    n_windows: int,
    cutoff: Rule,
    *,
    smooth: bool,
    seed: int = 0,
    is_complex: bool = False,
) -> tuple[float, float]:
    """Return mean and standard deviation of alpha over draws of Gaussian windows.

    A sum of a smooth function over the eigenvalues of a window fluctuates by O(1) whatever the size
    of the window, so the spread of alpha falls as 1 / (side * sqrt(windows)). A limited number of
    windows is drawn, and the spread is scaled to the number asked for; for ``smooth`` cutoffs it is
    scaled to larger sides too. For the other cutoffs the mean may depend on the number of windows,
    and is that of the number drawn. The spread is NaN if a draw has no alpha.
    """
    short, long = min(window), max(window)
    # Scaling keeps the ratio of the sides, which decides the law.
    scale = min(1.0, _SIMULATED_SIDE / short) if smooth else 1.0
    m, n = round(short * scale), round(long * scale)
    most = max(1, _SEARCH_EIGENVALUES // m)
    if smooth:
        most = max(_SMOOTH_WINDOWS, math.ceil(_TAIL / (m * (cutoff.share or 1.0))))
    drawn = min(n_windows, most)
    draws = _SMOOTH_DRAWS if smooth else _SEARCH_DRAWS
    alphas = _drawn_alphas(_Windows(m, n, drawn, is_complex), draws, cutoff, seed)
    if cutoff.share is None:
        mean = float(alphas.mean())
    else:  # alpha of all draws together; the mean of tails of few values would be too large
        mean = 1 + 1 / float((1 / (alphas - 1)).mean())
    if not np.isfinite(alphas).all():
        return mean, math.nan
    # Undo both reductions with the 1 / (side * sqrt(windows)) law.
    spread = float(alphas.std(ddof=1))
    return mean, spread * (m / short) * math.sqrt(drawn / n_windows)


class _Windows(NamedTuple):
    """The Gaussian windows of one draw: ``number`` matrices of m x n entries."""

    m: int
    n: int
    number: int
    is_complex: bool


@lru_cache(maxsize=1024)
def _drawn_alphas(windows: _Windows, draws: int, cutoff: Rule, seed: int) -> Array:
    """Return alpha of each draw; cached, since all layers with one window share it."""
    pool = _gaussian_pool(windows, draws, seed)
    return np.array([fit_from(draw, cutoff.start(draw)).alpha for draw in pool])


def _gaussian_pool(windows: _Windows, count: int, seed: int) -> list[Array]:
    """Return the sorted pooled eigenvalues of the windows of each draw.

    The bidiagonal form of a Gaussian matrix has independent chi variables on its two diagonals
    (Dumitriu and Edelman 2002). Its eigenvalues follow the same law as those of the dense matrix
    and cost only a tridiagonal solve.
    """
    # The shape is part of the seed, so that draws of different windows are independent.
    rng = np.random.default_rng((seed, windows.m, windows.n))
    draws = []
    for _ in range(count):
        found = [_bidiagonal_eigenvalues(rng, windows) for _ in range(windows.number)]
        draws.append(np.sort(np.concatenate(found)))
    return draws


def _bidiagonal_eigenvalues(rng: np.random.Generator, windows: _Windows) -> Array:
    """Return the eigenvalues of X X^H for one random Gaussian m x n matrix X."""
    # scipy.linalg is slow to import and needed only if a null is simulated.
    from scipy.linalg import eigvalsh_tridiagonal

    m, n = windows.m, windows.n
    # A complex entry has two degrees of freedom, of which each adds a half to its square.
    degrees = 2 if windows.is_complex else 1
    diagonal = rng.chisquare(degrees * np.arange(n, n - m, -1)) / degrees
    below = rng.chisquare(degrees * np.arange(m - 1, 0, -1)) / degrees
    # B B^T of a bidiagonal B is tridiagonal; chisquare draws are the squares of B's entries.
    main = diagonal + np.concatenate([[0.0], below])
    side = np.sqrt(below * diagonal[:-1])
    eigenvalues: Array = eigvalsh_tridiagonal(main, side)
    # Rounding can make the smallest eigenvalue of a square window zero or negative.
    return np.clip(eigenvalues, np.finfo(float).tiny, None)
