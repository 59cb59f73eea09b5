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
Numbers: TypeAlias = NDArray[np.intp]

MAX_BANDS = 16
"""Further bands per side are merged. The estimate is no worse, and the number of refits grows with
the square of the number of bands."""


def alpha_standard_error(eigenvalues: Array, zero: NDArray[np.bool_], cutoff: Cutoff) -> float:
    """Return the standard error of alpha from a full grid of disjoint windows.

    ``eigenvalues`` and ``zero`` have the shape (row bands, column bands, matrices, eigenvalues per
    window). All matrices (kernel slices) of one position are left out together. The result is NaN
    if no tail can be fitted without some part.
    """
    rows, columns = eigenvalues.shape[:2]
    row, column = (index.ravel() for index in np.indices((rows, columns)))
    windows = (rows * columns, *eigenvalues.shape[2:])
    return error_of_windows(
        eigenvalues.reshape(windows), zero.reshape(windows), row, column, cutoff
    )


def error_of_windows(
    eigenvalues: Array, zero: NDArray[np.bool_], row: Numbers, column: Numbers, cutoff: Cutoff
) -> float:
    """Return the standard error of alpha from disjoint windows, which need not fill a grid.

    ``eigenvalues`` and ``zero`` have the shape (windows, matrices, eigenvalues per window); ``row``
    and ``column`` hold the number of each window's band, counted from 0 without gaps.
    """
    row, column = (_merge(int(bands.max()) + 1)[bands] for bands in (row, column))
    # A cell is where a row band and a column band meet; cells without a window do not count.
    _, cell = np.unique(np.stack([row, column]), axis=1, return_inverse=True)
    # Give every eigenvalue the numbers of its window, then pool and sort.
    window = np.broadcast_to(np.arange(len(row))[:, None, None], eigenvalues.shape)[~zero]
    values = eigenvalues[~zero]
    order = np.argsort(values, kind="stable")
    values, window = values[order], window[order]
    rows, columns, cells = (
        jackknife_variance(values, groups[window], int(groups.max()) + 1, cutoff)
        for groups in (row, column, cell.ravel())
    )
    # The difference can come out too small or negative by chance; the windows' own variance is
    # then the better estimate.
    return math.sqrt(max(rows + columns - cells, cells))


def _merge(count: int) -> Numbers:
    """Return the group number of each band: at most MAX_BANDS groups of about equal size."""
    return np.arange(count) * min(count, MAX_BANDS) // count


def jackknife_variance(values: Array, group: Numbers, count: int, cutoff: Cutoff) -> float:
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
