"""The two-way jackknife of alpha by loops: leave out a row band, a column band, a window; refit;
add the variances.

Variance = rows + columns - single windows, and never less than the last (Cameron, Gelbach and
Miller 2011).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Windows = Mapping[tuple[int, int], Sequence[float] | NDArray[Any]]


def standard_error(windows: Windows, alpha: Callable[[Array], float]) -> float:
    """Standard error from eigenvalues by (row band, column band);
    ``alpha`` fits ascending eigenvalues.
    """
    by_row = _variance(windows, lambda place: place[0], alpha)
    by_column = _variance(windows, lambda place: place[1], alpha)
    single = _variance(windows, lambda place: place, alpha)
    return math.sqrt(max(by_row + by_column - single, single))


def _variance(
    windows: Windows, group_of: Callable[[tuple[int, int]], Any], alpha: Callable[[Array], float]
) -> float:
    groups = sorted({group_of(place) for place in windows})
    alphas = []
    for left_out in groups:
        kept: list[float] = []
        for place, eigenvalues in windows.items():
            if group_of(place) != left_out:
                kept += list(eigenvalues)
        alphas.append(alpha(np.array(sorted(kept))))
    mean = sum(alphas) / len(alphas)
    return (len(groups) - 1) / len(groups) * sum([(a - mean) ** 2 for a in alphas])
