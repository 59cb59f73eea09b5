"""What independent entries of equal variance show: the Marchenko-Pastur law by quadrature, and
dense simulation.

For m x n entries of variance 1, c = m / n <= 1, the eigenvalues of X X^T / n lie in (1 - sqrt(c))^2
to (1 + sqrt(c))^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.optimize import brentq

Array = NDArray[np.float64]


def edges(ratio: float) -> tuple[float, float]:
    """Lower and upper edge of the law."""
    return (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2


def density(x: float, ratio: float) -> float:
    """sqrt((b - x)(x - a)) / (2 pi c x) between the edges a and b, 0 outside."""
    low, high = edges(ratio)
    if not low < x < high:
        return 0.0
    return math.sqrt((high - x) * (x - low)) / (2 * math.pi * ratio * x)


def mass_above(xmin: float, ratio: float) -> float:
    """Probability of an eigenvalue at or above xmin."""
    return _integral(lambda x: 1.0, xmin, ratio)


def alpha_above(xmin: float, ratio: float) -> float:
    """1 + P(x >= xmin) / E[ln(x / xmin); x >= xmin]."""
    return 1 + mass_above(xmin, ratio) / _integral(lambda x: math.log(x / xmin), xmin, ratio)


def alpha_of_top(fraction: float, ratio: float) -> float:
    """Alpha of the largest ``fraction`` of the law."""
    low, high = edges(ratio)
    xmin = brentq(lambda x: mass_above(x, ratio) - fraction, low + 1e-9, high - 1e-9, xtol=1e-12)
    return alpha_above(xmin, ratio)


def pooled_eigenvalues(m: int, n: int, windows: int, rng: np.random.Generator) -> Array:
    """Ascending eigenvalues of X X^T, pooled over dense Gaussian m x n matrices."""
    drawn = torch.from_numpy(rng.standard_normal((windows, m, n)))
    return np.sort(torch.linalg.svdvals(drawn).numpy() ** 2, axis=None)


def _integral(function: Callable[[float], float], xmin: float, ratio: float) -> float:
    low, high = edges(ratio)
    value, _ = quad(lambda x: function(x) * density(x, ratio), max(xmin, low), high, limit=400)
    return float(value)
