"""Eigenvalues of windows and the ERG count, written from the definitions in plain loops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def plain_windows_of(
    matrix: Array, window: tuple[int, int], positions: Sequence[tuple[int, int]]
) -> list[Array]:
    """Return the squared singular values of each window."""
    rows, cols = window
    found = []
    for top, left in positions:
        values: Array = np.linalg.svd(matrix[top : top + rows, left : left + cols])[1]
        found.append(np.square(values))
    return found


def plain_erg_count(eigenvalues: Array) -> int:
    """Return the largest k with a product of the k largest rescaled eigenvalues of at least 1."""
    m = len(eigenvalues)
    rescaled = sorted((m * float(x) / float(eigenvalues.sum()) for x in eigenvalues), reverse=True)
    best, product = 0, 1.0
    for k, x in enumerate(rescaled, 1):
        product *= x
        if product >= 1:
            best = k
    return best
