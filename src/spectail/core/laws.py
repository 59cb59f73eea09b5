"""What a matrix of independent entries of equal variance would show: the Marchenko-Pastur law, and alpha under it.

X is m x n with m <= n and entry variance v, ratio = m / n. The non-zero eigenvalues of X X^T,
divided by n v, follow the law on [(1 - sqrt(ratio))^2, (1 + sqrt(ratio))^2] (Marchenko and Pastur
1967) as m, n grow.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from functools import lru_cache
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.core.tails import fit_from
from spectail.core.windows import Window

Array: TypeAlias = NDArray[np.float64]

_SIMULATED_SIDE = 256
"""Longest side that the spread of a null is simulated at; larger windows are scaled from there."""
_SMOOTH_WINDOWS, _SMOOTH_DRAWS = 4, 64
"""For median and top:F only the spread is drawn, and it is scaled: many draws of few windows."""
_SEARCH_EIGENVALUES, _SEARCH_DRAWS = 20_000, 12
"""For ks and peak the mean is drawn too, which depends on the number of eigenvalues: few large
draws."""
_POINTS = 20_001


def marchenko_pastur_density(x: Array, ratio: float, variance: float = 1.0) -> Array:
    """Density of the law at eigenvalues ``x`` of X X^T / n, for m / n = ``ratio`` in (0, 1] and entry ``variance``."""
    lower, upper = variance * (1 - math.sqrt(ratio)) ** 2, variance * (1 + math.sqrt(ratio)) ** 2
    x = np.asarray(x, dtype=np.float64)
    inside = (x > max(lower, 0.0)) & (x < upper)
    safe = np.where(inside, x, 1.0)
    root = np.sqrt(np.clip((upper - safe) * (safe - lower), 0, None))
    return np.where(inside, root / (2 * math.pi * ratio * variance * safe), 0.0)


@lru_cache(maxsize=256)
def _marchenko_pastur_nodes(ratio: float) -> tuple[Array, Array]:
    """Eigenvalues and their probabilities: midpoints in the angle that takes out both square-root edges."""
    angle = (np.arange(_POINTS) + 0.5) * math.pi / _POINTS
    x = 1 + ratio - 2 * math.sqrt(ratio) * np.cos(angle)
    weights = marchenko_pastur_density(x, ratio) * np.sin(angle)
    return x, weights / weights.sum()


def marchenko_pastur_alpha(
    ratio: float, *, fraction: float | None = None, xmin: float | None = None
) -> float:
    """Alpha of the law's tail: its largest ``fraction``, or everything from ``xmin`` (for variance 1, divided by n) up.

    NaN where ``xmin`` lies above the law's upper edge.
    """
    x, weights = _marchenko_pastur_nodes(ratio)
    above = np.cumsum(weights[::-1])[::-1]
    if xmin is None:
        if fraction is None:
            raise ValueError("give fraction or xmin")
        xmin = float(np.interp(-fraction, -above, x))
    tail = x >= xmin
    mass = float(weights[tail].sum())
    if mass <= 0:
        return math.nan
    return 1 + mass / float((weights[tail] * np.log(x[tail] / xmin)).sum())


class Rule(Hashable, Protocol):
    """What the simulation needs of a cutoff; equal settings must compare and hash equal, for draws are kept."""

    def start(self, eigenvalues: Array) -> int:
        """Index of xmin in the ascending eigenvalues."""


def null_by_simulation(
    window: Window, n_windows: int, cutoff: Rule, *, smooth: bool, seed: int = 0
) -> tuple[float, float]:
    """Mean and spread of alpha over draws of a limited number of Gaussian windows each.

    The sum over a window of any smooth function of its eigenvalues fluctuates by O(1) whatever the
    window's size, so alpha's spread falls as 1 / (side * sqrt(windows)): larger counts, and for
    ``smooth`` cutoffs larger sides, are scaled down to what is affordable. For the others the mean
    depends on the count too and is that of the count drawn.
    """
    short, long = min(window), max(window)
    scale = min(1.0, _SIMULATED_SIDE / long) if smooth else 1.0
    m, n = max(2, round(short * scale)), max(2, round(long * scale))
    drawn = (
        min(n_windows, _SMOOTH_WINDOWS)
        if smooth
        else max(1, min(n_windows, _SEARCH_EIGENVALUES // m))
    )
    draws = _SMOOTH_DRAWS if smooth else _SEARCH_DRAWS
    alphas = _drawn_alphas(m, n, drawn, draws, cutoff, seed)
    spread = float(alphas.std(ddof=1)) * (m / short) * math.sqrt(drawn / n_windows)
    return float(alphas.mean()), spread


@lru_cache(maxsize=1024)
def _drawn_alphas(m: int, n: int, n_windows: int, draws: int, cutoff: Rule, seed: int) -> Array:
    pool = _gaussian_pool(m, n, n_windows, draws, seed)
    return np.array([fit_from(draw, cutoff.start(draw)).alpha for draw in pool])


def _gaussian_pool(m: int, n: int, n_windows: int, count: int, seed: int) -> list[Array]:
    """Sorted pooled eigenvalues of ``n_windows`` Gaussian m x n windows, once per draw.

    Drawn through the bidiagonal form of a Gaussian matrix (Dumitriu and Edelman 2002): the same law
    as the dense matrix at the cost of a tridiagonal solve, independent chi variables on two
    diagonals.
    """
    rng = np.random.default_rng((seed, m, n))
    draws = []
    for _ in range(count):
        windows = [_bidiagonal_eigenvalues(rng, m, n) for _ in range(n_windows)]
        draws.append(np.sort(np.concatenate(windows)))
    return draws


def _bidiagonal_eigenvalues(rng: np.random.Generator, m: int, n: int) -> Array:
    from scipy.linalg import (
        eigvalsh_tridiagonal,
    )  # slow to import, and needed only where a null is drawn

    diagonal = rng.chisquare(np.arange(n, n - m, -1))
    below = rng.chisquare(np.arange(m - 1, 0, -1))
    main = diagonal + np.concatenate([[0.0], below])
    side = np.sqrt(below * diagonal[:-1])
    eigenvalues: Array = eigvalsh_tridiagonal(main, side)
    return np.clip(eigenvalues, np.finfo(float).tiny, None)
