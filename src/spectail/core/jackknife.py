"""The error bar of alpha: how much alpha would vary if the layer's weights were drawn again.

A jackknife recomputes a statistic without each part of the data in turn and derives the variance
from the spread of the results. Here the parts are disjoint windows. Entries of a matrix depend on
each other along rows and along columns, so whole bands of rows and whole bands of columns are left
out in turn. Each window is then counted in both, and is subtracted once (the two-way clustering of
Cameron, Gelbach and Miller 2011). The formula for independent samples, (alpha - 1) / sqrt(n), is
several times too large because eigenvalues repel each other.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.core.cutoffs import Cutoff

Array: TypeAlias = NDArray[np.float64]

MAX_BANDS = 16
"""Further bands per side are merged. The estimate is no worse, and the number of refits grows with
the square of the number of bands."""


def alpha_standard_error(eigenvalues: Array, zero: NDArray[np.bool_], cutoff: Cutoff) -> float:
    """Return the standard error of alpha from disjoint windows.

    ``eigenvalues`` and ``zero`` have the shape (row bands, column bands, matrices, eigenvalues per
    window). All matrices (kernel slices) of one position are left out together. The result is NaN
    if no tail can be fitted without some part.
    """
    bands = eigenvalues.shape[:2]
    # Give every eigenvalue the numbers of its row band and its column band, then pool and sort.
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
    # The difference can come out too small or negative by chance; the windows' own variance is
    # then the better estimate.
    return math.sqrt(max(rows + columns - cells, cells))


def _merge(count: int) -> NDArray[np.intp]:
    """Return the group number of each band: at most MAX_BANDS groups of about equal size."""
    return np.arange(count) * min(count, MAX_BANDS) // count


def jackknife_variance(values: Array, group: NDArray[np.intp], count: int, cutoff: Cutoff) -> float:
    """Return the jackknife variance of alpha, (G - 1) / G * sum((alpha without g - mean)^2).

    ``values`` are ascending, ``group`` holds the group number of each value and ``count`` is G,
    which includes groups that hold zeros only.
    """
    # Removing values keeps the order, so every refit starts from sorted values.
    alphas = np.array([tail_alpha(values[group != g], cutoff) for g in range(count)])
    return float((count - 1) / count * ((alphas - alphas.mean()) ** 2).sum())


def tail_alpha(values: Array, cutoff: Cutoff) -> float:
    """Return alpha of the tail without its KS distance; NaN if no tail can be fitted.

    There is no fit if the tail is empty or all its values are equal.
    """
    if not values.size:
        return math.nan
    start = cutoff.start(values)
    if start >= values.size:
        return math.nan
    # core.tails.fit_from also adds ties of xmin below ``start``; eigenvalues are hardly ever equal.
    tail = values[start:]
    total = float(np.log(tail / tail[0]).sum())
    return 1 + tail.size / total if total > 0 else math.nan
