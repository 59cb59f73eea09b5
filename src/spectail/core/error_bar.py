"""Choose the windows from which the error bar of alpha is estimated; see ``jackknife`` for how.

The windows are disjoint and lie in at least three bands of rows and three of columns. Where the
windows of the fit are such windows, their eigenvalues are used again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.core.bands import Bands, eigenvalues_of
from spectail.core.jackknife import Numbers, error_of_windows
from spectail.core.spec import Spec
from spectail.core.spectra import numerical_zeros
from spectail.core.windows import MIN_BANDS, Window, disjoint_bands

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = NDArray[np.float64]
Corner: TypeAlias = tuple[int, int]

OVERLAP = 0.2
"""Largest share of a band of windows that the next one may overlap where both count as disjoint.
Tiles overlap a little if the window does not divide the matrix."""
TOO_FEW = f"no error bar: fewer than {MIN_BANDS} x {MIN_BANDS} disjoint windows fit"
FIXED = "no error bar: a fixed xmin means something else in the smaller windows that it needs"
NO_TAIL = "no error bar: some windows have no tail of their own"


def jackknife_error(
    window: Window, matrices: Tensor | Bands, known: dict[Corner, Array], spec: Spec
) -> tuple[float, str]:
    """Return the jackknife error of alpha from disjoint windows, or NaN and the reason.

    ``known`` holds the eigenvalues of the fit by the corners of its windows. If the spec has a
    tolerance, these are a few of all windows, and the error bar stays with them: it takes the
    windows themselves, or smaller ones inside of them.
    """
    few = spec.tolerance is not None
    if few and _apart(window, list(known)):
        return _error_of(list(known), np.stack(list(known.values())), window, spec)
    rows, cols = matrices.shape[1:]
    smaller = spec.cutoff.error_window(window, rows, cols)
    if min(smaller) < 2:
        return math.nan, TOO_FEW
    if smaller != window and not spec.cutoff.any_window:
        return math.nan, FIXED
    corners = [
        (top, left)
        for top in disjoint_bands(rows, smaller.rows)
        for left in disjoint_bands(cols, smaller.cols)
    ]
    if few:
        inside = [corner for corner in corners if _within(smaller, corner, window, known)]
        corners = inside if _apart(smaller, inside) else corners
    # Tiles include the disjoint windows if they divide the matrix.
    if smaller == window and all(corner in known for corner in corners):
        found = np.stack([known[corner] for corner in corners])
    else:
        found = eigenvalues_of(matrices, smaller, corners)
    return _error_of(corners, found, smaller, spec)


def _error_of(
    corners: Sequence[Corner], found: Array, window: Window, spec: Spec
) -> tuple[float, str]:
    """Return the error of alpha from windows at these corners, or NaN and the reason."""
    row, column = (_band_numbers(corners, axis) for axis in (0, 1))
    error = error_of_windows(found, numerical_zeros(found, window), row, column, spec.cutoff)
    return error, "" if math.isfinite(error) else NO_TAIL


def _band_numbers(corners: Sequence[Corner], axis: int) -> Numbers:
    """Return the number of each window's band of rows (``axis`` 0) or columns (1)."""
    return np.unique([corner[axis] for corner in corners], return_inverse=True)[1]


def _apart(window: Window, corners: Sequence[Corner]) -> bool:
    """Return whether the windows visit MIN_BANDS bands or more on each side that hardly overlap."""
    for axis in (0, 1):
        starts = np.unique([corner[axis] for corner in corners])
        if starts.size < MIN_BANDS or np.diff(starts).min() < (1 - OVERLAP) * window[axis]:
            return False
    return True


def _within(window: Window, corner: Corner, larger: Window, outer: dict[Corner, Array]) -> bool:
    """Return whether a window lies inside one of the larger ones."""
    return any(
        top <= corner[0] <= top + larger.rows - window.rows
        and left <= corner[1] <= left + larger.cols - window.cols
        for top, left in outer
    )
