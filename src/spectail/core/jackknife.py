"""The error bar of alpha: how much alpha would move if the layer were drawn again.

A jackknife on disjoint windows. Entries of a matrix depend on each other along rows and along
columns, so windows are not independent: whole bands of rows and of columns are left out in turn,
and the windows that both count are taken off once (the two-way clustering of Cameron, Gelbach and
Miller 2011). (alpha - 1) / sqrt(n), made for independent samples, is several times too large on
eigenvalues, which repel each other.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.core.cutoffs import Cutoff

Array: TypeAlias = NDArray[np.float64]

MAX_BANDS = 16
"""More bands per side are merged: the estimate is no worse, and refits grow with the square of
it."""


def alpha_standard_error(eigenvalues: Array, zero: NDArray[np.bool_], cutoff: Cutoff) -> float:
    """Standard error of alpha from disjoint windows, NaN where a part of them cannot be fitted.

    ``eigenvalues`` and ``zero`` have the shape (row bands, column bands, matrices, eigenvalues per
    window); all matrices (kernel slices) of one position are left out together.
    """
    bands = eigenvalues.shape[:2]
    row, column = (_merge(count) for count in bands)
    row_of = np.broadcast_to(row[:, None, None, None], eigenvalues.shape)[~zero]
    column_of = np.broadcast_to(column[None, :, None, None], eigenvalues.shape)[~zero]
    values = eigenvalues[~zero]
    order = np.argsort(values, kind="stable")
    values, row_of, column_of = values[order], row_of[order], column_of[order]
    cell = row_of * (column[-1] + 1) + column_of
    groups = row[-1] + 1, column[-1] + 1
    rows, columns, cells = (
        jackknife_variance(values, group, count, cutoff)
        for group, count in (
            (row_of, groups[0]),
            (column_of, groups[1]),
            (cell, groups[0] * groups[1]),
        )
    )
    return math.sqrt(max(rows + columns - cells, cells))


def _merge(count: int) -> NDArray[np.intp]:
    """Group number of each band, at most MAX_BANDS groups of about equal size."""
    return np.arange(count) * min(count, MAX_BANDS) // count


def jackknife_variance(values: Array, group: NDArray[np.intp], count: int, cutoff: Cutoff) -> float:
    """Variance of alpha, (G - 1) / G * sum (alpha without g - mean)^2 over the G groups, those of zeros alone included.

    ``values`` ascending, ``group`` the number of each one's group.
    """
    alphas = np.array([tail_alpha(values[group != g], cutoff) for g in range(count)])
    return float((count - 1) / count * ((alphas - alphas.mean()) ** 2).sum())


def tail_alpha(values: Array, cutoff: Cutoff) -> float:
    """Alpha of the tail alone, with no KS distance; NaN where there is no tail, or nothing but equal values in it."""
    if not values.size:
        return math.nan
    start = cutoff.start(values)
    if start >= values.size:
        return math.nan
    tail = values[start:]
    total = float(np.log(tail / tail[0]).sum())
    return 1 + tail.size / total if total > 0 else math.nan
