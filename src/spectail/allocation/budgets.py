"""Budgets: values in given ratios and within bounds, whose weighted mean is the budget.

What a bound cuts off goes to the other values (water-filling). Published code loses it.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.errors import AllocationError

Array: TypeAlias = NDArray[np.float64]

_SMALLEST = 1e-100
"""Factors below this part of the largest count as zero, so that no quotient overflows.

Factors of real alphas are far larger.
"""


def fill(factors: Array, weights: Array, *, budget: float, bounds: tuple[float, float]) -> Array:
    """Return clip(c * factors, low, high), where c makes the mean by ``weights`` the budget.

    ``factors`` are at least 0, and at least one is positive. Units of factor 0 stay at the lower
    bound until all others are at the upper one; then they rise together. A larger factor never gets
    a smaller value.

    Raises:
        AllocationError: no values within the bounds have that mean.

    >>> fill(np.array([1.0, 1.0, 4.0]), np.ones(3), budget=0.5, bounds=(0.0, 0.9))
    array([0.3, 0.3, 0.9])

    """
    low, high = bounds
    if not low <= budget <= high:
        raise AllocationError(
            f"values from {low:g} to {high:g} cannot have the mean {budget:g}: widen the bounds"
        )
    share = weights / weights.sum()
    relative = factors / factors.max()
    relative[relative < _SMALLEST] = 0.0
    # Units of factor 0 come into play only if all others at their upper bound fall short.
    zero = relative == 0
    full = high * float(share[~zero].sum())
    if zero.any() and full + low * float(share[zero].sum()) <= budget:
        return np.where(zero, np.clip((budget - full) / share[zero].sum(), low, high), high)
    return np.asarray(
        np.clip(_scale(relative, share, budget=budget, bounds=bounds) * relative, low, high)
    )


def shift(values: Array, weights: Array, *, budget: float, bounds: tuple[float, float]) -> Array:
    """Return clip(values + c, low, high), where c makes the mean by ``weights`` the budget.

    Raises:
        AllocationError: no values within the bounds have that mean.

    >>> shift(np.array([0.1, 0.2, 0.9]), np.ones(3), budget=0.5, bounds=(0.0, 0.9)).round(6)
    array([0.25, 0.35, 0.9 ])

    """
    low, high = bounds
    if not low <= budget <= high:
        raise AllocationError(
            f"values from {low:g} to {high:g} cannot have the mean {budget:g}: widen the bounds"
        )
    share = weights / weights.sum()
    # The mean is piecewise linear in c and bends only where some value meets a bound, so
    # interpolating between these corners solves for it exactly.
    corners = np.unique(np.concatenate([low - values, high - values]))
    means = [float(share @ np.clip(values + corner, low, high)) for corner in corners]
    return np.asarray(np.clip(values + np.interp(budget, means, corners), low, high))


def _scale(relative: Array, share: Array, *, budget: float, bounds: tuple[float, float]) -> float:
    """Find the c of ``fill``.

    The mean is piecewise linear in c, with a corner wherever some unit meets a bound. A binary
    search finds the two corners around the budget; between them c follows from the slope.
    """
    low, high = bounds

    def mean(c: float) -> float:
        return float(share @ np.clip(c * relative, low, high))

    positive = relative[relative > 0]
    # c = 0, and for every unit the c at which it leaves the lower and reaches the upper bound.
    corners = np.unique(
        np.concatenate([[0.0], low / positive, high / positive if np.isfinite(high) else []])
    )
    after = bisect_left(corners, budget, key=mean)
    if after == 0 or (after == corners.size and np.isfinite(high)):
        return float(corners[min(after, corners.size - 1)])
    left = float(corners[after - 1])
    # Beyond the last corner (without an upper bound) any point shows which units are free.
    right = float(corners[after]) if after < corners.size else 2 * left + 1
    # Which units lie between their bounds does not change between two corners.
    middle = np.clip((left + right) / 2 * relative, low, high)
    free = (middle > low) & (middle < high)
    slope = float(share[free] @ relative[free])
    # No unit is free: the mean is constant here, and equals the budget up to rounding.
    if not slope > 0:
        return right
    return (budget - float(share[~free] @ middle[~free])) / slope
